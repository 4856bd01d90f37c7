"""Students one after another, each taught by its predecessor (born again).

python docs/examples/schemes_generations.py
"""

import torch
from torch import nn

from potstill.core import fit
from potstill.core.schemes import self_distill

torch.manual_seed(0)
x, y = torch.randn(256, 8), torch.randint(3, (256,))
teacher = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 3))


def train(distiller):
    fit(distiller, [(x, y)], steps=20, lr=0.05, progress=False)


def make():
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))


for number, generation in enumerate(self_distill(make, train, generations=3, alpha=0.5)):
    print(f"generation {number}: share of labels {generation.alpha:.2f}")
