"""What to look at: painted images, similarity of blocks, alignment error, time of a step."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from potstill.core import tap
from potstill.core.images import ImageSet, Statistics
from potstill.mae.data import eval_transform
from potstill.mae.distiller import MaskedToMasked
from potstill.mae.encoder import MaskedViT
from potstill.mae.masking import Masking

__all__ = ["denormalized", "painted_images", "patch_errors", "sample", "step_times"]


def sample(source: ImageSet, size: int, statistics: Statistics, count: int) -> Tensor:
    """Normalised images, evenly spread over ``source``: [count 3 size size]."""
    transform = eval_transform(size, statistics, 1.0)
    chosen = torch.linspace(0, len(source) - 1, min(count, len(source))).long().tolist()
    items = [source[index] for index in chosen]
    return torch.stack([transform(i[0] if isinstance(i, tuple) else i) for i in items])


def denormalized(images: Tensor, statistics: Statistics) -> Tensor:
    """Back to values in [0, 1]."""
    mean, std = (torch.tensor(v).view(1, -1, 1, 1).to(images) for v in statistics)
    return (images * std + mean).clamp(0, 1)


def painted_images(
    student: Any,
    source: ImageSet,
    size: int,
    statistics: Statistics,
    masking: Masking,
    *,
    normalized: bool = False,
    count: int = 6,
) -> tuple[Tensor, Tensor, Tensor]:
    """True images, mask and painted images in [0, 1], for ``plots.reconstruction_grid``."""
    student = student.cpu().eval()
    images = sample(source, size, statistics, count)
    grid = student.encoder.grid
    plan = masking(len(images), grid, generator=torch.Generator().manual_seed(0))
    painted = student.reconstruct(images, plan, normalized)
    return denormalized(images, statistics), plan.mask, denormalized(painted, statistics)


@torch.no_grad()
def patch_errors(distiller: MaskedToMasked, images: Tensor, term: str = "") -> Tensor:
    """Distance of aligned features of each patch, both models seeing all patches: [B L].

    Args:
        distiller: With a teacher.
        images: Normalised for the student.
        term: The aligned layer; the first by default.
    """
    term = term or next(iter(distiller.pairs))
    s, t = distiller.pairs[term]
    teacher: Any = distiller.teacher
    student: Any = distiller.student.encoder
    criterion: Any = distiller.objective.module(term)
    images = _beside(distiller, images)
    with tap(student, MaskedViT.block(s), stop=True) as h_s:
        student(images)
    with tap(teacher, MaskedViT.block(t), stop=True) as h_t:
        teacher(distiller.teacher_input(images))
    f_s = h_s[MaskedViT.block(s)].output[:, student.num_prefix_tokens :]
    f_t = h_t[MaskedViT.block(t)].output[:, teacher.model.num_prefix_tokens :]
    return criterion.criterion.per_token(criterion.projector(f_s), f_t)


def step_times(
    distillers: dict[str, MaskedToMasked], images: Tensor, repeats: int = 5
) -> dict[str, dict[str, float]]:
    """Median milliseconds of the parts of a step, settings interleaved.

    Args:
        distillers: By name of the setting.
        images: One batch, normalised.
        repeats: Steps of each setting, after one that is not counted.

    Returns:
        ``{setting: {"teacher", "student", "decoder", "backward"}}``.
    """
    taken: dict[str, list[list[float]]] = {name: [] for name in distillers}
    placed = {name: _beside(distiller, images) for name, distiller in distillers.items()}
    for turn in range(repeats + 1):
        for name, distiller in distillers.items():
            parts = _one_step(distiller, placed[name])
            if turn:
                taken[name].append(parts)
    names = ("teacher", "student", "decoder", "backward")
    return {
        setting: dict(zip(names, torch.tensor(rows).median(dim=0).values.tolist(), strict=True))
        for setting, rows in taken.items()
    }


def _beside(distiller: MaskedToMasked, images: Tensor) -> Tensor:
    return images.to(next(distiller.student.parameters()).device)


def _one_step(distiller: MaskedToMasked, images: Tensor) -> list[float]:
    """Milliseconds of teacher, student, decoder (with the losses) and backward.

    Clocks start and stop at module boundaries of an ordinary step, so that nothing is run twice.
    """
    marks: dict[str, float] = {}

    def clock(name: str) -> Callable[..., None]:
        def mark(*_: Any) -> None:
            if images.is_cuda:
                torch.cuda.synchronize()
            marks[name] = 1e3 * time.perf_counter()

        return mark

    encoder, decoder = distiller.student.encoder, distiller.student.decoder
    handles = [distiller.student.register_forward_pre_hook(clock("student"))]
    if decoder is not None:
        handles.append(decoder.register_forward_pre_hook(clock("decoder")))
    last_tap = max((s for s, _ in distiller.pairs.values()), default=encoder.depth - 1)
    ends = encoder.depth - 1 if decoder is not None else last_tap
    handles.append(encoder.vit.blocks[ends].register_forward_hook(clock("encoded")))
    try:
        clock("start")()
        losses = distiller(images, 0)
        clock("forward")()
        losses.total.backward()
        clock("end")()
    finally:
        for handle in handles:
            handle.remove()
        distiller.zero_grad(set_to_none=True)
    return [
        marks["student"] - marks["start"],
        marks["encoded"] - marks["student"],
        marks["forward"] - marks["encoded"],
        marks["end"] - marks["forward"],
    ]
