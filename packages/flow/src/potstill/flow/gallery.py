"""Samples as a picture, or as a table of points."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from potstill.core import ConfigError, atomic
from potstill.flow.data import pixels

__all__ = ["grid", "write_samples"]


def grid(values: Tensor, columns: int | None = None, border: int = 1) -> Tensor:
    """Images beside and below each other, [channels height width], bytes.

    Args:
        values: Images from -1 to 1, [images channels height width].
        columns: Images in a row; about as many as rows by default.
        border: White pixels between images.
    """
    images = pixels(values)
    columns = columns or math.ceil(len(images) ** 0.5)
    rows = -(-len(images) // columns)
    channels, height, width = images.shape[1:]
    sheet = torch.full(
        (channels, rows * (height + border) + border, columns * (width + border) + border), 255,
        dtype=torch.uint8,
    )  # fmt: skip
    for number, image in enumerate(images):
        top = border + (number // columns) * (height + border)
        left = border + (number % columns) * (width + border)
        sheet[:, top : top + height, left : left + width] = image
    return sheet


def write_samples(values: Tensor, out: Path) -> None:
    """Write images as one .png file, or points as .csv.

    Raises:
        ConfigError: Another kind of file, or points for a picture.
    """
    if out.suffix == ".csv" and values.ndim == 2:
        with atomic(out) as temporary:
            lines = (",".join(f"{number:.8g}" for number in row) for row in values.tolist())
            temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return
    if out.suffix != ".png" or values.ndim != 4:
        raise ConfigError(
            f"sample: images are written as .png and points as .csv, got {out.name} for samples of "
            f"{list(values.shape[1:])}"
        )
    from PIL import Image

    sheet = grid(values).permute(1, 2, 0).numpy()
    with atomic(out) as temporary:
        Image.fromarray(sheet.squeeze(2) if sheet.shape[2] == 1 else sheet).save(
            temporary, format="PNG"
        )
