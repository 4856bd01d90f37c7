"""Inputs without labels: near copies are taken out, and sure ones are chosen.

python docs/examples/schemes_unlabeled.py
"""

import torch
from torch import nn

from potstill.core import Objective, fit
from potstill.core.criteria import gjsd
from potstill.core.schemes import UnlabeledDistiller, near_duplicates, select_by_teacher

torch.manual_seed(0)
x, y = torch.randn(256, 8), torch.randint(3, (256,))
teacher = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 3))

pool = torch.cat([x, x[:50] + 1e-4, torch.randn(300, 8)])
pool = pool[~near_duplicates(pool, threshold=0.9999)]
chosen = select_by_teacher(teacher(pool).detach(), per_class=60)
distiller = UnlabeledDistiller(nn.Linear(8, 3), Objective(soft=(1.0, gjsd)), teacher)
history = fit(distiller, [pool[chosen]], steps=40, lr=0.05, progress=False)
print(f"{len(pool)} inputs, {len(chosen)} chosen: loss {history[-1]['soft']:.4f}")
