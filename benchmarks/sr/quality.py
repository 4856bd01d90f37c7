"""Quality: published figures with the official weights, and what our own weights reach."""

import os

import numpy as np

from potstill.core.measure.bench import Figure, at_least, at_most, benchmark
from potstill.core.store import root
from potstill.sr import load_model
from potstill.sr.evaluation import PUBLISHED, Row, evaluate, find_set, mean

FLOORS = {2: 37.0, 3: 33.0, 4: 30.7}


def rows(name: str, scale: int, model: str | os.PathLike[str], **options) -> list[Row]:
    return evaluate(load_model(model), find_set(name), **options)


def published(scale: int, quick: bool) -> dict[str, Figure]:
    """Largest distance of both sets' means to the published figures."""
    model = root() / f"sr/safetensors/IMDN_x{scale}.safetensors"
    gaps = []
    for name in ("Set5",) if quick else ("Set5", "Set14"):
        found = mean(rows(name, scale, model)).ours
        psnr, ssim = PUBLISHED[name, scale]
        gaps.append((abs(found.psnr - psnr), abs(found.ssim - ssim)))
    psnr, ssim = np.max(gaps, axis=0)
    return {"psnr gap": Figure(psnr, "dB"), "ssim gap": Figure(ssim)}


TARGETS = {
    "psnr gap": at_most(0.01, "issue 5: PSNR within 0.01 dB"),
    "ssim gap": at_most(2e-4, "issue 5: SSIM within 2e-4"),
}
DATA = ("sr/safetensors", "sr/Set5", "sr/Set14")


@benchmark(data=DATA, targets=TARGETS, budget=120)
def published_x2(quick: bool) -> dict[str, Figure]:
    """Official weights, x2: distance to the published PSNR and SSIM on Set5 and Set14."""
    return published(2, quick)


@benchmark(data=DATA, targets=TARGETS, budget=120)
def published_x3(quick: bool) -> dict[str, Figure]:
    """Official weights, x3: distance to the published PSNR and SSIM on Set5 and Set14."""
    return published(3, quick)


@benchmark(data=DATA, targets=TARGETS, budget=120)
def published_x4(quick: bool) -> dict[str, Figure]:
    """Official weights, x4: distance to the published PSNR and SSIM on Set5 and Set14."""
    return published(4, quick)


@benchmark(
    data="sr/Set5",
    budget=60,
    targets={f"x{s}": at_least(FLOORS[s], f"issue 5: our weights, x{s}") for s in FLOORS},
)
def our_weights_set5() -> dict[str, Figure]:
    """Our own weights on Set5: PSNR of float Y, with bicubic beside it."""
    figures = {}
    for scale in FLOORS:
        average = mean(rows("Set5", scale, f"potstill-x{scale}"))
        figures[f"x{scale}"] = Figure(average.ours.psnr, "dB")
        figures[f"x{scale} ssim"] = Figure(average.ours.ssim)
        figures[f"x{scale} bicubic"] = Figure(average.bicubic.psnr, "dB")
    return figures


@benchmark(
    data=("sr/Set5", "sr/Set14"),
    budget=120,
    targets={"worst gain": at_least(1e-6, "issue 5: better than bicubic on every image")},
)
def our_weights_everywhere(quick: bool) -> dict[str, Figure]:
    """Our own weights against bicubic on every image of Set5 and Set14, x2 to x4."""
    gains, means = [], {}
    for scale in FLOORS:
        found = [
            row
            for name in (("Set5",) if quick else ("Set5", "Set14"))
            for row in rows(name, scale, f"potstill-x{scale}")
        ]
        gains += [row.ours.psnr - row.bicubic.psnr for row in found]
        means[f"gain x{scale}"] = Figure(float(np.mean(gains[-len(found) :])), "dB")
    return {"worst gain": Figure(min(gains), "dB"), **means}


@benchmark(
    data=("sr/safetensors", "sr/Set5"),
    budget=60,
    targets={"loss": at_most(0.01, "issue 5: bf16 mixed within 0.01 dB")},
)
def bf16_quality() -> dict[str, Figure]:
    """What mixed bf16 costs on Set5 x4 with the official weights."""
    model = root() / "sr/safetensors/IMDN_x4.safetensors"
    full, mixed = (mean(rows("Set5", 4, model, precision=p)).ours.psnr for p in ("fp32", "bf16"))
    return {"loss": Figure(full - mixed, "dB"), "fp32": Figure(full, "dB")}
