"""Once for all: subnets of fewer learners and blocks, from one training.

python docs/examples/acm_shrinking.py
"""

import timm
import torch

from potstill.acm import Shrinking, Subnet, acmize, extract
from potstill.core import count_parameters, fit

torch.manual_seed(0)
dense = timm.create_model(
    "vit_tiny_patch16_224", img_size=16, patch_size=4, depth=3, embed_dim=48, num_classes=3
)
model = acmize(dense)
batch = torch.randn(16, 3, 16, 16), torch.randint(3, (16,))
fit(Shrinking(model, 10, least=Subnet(1, 2)), [batch], steps=10, lr=1e-3, progress=False)
for subnet in (Subnet(4, 3), Subnet(2, 3), Subnet(1, 2)):
    print(subnet, f"{count_parameters(extract(model, subnet)):,} parameters")
