"""Match feature maps of convolutional networks: attention, channels, correlations, flow.

python docs/examples/criteria_maps.py
"""

import torch
from torch import nn

from potstill.core import Distiller, Objective, fit, tap
from potstill.core.criteria import at, cwd, fsp, ickd, nst, pkd, review_hcl

torch.manual_seed(0)
images = torch.rand(16, 3, 12, 12)


def network(depth):
    blocks = [nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()) for _ in range(depth)]
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *blocks)


class Maps(Distiller):
    """Terms: ``maps`` of the last block, or ``flow`` from the first to the last."""

    def forward(self, batch, step):
        with tap(self.student, "0", "1") as s, tap(self.teacher, "0", "3") as t:
            self.student(batch)
            self.teacher(batch)
        maps = s["1"].output, t["3"].output
        flow = (s["0"].output, s["1"].output), (t["0"].output, t["3"].output)
        name = self.objective.names[0]
        return self.objective(step, {name: maps if name == "maps" else flow})


teacher = network(3)
criteria = {"at": at, "cwd": cwd, "nst": nst, "ickd": ickd, "pkd": pkd, "review_hcl": review_hcl}
for name, criterion in {**criteria, "fsp": fsp}.items():
    term = "flow" if name == "fsp" else "maps"
    distiller = Maps(network(1), Objective({term: (1.0, criterion)}), teacher)
    history = fit(distiller, [images], steps=15, lr=0.01, progress=False)
    print(f"{name:12} {history[0][term]:.5f} -> {history[-1][term]:.5f}")
