"""Few classes, many subclasses: directions inside each class of the teacher's features (LELP).

python docs/examples/criteria_lelp.py
"""

import torch
from torch import nn

from potstill.core import Distiller, Objective, fit
from potstill.core.criteria import LelpHead, lelp_subclasses, lelp_targets, soft_ce

torch.manual_seed(0)
x, y = torch.randn(300, 8), torch.arange(300) % 2
body, head = nn.Sequential(nn.Linear(8, 32), nn.Tanh()), nn.Linear(32, 2)
with torch.no_grad():
    embeddings = body(x)
    probabilities = torch.softmax(head(embeddings), -1)
subclasses = lelp_subclasses(embeddings, y, directions=3)
targets = lelp_targets(embeddings, probabilities, subclasses)  # [300, 2 * 2 * 3]


class Subclasses(Distiller):
    def forward(self, batch, step):
        x, targets = batch
        return self.objective(step, soft=(self.student(x), targets.clamp_min(1e-12).log()))


student = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), LelpHead(16, 2, directions=3))
distiller = Subclasses(student, Objective(soft=(1.0, soft_ce)))
history = fit(distiller, [(x, targets)], steps=60, lr=0.02, progress=False)
print(f"{history[0]['soft']:.3f} -> {history[-1]['soft']:.3f}, {tuple(targets.shape)} targets")
