"""Teachers that keep k classes only: live, and from a file of k classes and log-probabilities.

python docs/examples/criteria_topk.py
"""

import torch
from torch import nn

from potstill.core import Distiller, Objective, fit
from potstill.core.criteria import sparse_kl, topk_kl

torch.manual_seed(0)
x = torch.randn(256, 8)
teacher = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 50))
log_p, indices = torch.log_softmax(teacher(x).detach(), -1).topk(5)  # what a file would hold


class Stored(Distiller):
    """A teacher that is a column of the data."""

    def forward(self, batch, step):
        x, indices, log_p = batch
        return self.objective(step, soft=(self.student(x), indices, log_p))


class Live(Distiller):
    """A teacher that is asked, and of whose answer five classes count."""

    def forward(self, batch, step):
        return self.objective(step, soft=(self.student(batch[0]), self.teacher(batch[0])))


def five(z_s, z_t):
    return topk_kl(z_s, z_t, k=5)


stored = Stored(nn.Linear(8, 50), Objective(soft=(1.0, sparse_kl)))
live = Live(nn.Linear(8, 50), Objective(soft=(1.0, five)), teacher)
for name, distiller in {"stored": stored, "live": live}.items():
    history = fit(distiller, [(x, indices, log_p)], steps=40, lr=0.05, progress=False)
    print(f"{name:8} {history[0]['soft']:.4f} -> {history[-1]['soft']:.4f}")
