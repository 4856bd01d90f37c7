"""Other divergences than the forward one: which errors of the student count.

python docs/examples/criteria_divergence.py
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from potstill.core import Objective, fit
from potstill.core.criteria import bdkd, gjsd, reverse_kl, skew_fkl, skew_rkl, tvd
from potstill.core.schemes import LogitDistiller

torch.manual_seed(0)
x, y = torch.randn(256, 8), torch.randint(3, (256,))
teacher = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 3))

criteria = {
    "reverse_kl": reverse_kl,
    "gjsd": partial(gjsd, beta=0.5),
    "skew_fkl": skew_fkl,
    "skew_rkl": skew_rkl,
    "tvd": tvd,
    "bdkd": bdkd,
}
for name, criterion in criteria.items():
    objective = Objective(task=(0.1, F.cross_entropy), soft=(0.9, criterion))
    distiller = LogitDistiller(nn.Linear(8, 3), objective, teacher)
    history = fit(distiller, [(x, y)], steps=40, lr=0.05, progress=False)
    print(f"{name:12} {history[0]['soft']:9.4f} -> {history[-1]['soft']:.4f}")
