"""Two upscalers of one factor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from apps.tour.chapter import Chapter, Side, forward
from apps.tour.sr import enlarge, looks, portrait
from apps.tour.widgets import table
from potstill.core import ConfigError
from potstill.sr import degrade, imresize, load_model, read_image, score
from potstill.sr.images import find_photographs


def compare(first: str, second: str, data: str) -> Chapter:
    """``first`` and ``second``: weight files or names; ``data``: a folder of originals."""
    models = [load_model(source) for source in (first, second)]
    scale = models[0].scale
    if models[1].scale != scale:
        raise ConfigError(
            f"compare: second must enlarge by {scale} like the first, got {models[1].scale}"
        )
    originals = {"portrait": portrait().hr} if not data else {
        path.name: read_image(path).rgb8() for path in find_photographs(data)
    }  # fmt: skip
    pairs = dict(zip(originals, degrade(originals.values(), scale), strict=True))
    inputs = {k: torch.from_numpy(p.lr).permute(2, 0, 1)[None] / 255 for k, p in pairs.items()}
    rows, means = [], []
    for model in models:
        scores = [score(enlarge(model, inputs[k]), pair.hr, scale) for k, pair in pairs.items()]
        rows.append(scores)
        means.append(float(np.mean([found.psnr for found in scores])))
    shown = next(iter(pairs))
    made = {"bicubic": imresize(pairs[shown].lr, scale).astype(np.uint8)}
    made |= {
        name: enlarge(model, inputs[shown])
        for name, model in zip(("first", "second"), models, strict=True)
    }
    sides = [
        Side(source, model, mean, forward, (model, inputs[shown]))
        for source, model, mean in zip((first, second), models, means, strict=True)
    ]
    height, width = pairs[shown].lr.shape[:2]
    cells = [[k, a.psnr, b.psnr, a.ssim, b.ssim] for k, a, b in zip(pairs, *rows, strict=True)]
    return Chapter(
        title=f"Enlarged by {scale}",
        teacher=sides[0],
        student=sides[1],
        measure=f"PSNR of Y, {Path(data).name or 'a portrait'}",
        unit="dB",
        work=f"1 photograph of {width} x {height}",
        command=f"potstill sr compare PHOTOGRAPH --scale {scale}",
        html=looks(pairs[shown], made, ("first", "second"))
        + table(["photograph", "first [dB]", "second [dB]", "first SSIM", "second SSIM"], cells),
        roles=("first", "second"),
    )
