"""Masked feature distillation: both models see the same quarter of each image (DMAE).

python docs/examples/mae_dmae.py
"""

import timm
import torch

from potstill.core import fit
from potstill.mae import MaskedAutoencoder, MaskedToMasked, RandomMasking, adamw

torch.manual_seed(0)
options = {"img_size": 32, "patch_size": 8, "depth": 2, "num_heads": 3, "num_classes": 0}
teacher = timm.create_model("vit_tiny_patch16_224", **options)
images = [torch.randn(8, 3, 32, 32)]
for decoder in (None, {"depth": 1, "width": 32}):  # alignment alone, or hidden pixels as well
    vit = timm.create_model("vit_tiny_patch16_224", embed_dim=48, **options)
    student = MaskedAutoencoder(vit, decoder, fixed_positions=True)
    distiller = MaskedToMasked(student, teacher, masking=RandomMasking(0.75), layers=0.5)
    history = fit(distiller, images, steps=10, optimizer=adamw(), progress=False)
    print({name: round(value, 4) for name, value in history[-1].items() if name != "step"})
