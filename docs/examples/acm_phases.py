"""An adaptive transformer in three phases, then another budget without training.

python docs/examples/acm_phases.py
"""

import timm
import torch

from potstill.acm import acmize, calibrate, distill, finetune, pretrain_gates, record_gates, share

torch.manual_seed(0)
dense = timm.create_model(
    "vit_tiny_patch16_224", img_size=16, patch_size=4, depth=2, embed_dim=48, num_classes=3
)
images, labels = torch.randn(32, 3, 16, 16), torch.randint(3, (32,))
model = acmize(dense)  # equals the dense one
distill(model, dense, [images], steps=8, progress=False)
pretrain_gates(model, dense, [images], steps=8, progress=False)
finetune(model, [(images, labels)], budget=0.5, steps=8, progress=False)
for budget in (0.5, 0.3):
    calibrate(model, [images], budget=budget)
    with torch.no_grad(), record_gates(model.eval()) as choices:
        model(images)
    print(f"calibrated to {budget}: {share(choices).mean():.2f} of the learners run")
