"""Match logits: with a temperature, as they are, standardized, or with an eye on labels.

python docs/examples/criteria_logit.py
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from potstill.core import Objective, fit
from potstill.core.criteria import kd, logit_mse, logit_std, mft, soft_ce, wsld
from potstill.core.schemes import LogitDistiller

torch.manual_seed(0)
x, y = torch.randn(256, 8), torch.randint(3, (256,))
teacher = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 3))

criteria = {
    "kd": partial(kd, T=4.0),
    "logit_mse": logit_mse,
    "logit_std": logit_std,
    "soft_ce": soft_ce,
    "wsld": wsld,
    "mft": mft,
}
for name, criterion in criteria.items():
    objective = Objective(task=(0.1, F.cross_entropy), soft=(0.9, criterion))
    distiller = LogitDistiller(nn.Linear(8, 3), objective, teacher)
    history = fit(distiller, [(x, y)], steps=40, lr=0.05, progress=False)
    print(f"{name:12} {history[0]['soft']:9.4f} -> {history[-1]['soft']:.4f}")
