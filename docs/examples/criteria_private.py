"""Rows of private data teach less sharply: a temperature for each row (swing).

python docs/examples/criteria_private.py
"""

import torch
from torch import nn

from potstill.core import Distiller, Objective, fit
from potstill.core.criteria import swing

torch.manual_seed(0)
x = torch.randn(256, 8)
private = (torch.arange(256) % 4 == 0).float()  # 1: entirely, 0: not at all
teacher = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 3))


class Careful(Distiller):
    def forward(self, batch, step):
        x, private = batch
        return self.objective(step, soft=(self.student(x), self.teacher(x), private))


distiller = Careful(nn.Linear(8, 3), Objective(soft=(1.0, swing)), teacher)
history = fit(distiller, [(x, private)], steps=40, lr=0.05, progress=False)
print(f"{history[0]['soft']:.4f} -> {history[-1]['soft']:.4f}")
