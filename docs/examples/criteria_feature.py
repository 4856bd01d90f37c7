"""Match features of equal width; a projector (`Projected`) makes widths equal.

python docs/examples/criteria_feature.py
"""

import torch
from torch import nn

from potstill.core import Distiller, Objective, fit, tap
from potstill.core.criteria import Projected, cosine, hint, l1, mse, smooth_l1

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
    "hint": Projected(nn.Linear(16, 32), hint),
    "mse": Projected(nn.Linear(16, 32), mse),
    "l1": Projected(nn.Linear(16, 32), l1),
    "smooth_l1": Projected(nn.Linear(16, 32), smooth_l1),
    "cosine": Projected(nn.Linear(16, 32), cosine),
}
for name, criterion in criteria.items():
    student = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))
    distiller = Features(student, Objective(feature=(1.0, criterion)), teacher)
    history = fit(distiller, [x], steps=40, lr=0.02, progress=False)
    print(f"{name:12} {history[0]['feature']:.4f} -> {history[-1]['feature']:.4f}")
