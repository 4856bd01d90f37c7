"""The picture of what a student paints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from potstill.core.images import ImageSet
from potstill.mae import plots
from potstill.mae.models.autoencoder import MaskedAutoencoder
from potstill.mae.models.masking import Masking
from potstill.mae.models.students import statistics_of
from potstill.mae.training.data import eval_transform

__all__ = ["denormalized", "draw_reconstructions", "sample"]


def sample(source: ImageSet, vit: Any, count: int) -> Tensor:
    """Images as ``vit`` wants them, evenly spread over ``source``: [count 3 H W]."""
    transform = eval_transform(tuple(vit.patch_embed.img_size), statistics_of(vit), 1.0)
    chosen = torch.linspace(0, len(source) - 1, min(count, len(source))).long().tolist()
    items = [source[index] for index in chosen]
    return torch.stack([transform(i[0] if isinstance(i, tuple) else i) for i in items])


def denormalized(images: Tensor, vit: Any) -> Tensor:
    """Back to values in [0, 1], as colours: [B 3 H W]."""
    mean, std = (torch.tensor(v).view(1, -1, 1, 1).to(images) for v in statistics_of(vit))
    values = (images * std + mean).clamp(0, 1)
    return values.expand(-1, 3, -1, -1) if values.shape[1] == 1 else values[:, :3]


def draw_reconstructions(
    student: MaskedAutoencoder,
    source: ImageSet,
    masking: Masking,
    path: Path,
    *,
    normalized: bool = False,
    count: int = 6,
) -> Path:
    """Draw images of ``source``, what the encoder sees of them, and what the decoder paints."""
    vit, grid = student.encoder.vit, student.encoder.grid
    images = sample(source, vit, count)
    plan = masking(len(images), grid, generator=torch.Generator().manual_seed(0))
    painted = student.eval().reconstruct(images, plan, normalized)
    shown = denormalized(images, vit), plan.mask, denormalized(painted, vit)
    return plots.save(plots.reconstruction_grid(*shown, grid), path, [])
