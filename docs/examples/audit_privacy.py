"""What a student tells about the items of its teacher: canaries in many small worlds.

python docs/examples/audit_privacy.py
"""

import tempfile

import torch

from potstill.audit import Learning, membership, plant

torch.manual_seed(0)
x = torch.rand(60, 1, 8, 8)
y = (x[:, 0, :4].mean((1, 2)) > x[:, 0, 4:].mean((1, 2))).long()
learning = Learning(classes=2, steps=8)
planted = plant(x, y, pool=20)


def world(members, seed):
    inputs, labels = planted.x[members], planted.y[members]
    teacher = learning.train_teacher(inputs, labels, seed)
    return {"teacher": teacher, "kd": learning.arm("kd")(teacher, inputs, labels, seed)}


with tempfile.TemporaryDirectory() as folder:
    worlds = membership(
        world, (planted.x, planted.y), worlds=5, canaries=planted.rows, insert=5, run=folder
    )
print(worlds.table().markdown())
