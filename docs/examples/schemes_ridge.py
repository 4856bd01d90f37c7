"""Self-distillation of kernel ridge regression in closed form.

python docs/examples/schemes_ridge.py
"""

import torch
from torch import nn

from potstill.core.schemes import KernelRidge, rbf

torch.manual_seed(0)
x, y = torch.randn(256, 8), torch.randint(3, (256,))
teacher = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 3))

x = torch.linspace(0, 6, 40, dtype=torch.float64)[:, None]
noisy = x[:, 0].sin() + 0.3 * torch.randn(40, dtype=torch.float64)
ridge = KernelRidge(rbf(x, x, length=0.5), noisy, lam=0.1)
for number, fitted in enumerate(ridge.steps(4, alpha=0.3)):
    error = (fitted - x[:, 0].sin()).square().mean()
    print(f"step {number}: squared error {error:.4f}")
