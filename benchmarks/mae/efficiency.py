"""What masking, truncation and light decoders save: ViT-B teacher to ViT-S student, 224 px.

Each benchmark races one step (forward and backward of the student, teacher included, no optimiser)
against full-image feature distillation: plain timm, all patches, all blocks of both models, last
features matched. The two sides do different work on purpose, so the check compares token counts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import Tensor, nn

from potstill.core import Frozen, tap
from potstill.core.measure.bench import Pair, at_least, benchmark
from potstill.mae import (
    FeatureDistance,
    MaskedAutoencoder,
    MaskedToMasked,
    MaskedViT,
    RandomMasking,
)

BATCH = 16
SOURCE = "issue 6: efficiency"


class Models:
    """Fresh models and one batch; small ones for a smoke run."""

    def __init__(self, quick: bool) -> None:
        self.student_name = "vit_tiny_patch16_224" if quick else "vit_small_patch16_224"
        self.teacher_name = "vit_small_patch16_224" if quick else "vit_base_patch16_224"
        self.images = torch.randn(2 if quick else BATCH, 3, 224, 224)

    def student(self) -> Any:
        return timm.create_model(self.student_name, num_classes=0)

    def teacher(self) -> Any:
        return timm.create_model(self.teacher_name, num_classes=0)


def full_image(models: Models) -> Callable[[], Tensor]:
    """The obvious program: both models see everything."""
    student, teacher = models.student(), Frozen(models.teacher()).model
    projector, distance = nn.Linear(student.embed_dim, teacher.embed_dim), FeatureDistance()

    def step() -> Tensor:
        with torch.no_grad():
            target = teacher.forward_features(models.images)
        features = student.forward_features(models.images)
        distance(projector(features), target).backward()
        student.zero_grad()
        projector.zero_grad()
        return torch.tensor(features.shape[1])

    return step


def masked(models: Models, ratio: float, decoder: dict[str, Any] | None) -> Callable[[], Tensor]:
    student = MaskedAutoencoder(models.student(), decoder, fixed_positions=True)
    distiller = MaskedToMasked(student, models.teacher(), masking=RandomMasking(ratio)).train()
    seen: list[int] = []
    student.encoder.vit.blocks[0].register_forward_hook(
        lambda module, args, output: seen.append(output.shape[1])
    )

    def step() -> Tensor:
        seen.clear()
        distiller(models.images, 0).total.backward()
        distiller.zero_grad()
        return torch.tensor(seen[0])

    return step


def tokens(ours: int, baseline: int) -> Callable[[Tensor, Tensor], None]:
    def check(a: Tensor, b: Tensor) -> None:
        assert (int(a), int(b)) == (ours, baseline)

    return check


def race(quick: bool, ratio: float, visible: int, decoder: dict[str, Any] | None) -> Pair:
    models = Models(quick)
    return Pair(
        ours=masked(models, ratio, decoder),
        baseline=full_image(models),
        check=tokens(1 + visible, 197),
        work=len(models.images),
        unit="images/s",
    )


@benchmark(targets=at_least(4.0, SOURCE), budget=60)
def teacher_75(quick: bool) -> Pair:
    """Teacher alone: 75 % masked and 9 of 12 blocks, against all patches and blocks."""
    models = Models(quick)
    batch, teacher = models.images, MaskedViT(models.teacher()).eval()
    plan = RandomMasking(0.75)(len(batch), teacher.grid)

    @torch.no_grad()
    def ours() -> Tensor:
        with tap(teacher, MaskedViT.block(8), stop=True) as readings:
            teacher(batch, plan)
        return torch.tensor(readings[MaskedViT.block(8)].output.shape[1])

    @torch.no_grad()
    def whole() -> Tensor:
        return torch.tensor(teacher.vit.forward_features(batch).shape[1])

    return Pair(ours, whole, tokens(50, 197), work=len(batch), unit="images/s")


@benchmark(targets=at_least(2.0, SOURCE), budget=120)
def step_75(quick: bool) -> Pair:
    """75 % masked, 2-block decoder of width 512."""
    return race(quick, 0.75, 49, {"depth": 2, "width": 512})


@benchmark(targets=at_least(3.5, SOURCE), budget=120)
def step_95(quick: bool) -> Pair:
    """95 % masked, 2-block decoder of width 512."""
    return race(quick, 0.95, 9, {"depth": 2, "width": 512})


@benchmark(targets=at_least(12.0, SOURCE), budget=120)
def step_95_alignment(quick: bool) -> Pair:
    """95 % masked, no decoder."""
    return race(quick, 0.95, 9, None)


@benchmark(targets=at_least(1.8, SOURCE), budget=120)
def subset_decoding(quick: bool) -> Pair:
    """95 % masked, 8-block decoder: a quarter of the hidden patches decoded, against all."""
    models, stock = Models(quick), {"depth": 8, "width": 512}
    return Pair(
        ours=masked(models, 0.95, {**stock, "share": 0.25}),
        baseline=masked(models, 0.95, stock),
        check=tokens(10, 10),
        work=len(models.images),
        unit="images/s",
    )
