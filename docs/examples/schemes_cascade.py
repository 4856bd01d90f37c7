"""Small answers where it is sure, the teacher elsewhere; a threshold with a guarantee.

python docs/examples/schemes_cascade.py
"""

import torch
from torch import nn

from potstill.core import Objective, fit
from potstill.core.criteria import kd
from potstill.core.schemes import Cascade, LogitDistiller, calibrate

torch.manual_seed(0)
x, y = torch.randn(256, 8), torch.randint(3, (256,))
teacher = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 3))

distiller = LogitDistiller(nn.Linear(8, 3), Objective(soft=(1.0, kd)), teacher)
fit(distiller, [(x, y)], steps=200, lr=0.05, progress=False)
with torch.no_grad():
    held_out = torch.randn(2000, 8)
    threshold = calibrate(distiller.student(held_out), teacher(held_out), epsilon=0.1)
    cascade = Cascade(distiller.student, teacher, threshold)
    cascade(torch.randn(1000, 8))
print(f"threshold {threshold:.3f}: {cascade.deferred:.0%} go to the teacher")
