"""Student and teacher see the same mixed inputs.

python docs/examples/schemes_mixup.py
"""

import torch
import torch.nn.functional as F
from torch import nn

from potstill.core import Objective, fit
from potstill.core.criteria import logit_std
from potstill.core.schemes import MixupDistiller

torch.manual_seed(0)
x, y = torch.randn(256, 8), torch.randint(3, (256,))
teacher = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 3))

objective = Objective(task=(0.1, F.cross_entropy), soft=(0.9, logit_std))
distiller = MixupDistiller(nn.Linear(8, 3), objective, teacher, num_classes=3, share=0.5)
history = fit(distiller, [(x, y)], steps=40, lr=0.05, progress=False)
print(f"{history[0]['soft']:.4f} -> {history[-1]['soft']:.4f}")
