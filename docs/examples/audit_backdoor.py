"""Does a backdoor of the teacher reach the student? Beside a clean teacher and labels alone.

python docs/examples/audit_backdoor.py
"""

import torch

from potstill.audit import Data, Learning, Patch, backdoor

torch.manual_seed(0)
x = torch.rand(120, 1, 8, 8)
y = (x[:, 0, :4].mean((1, 2)) > x[:, 0, 4:].mean((1, 2))).long()
data = Data((x[:40], y[:40]), (x[40:80], y[40:80]), (x[80:], y[80:]))
learning = Learning(classes=2, steps=15)
bench = backdoor(
    learning.train_teacher,
    {"kd": learning.arm("kd")},
    data,
    trigger=Patch((6, 8), (6, 8)),
    target=0,
    seeds=[0],
)
print(bench.report().markdown())
