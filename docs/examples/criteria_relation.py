"""Match relations between the items of a batch: widths may differ.

python docs/examples/criteria_relation.py
"""

import torch
from torch import nn

from potstill.core import Distiller, Objective, fit, tap
from potstill.core.criteria import Projected, cc, cckd, cka, pkt, sp

torch.manual_seed(0)
x = torch.randn(128, 8)
teacher = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 3))


class Features(Distiller):
    def forward(self, batch, step):
        with tap(self.student, "0", stop=True) as student, tap(self.teacher, "0") as teacher:
            self.student(batch)
            self.teacher(batch)
        return self.objective(step, feature=(student["0"].output, teacher["0"].output))


criteria = {
    "sp": sp,
    "pkt": pkt,
    "cc": Projected(nn.Linear(16, 32), cc),
    "cckd": cckd,
    "cka": cka,
}
for name, criterion in criteria.items():
    student = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))
    distiller = Features(student, Objective(feature=(1.0, criterion)), teacher)
    history = fit(distiller, [x], steps=40, lr=0.02, progress=False)
    print(f"{name:12} {history[0]['feature']:.4f} -> {history[-1]['feature']:.4f}")
