"""Few bits: without training, by learned rounding, by learned steps, in two binary scales.

python docs/examples/quant_methods.py
"""

import torch
from torch import nn

from potstill.core import Objective, fit
from potstill.core.criteria import logit_mse
from potstill.core.schemes import UnlabeledDistiller
from potstill.quant import Grid, bake, lower, post_training, reconstruct

torch.manual_seed(0)
net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
x = torch.randn(128, 8)


@torch.no_grad()
def error(model):
    return f"{float((model(x) - net(x)).square().mean()):.4f}"


grid = Grid(bits=3)
for method in ("max", "mse", "gptq"):
    print(f"{method:10} {error(post_training(net, grid, [x], method=method).student)}")
print(f"{'rounding':10} {error(reconstruct(net, grid, [x], steps=40))}")
student = lower(net, grid)  # learned steps; train it as you trained net
distiller = UnlabeledDistiller(student, Objective(soft=(1.0, logit_mse)), net)
fit(distiller, [x], steps=60, lr=1e-3, progress=False)
print(f"{'trained':10} {error(bake(student))}")
