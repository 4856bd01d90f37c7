"""A diffusion model in many steps teaches a generator in one.

python docs/examples/flow_methods.py
"""

import tempfile
from pathlib import Path

import torch

from potstill.core import Training
from potstill.flow import Data, Items, TeacherConfig, TrainTeacher, distill, load_teacher

torch.manual_seed(0)
labels = torch.arange(3).repeat(200)
angles = labels * 2.1 + 0.3 * torch.randn(600)
points = torch.stack([angles.cos(), angles.sin()], 1)  # images [n, c, h, w] work the same way
data = Data(Items(points, labels), ("one", "two", "three"))
quick = Training(steps=2, batch=8, lr=1e-3, final=0.0, device="cpu")
with tempfile.TemporaryDirectory() as folder:
    longer = Training(steps=80, batch=32, lr=3e-3, final=0.0, device="cpu")
    config = TeacherConfig(out=Path(folder, "teacher"), network="points", training=longer)
    TrainTeacher(config, data).run(progress=False)
    teacher = load_teacher(Path(folder, "teacher", "teacher"))
    for method in ("boot", "freeflow", "dmd", "dmd2", "disback"):
        student = distill(
            teacher, method, out=f"{folder}/{method}", data=data, training=quick, progress=False
        )
        print(method, type(student).__name__)
