"""Streaming of moving digits: what merging the small steps of a buffer costs.

python -m benchmarks flow --check
"""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potstill.core import BackendError, Training, generator, seed_all
from potstill.core.engine import fit_with
from potstill.core.measure.bench import Figure, Skip, at_most, benchmark
from potstill.flow import Items, Prior, load_data
from potstill.flow.video import Buffer, ClipNet, Merging, Streaming, moving_digits, stream

FRAMES, SIDE, STEPS = 8, 12, 8


def streamed(model: nn.Module, buffer: Buffer, count: int) -> Tensor:
    """The first chunks of eight streams, always from the same noise."""

    def noise(number: int) -> Tensor:
        rng = generator("noise", number)
        return torch.randn(8, buffer.frames, 1, SIDE, SIDE, generator=rng)

    with torch.no_grad():
        return torch.cat(list(islice(stream(model, buffer, noise), count)), 1)


@benchmark(targets={"error by unmerged": at_most(1.0, "issue 24: a measured loss")}, budget=900)
def merged_steps(quick: bool) -> dict[str, Figure]:
    """One evaluation a chunk for eight: distance to the teacher, by that without merging."""
    try:
        images = load_data("digits").items.values
    except BackendError as error:
        raise Skip(str(error)) from error
    found: dict[str, list[float]] = {"merged": [], "unmerged": [], "error by unmerged": []}
    many, one = Buffer(3, 2, STEPS, reference=2), Buffer(3, 2, 1, reference=2)
    for seed in range(1 if quick else 3):
        seed_all("clips", seed)
        clips = moving_digits(images, 512, FRAMES, SIDE, seed)
        source = Prior(clips.shape[1:], 8, data=Items(clips))
        steps = 5 if quick else 1000
        training = Training(steps=steps, lr=2e-3, final=0.0, ema=0.9 if quick else 0.99, seed=seed)
        teacher = ClipNet(1, 16, 3)
        mixed = Streaming(teacher, Buffer(3, 2, reference=2), Buffer(6, 1, reference=2))
        fit_with(training, mixed, source, progress=False)
        student = copy.deepcopy(teacher)
        later = replace(training, steps=steps * 2 // 5, lr=5e-4)  # it begins nearly right
        fit_with(later, Merging(student, teacher, many), source, progress=False)
        wanted = streamed(teacher, many, 4)
        errors = [float(F.mse_loss(streamed(m, one, 4), wanted)) for m in (student, teacher)]
        for name, value in zip(found, (*errors, errors[0] / errors[1]), strict=True):
            found[name].append(value)
    return {"evaluations saved": Figure(STEPS, "x"), **{n: Figure(v) for n, v in found.items()}}
