"""Mean and standard deviation of images, by which models expect them to be normalised."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["CIFAR10", "IMAGENET", "Statistics", "normalize"]

Statistics = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation per channel, of values in [0, 1]."""

IMAGENET: Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR10: Statistics = ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.262))


def normalize(pixels: Tensor, statistics: Statistics) -> Tensor:
    """Bytes ``[... C H W]`` as float32 of mean 0 and standard deviation 1."""
    mean, std = (torch.tensor(v, device=pixels.device)[:, None, None] for v in statistics)
    return (pixels.float() / 255 - mean) / std
