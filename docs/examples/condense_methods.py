"""A training set becomes a small one: matched, followed, recovered, or chosen images.

python docs/examples/condense_methods.py
"""

import tempfile

import torch

from potstill.condense import Condensed, Pool, condense, select
from potstill.core import Training

torch.manual_seed(0)
images = torch.rand(40, 3, 8, 8)
images[::2] *= 0.5
pool = Pool.of([(image, n % 2) for n, image in enumerate(images)])
options = {"training": Training(steps=3, device="cpu"), "progress": False}
with tempfile.TemporaryDirectory() as folder:
    for method in ("dm", "datadam"):
        made = condense(
            pool, method, ipc=1, out=f"{folder}/{method}", network="convnet-2-4-instance", **options
        )
        print(f"{method:10} {len(made)} images")
    for method in ("graphcut", "herding", "kcenter", "random"):
        kept = Condensed.of(pool, select(pool, ratio=0.1, method=method), method=method)
        print(f"{method:10} {len(kept)} images")
