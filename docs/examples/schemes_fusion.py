"""How much teacher, how much label, for each sample: a network learns it (TGeo-KD).

python docs/examples/schemes_fusion.py
"""

import torch
from torch import nn

from potstill.core import fit
from potstill.core.criteria import RatioNet
from potstill.core.schemes import TrilateralFusion

torch.manual_seed(0)
x, y = torch.randn(256, 8), torch.randint(3, (256,))
teacher = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 3))

student = nn.Linear(8, 3)
ratio = RatioNet(9 * 3)
distiller = TrilateralFusion(student, teacher, ratio, inner_lr=0.05)
batch = ((x[:192], y[:192]), (x[192:], y[192:]))  # to train, and to judge the ratio
history = fit(distiller, [batch], steps=20, lr=0.05, progress=False)
print({name: round(value, 3) for name, value in history[-1].items() if name != "step"})
