"""The student tells the teacher its state and learns from how it goes on.

python docs/examples/schemes_talking.py
"""

import torch
from torch import nn

from potstill.core import fit
from potstill.core.schemes import TalkingDistiller

torch.manual_seed(0)
x, y = torch.randn(256, 8), torch.randint(3, (256,))
teacher = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 3))

student = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3))
deep = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 3))
distiller = TalkingDistiller(
    student, deep, lower=("1", "1"), upper=("3", "3"), widths=(16, 64, 16, 64)
)
history = fit(distiller, [(x, y)], steps=40, lr=0.01, progress=False)
print({name: round(value, 3) for name, value in history[-1].items() if name != "step"})
