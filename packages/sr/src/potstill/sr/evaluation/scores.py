"""Evaluation on folders of images, beside bicubic and beside what was published."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from potstill.core import ConfigError, locate
from potstill.sr.images.metrics import Protocol, Score, score
from potstill.sr.images.reading import find_photographs, read_image
from potstill.sr.images.resize import imresize, reduced
from potstill.sr.inference.enlarge import upscale
from potstill.sr.models.base import Upscaler

__all__ = ["PUBLISHED", "Row", "evaluate", "find_set", "mean"]

PUBLISHED: dict[tuple[str, int], tuple[float, float]] = {
    ("Set5", 2): (38.00, 0.9605),
    ("Set5", 3): (34.36, 0.9270),
    ("Set5", 4): (32.21, 0.8948),
    ("Set14", 2): (33.63, 0.9177),
    ("Set14", 3): (30.32, 0.8417),
    ("Set14", 4): (28.58, 0.7811),
    ("BSD100", 2): (32.19, 0.8996),
    ("BSD100", 3): (29.09, 0.8046),
    ("BSD100", 4): (27.56, 0.7353),
}
"""PSNR [dB] and SSIM of IMDN as its authors published them (repository README and paper)."""


class Row(NamedTuple):
    """One image.

    Attributes:
        name: Name of the file, without its suffix.
        ours: Score of the network.
        bicubic: Score of MATLAB's bicubic enlargement.
        seconds: Wall time of the network.
    """

    name: str
    ours: Score
    bicubic: Score
    seconds: float


def find_set(name: str | os.PathLike[str]) -> list[Path]:
    """Originals of a test set: a folder, or a name below ``sr/`` of the data root.

    ``HR`` inside is preferred, so that low-resolution copies next to it do not count.
    """
    folder = Path(name)
    if not folder.is_dir():
        folder = locate(Path("sr", folder.name))
    inner = folder / "HR"
    return find_photographs(inner if inner.is_dir() else folder)


def evaluate(
    model: Upscaler,
    originals: Sequence[Path],
    *,
    scale: int | None = None,
    protocol: Protocol = "paper",
    progress: Callable[[int, int], None] = lambda done, total: None,
    **options: Any,
) -> list[Row]:
    """Shrink originals as MATLAB does, enlarge them, and compare.

    Grey originals are replicated to three channels; sides are cropped to multiples of the factor.

    Args:
        model: The network.
        originals: Image files, from `find_set`.
        scale: Factor; the model's by default. IMDN_AS gets the bicubic enlargement to refine.
        protocol: See `potstill.sr.score`.
        progress: Called with (done, total).
        **options: Options of `potstill.sr.upscale`: tiling, backend, precision.

    Raises:
        ConfigError: IMDN_AS without a factor.
        DataError: An image that cannot be read.
    """
    refines = model.scale == 1
    if refines and not scale:
        raise ConfigError("evaluate: scale must be given for a network that refines, got none")
    factor = scale or model.scale
    rows = []
    for done, path in enumerate(originals):
        lr, hr = reduced(read_image(path).rgb8(), factor)
        base = imresize(lr, factor)
        made = upscale(base if refines else lr, model, **options)
        ours, theirs = (score(image, hr, factor, protocol) for image in (made.image, base))
        rows.append(Row(path.stem, ours, theirs, made.seconds))
        progress(done + 1, len(originals))
    return rows


def mean(rows: Sequence[Row]) -> Row:
    """The average over images, as tables print it."""
    ours, base = (
        Score(*np.mean([getattr(row, side) for row in rows], axis=0).tolist())
        for side in ("ours", "bicubic")
    )
    return Row("mean", ours, base, float(np.mean([row.seconds for row in rows])))
