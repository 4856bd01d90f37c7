"""Handwritten digits as images of 4 x 4 patches."""

from __future__ import annotations

from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potstill.core import Distiller, Losses, Objective, cosine, fit, generator, seed_all
from potstill.core.images import ResidentImages

__all__ = ["MODEL", "Digits", "digits", "draws", "to_bytes", "train_classifier", "vit"]

MODEL = {"img_size": 16, "patch_size": 4, "depth": 3, "num_classes": 10, "global_pool": "avg"}
"""Options of timm's ``vit_tiny_patch16_224``; the widths are the chapters'."""

_TESTED = 450


class Digits(NamedTuple):
    """A part of the set.

    Attributes:
        images: In [-1, 1], [N 3 16 16].
        labels: [N].
    """

    images: Tensor
    labels: Tensor


def digits() -> tuple[Digits, Digits]:
    """Training and test part of scikit-learn's digits (Alpaydin and Kaynak, UCI, 1998)."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels).float().view(-1, 1, 8, 8) / 8 - 1
    images = F.interpolate(images, scale_factor=2, mode="bicubic").clamp(-1, 1)
    order = torch.randperm(len(images), generator=generator("digits"))
    images, targets = images.repeat(1, 3, 1, 1)[order], torch.from_numpy(labels).long()[order]
    return (
        Digits(images[_TESTED:], targets[_TESTED:]),
        Digits(images[:_TESTED], targets[:_TESTED]),
    )


def draws(part: Digits, size: int) -> ResidentImages:
    """Random batches for ``fit``."""
    return ResidentImages(*part, size, shift=0, flip=False)


def to_bytes(images: Tensor) -> Tensor:
    """Images [N 3 H W] in [-1, 1] as pictures [N H W 3], dark ink on white."""
    return ((1 - images.clamp(-1, 1)) * 127.5).round().byte().permute(0, 2, 3, 1)


def vit(width: int, **options: Any) -> nn.Module:
    """A small vision transformer with fresh weights."""
    model: nn.Module = timm.create_model(
        "vit_tiny_patch16_224", **{**MODEL, "embed_dim": width, "num_heads": width // 16, **options}
    )
    return model


class _Classification(Distiller):
    def forward(self, batch: tuple[Tensor, Tensor], step: int) -> Losses:
        images, labels = batch
        return self.objective(step, task=(self.student(images), labels))


def train_classifier(model: nn.Module, part: Digits, steps: int, progress: Any) -> nn.Module:
    """Ordinary supervised training, for a teacher."""
    seed_all("tour", "classifier")
    fit(
        _Classification(model, Objective(task=(1.0, F.cross_entropy))),
        draws(part, 64),
        steps=steps,
        lr=1e-3,
        optimizer=torch.optim.AdamW,
        schedule=cosine(warmup=0.1),
        progress=progress,
    )
    return model
