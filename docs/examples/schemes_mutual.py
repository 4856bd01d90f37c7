"""No teacher: peers that learn from labels and from each other.

python docs/examples/schemes_mutual.py
"""

from functools import partial

import torch
from torch import nn

from potstill.core import fit
from potstill.core.criteria import kd
from potstill.core.schemes import mutual

torch.manual_seed(0)
x, y = torch.randn(256, 8), torch.randint(3, (256,))
teacher = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 3))

peers = [nn.Linear(8, 3), nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))]
distiller = mutual(peers, partial(kd, T=1.0))
history = fit(distiller, [(x, y)], steps=40, lr=0.05, progress=False)
print({name: round(value, 4) for name, value in history[-1].items() if name.startswith("match")})
