"""A network of many widths: the largest, the smallest and random ones in each step.

python docs/examples/schemes_sandwich.py
"""

import torch
import torch.nn.functional as F
from torch import nn

from potstill.core import fit
from potstill.core.schemes import Sandwich

torch.manual_seed(0)
x, y = torch.randn(256, 8), torch.randint(3, (256,))


class Widths(Sandwich):
    """A subnet is the first hidden units of an MLP."""

    largest, least = 32, 4

    def run(self, part, x):
        first, last = self.student[0], self.student[2]
        hidden = F.linear(x, first.weight[:part], first.bias[:part]).relu()
        return F.linear(hidden, last.weight[:, :part], last.bias)

    def draw(self):
        return int(torch.randint(self.least, self.largest + 1, ()))


student = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))
history = fit(Widths(student, 60, delay=0.2), [(x, y)], steps=60, lr=0.02, progress=False)
print({name: round(value, 3) for name, value in history[-1].items() if name != "step"})
