"""A teacher, a student, labels: terms that take logits.

python docs/examples/schemes_offline.py
"""

import torch
import torch.nn.functional as F
from torch import nn

from potstill.core import Objective, fit
from potstill.core.criteria import kd
from potstill.core.schemes import LogitDistiller

torch.manual_seed(0)
x, y = torch.randn(256, 8), torch.randint(3, (256,))
teacher = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 3))

objective = Objective(task=(0.1, F.cross_entropy), soft=(0.9, kd))
distiller = LogitDistiller(nn.Linear(8, 3), objective, teacher)
history = fit(distiller, [(x, y)], steps=40, lr=0.05, progress=False)
print(f"{history[0]['loss']:.4f} -> {history[-1]['loss']:.4f}")
