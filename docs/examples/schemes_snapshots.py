"""The teacher is the student's own past.

python docs/examples/schemes_snapshots.py
"""

import torch
import torch.nn.functional as F
from torch import nn

from potstill.core import Objective, fit
from potstill.core.criteria import kd
from potstill.core.schemes import SnapshotDistiller

torch.manual_seed(0)
x, y = torch.randn(256, 8), torch.randint(3, (256,))
teacher = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 3))

objective = Objective(task=(1.0, F.cross_entropy), soft=(0.5, kd))
distiller = SnapshotDistiller(nn.Linear(8, 3), objective, k=3, every=10)
history = fit(distiller, [(x, y)], steps=40, lr=0.05, progress=False)
print(f"to its past: {history[0]['soft']:.4f} -> {history[-1]['soft']:.4f}")
