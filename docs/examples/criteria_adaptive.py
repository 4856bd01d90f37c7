"""Targets that move: from the student's own answer to the teacher's (TAID), weighted by entropy.

python docs/examples/criteria_adaptive.py
"""

import torch
import torch.nn.functional as F
from torch import nn

from potstill.core import Objective, fit
from potstill.core.criteria import Taid, entropy_weight, kd
from potstill.core.schemes import LogitDistiller

torch.manual_seed(0)
x, y = torch.randn(256, 8), torch.randint(3, (256,))
teacher = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 3))


def unsure(z_s, z_t, y):
    """Rows count as much as student and teacher are unsure of them."""
    return kd(z_s, z_t, y, weight=entropy_weight(z_s, z_t).detach())


moving = Taid(num_steps=40)
for name, criterion in {"taid": moving, "entropy": unsure}.items():
    objective = Objective(task=(0.1, F.cross_entropy), soft=(0.9, criterion))
    distiller = LogitDistiller(nn.Linear(8, 3), objective, teacher)
    history = fit(distiller, [(x, y)], steps=40, lr=0.05, progress=False)
    print(f"{name:8} {history[0]['soft']:.4f} -> {history[-1]['soft']:.4f}")
print(f"TAID went to {float(moving.tau):.2f} of the way")
