"""Which student fits a budget: costs, a few short distillations, reasons.

python docs/examples/search_suggest.py
"""

import tempfile

import torch

from potstill.core import Training
from potstill.core.images import Images
from potstill.search import Budget, SmallResNet, image_task, resnet, suggest

torch.manual_seed(0)
labels = torch.arange(30) % 3
pixels = torch.randint(0, 128, (30, 3, 8, 8))
pixels[torch.arange(30), labels] += 120
images = Images(pixels.byte(), labels, tuple(map(str, range(30))), ("red", "green", "blue"))
validation, train = images.split(0.3)
space = resnet(3, depth=((1, 1), (2, 2)), width=(4, 8))
with tempfile.TemporaryDirectory() as folder:
    teacher = SmallResNet((1, 1), 16, num_classes=3)
    task = image_task(teacher, train, validation, folder=folder, batch=7)
    found = suggest(space, task, Budget(macs=100_000), training=Training(steps=2, device="cpu"))
    print(found.best.choice, found.best.accuracy)
