"""A smaller upscaler learns from a larger one: output, affinity, high frequencies, contrast.

python docs/examples/sr_distill.py
"""

import numpy as np
import torch
import torch.nn.functional as F

from potstill.core import Objective, fit
from potstill.sr import (
    IMDN,
    Patches,
    UpscalerToUpscaler,
    contrastive_ratio,
    degrade,
    load_model,
    wavelet_l1,
)

torch.manual_seed(0)
photograph = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
batches = Patches(degrade([photograph], 2), patch=16, batch=2, seed=0)
teacher = load_model("potstill-x2")
for name, more in {
    "output": {"output": (0.5, F.l1_loss)},
    "wavelet": {"wavelet": (0.1, wavelet_l1)},
    "contrast": {"contrastive": (0.1, contrastive_ratio)},
}.items():
    distiller = UpscalerToUpscaler(
        IMDN(2, channels=8, blocks=2), Objective(task=(1.0, F.l1_loss), **more), teacher
    )
    history = fit(distiller, batches, steps=8, lr=2e-3, progress=False)
    print(f"{name:10} {history[0]['loss']:.3f} -> {history[-1]['loss']:.3f}")
