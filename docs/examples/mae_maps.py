"""A convolutional student learns the tokens of a masked transformer.

python docs/examples/mae_maps.py
"""

import timm
import torch

from potstill.core import fit
from potstill.mae import MapToMasked, RandomMasking, adamw

torch.manual_seed(0)
teacher = timm.create_model(
    "vit_tiny_patch16_224", img_size=64, patch_size=16, depth=2, num_classes=0
)
student = timm.create_model("resnet10t", num_classes=7)
distiller = MapToMasked(student, teacher, masking=RandomMasking(0.5))
images = [torch.randn(4, 3, 64, 64)]
history = fit(distiller, images, steps=6, lr=3e-3, optimizer=adamw(), progress=False)
print(f"{history[0]['align']:.4f} -> {history[-1]['align']:.4f}")
print(distiller.export_student()(images[0]).shape)
