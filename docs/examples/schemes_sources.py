"""Several models of other tasks teach one student, each as much as it is akin.

python docs/examples/schemes_sources.py
"""

import torch
from torch import nn

from potstill.core import fit
from potstill.core.schemes import multi_source, similarity_weights, task_similarity

torch.manual_seed(0)
x, y = torch.randn(256, 8), torch.randint(3, (256,))
teacher = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 3))

sources = {
    "near": teacher,
    "far": nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 5)),
}


class Heads(nn.Module):
    """A head for the task, and one for each source."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.Tanh())
        self.heads = nn.ModuleDict({n: nn.Linear(16, k) for n, k in SIZES.items()})

    def forward(self, x):
        features = self.body(x)
        return {name: head(features) for name, head in self.heads.items()}


SIZES = {"task": 3, "near": 3, "far": 5}
akin = {n: max(task_similarity(s[:2](x).detach(), y), 1e-3) for n, s in sources.items()}
distiller = multi_source(Heads(), sources, similarity_weights(akin))
history = fit(distiller, [(x, y, torch.randn(256, 8))], steps=40, lr=0.02, progress=False)
print(f"akin: {akin}; loss {history[0]['loss']:.3f} -> {history[-1]['loss']:.3f}")
