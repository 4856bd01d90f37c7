"""Several teachers at once, and a discriminator that the student learns to deceive.

python docs/examples/schemes_ensemble.py
"""

import torch
import torch.nn.functional as F
from torch import nn

from potstill.core import Objective, fit
from potstill.core.criteria import kd
from potstill.core.schemes import Discriminator, Ensemble, LogitDistiller

torch.manual_seed(0)
x, y = torch.randn(256, 8), torch.randint(4, (256,))
teacher = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 4))

second = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 4))
both = Ensemble([teacher, second], weights=[0.7, 0.3])
objective = Objective(
    task=(0.1, F.cross_entropy), soft=(0.9, kd), fooled=(0.1, Discriminator(num_classes=4))
)
distiller = LogitDistiller(nn.Linear(8, 4), objective, both)
history = fit(distiller, [(x, y)], steps=40, lr=0.05, progress=False)
print(f"{history[0]['soft']:.4f} -> {history[-1]['soft']:.4f}, fooled {history[-1]['fooled']:.3f}")
