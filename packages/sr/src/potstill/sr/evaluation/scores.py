"""Evaluation on folders of images, beside bicubic and beside what was published."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from potstill.core import ConfigError, DataError, locate
from potstill.sr.images.metrics import Protocol, Score, score
from potstill.sr.images.reading import find_photographs, read_image
from potstill.sr.images.resize import imresize, reduced
from potstill.sr.inference.enlarge import upscale
from potstill.sr.models.base import Upscaler

__all__ = ["PUBLISHED", "Pairs", "Row", "evaluate", "find_pairs", "find_set", "mean"]

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


class Pairs(NamedTuple):
    """A test set.

    Attributes:
        originals: Image files.
        lows: Low-resolution image of each, or None where they are made by MATLAB's bicubic.
    """

    originals: list[Path]
    lows: list[Path] | None = None


def find_set(name: str | os.PathLike[str]) -> list[Path]:
    """Originals of a test set: a folder, or a name below ``sr/`` of the data root.

    ``HR`` or ``GTmod<n>`` inside is preferred, so that low-resolution copies next to it do not
    count.

    Raises:
        DataError: Nothing there: a path is never taken for the name of another set.
    """
    folder = _folder_of(name)
    inner = [folder / "HR", *sorted(folder.glob("GTmod*"))]
    return find_photographs(next((path for path in inner if path.is_dir()), folder))


def _folder_of(name: str | os.PathLike[str]) -> Path:
    folder = Path(name)
    if folder.is_dir():
        return folder
    if len(folder.parts) != 1:
        raise DataError(f"find_set: no such folder: {folder}; check the path")
    return locate(Path("sr", folder.name))


def find_pairs(
    name: str | os.PathLike[str],
    scale: int,
    *,
    lr: str | os.PathLike[str] | None = None,
    pattern: str | None = None,
) -> Pairs:
    """Originals with their low-resolution images, where there are such.

    ``LRbicx<scale>`` beside ``GTmod<n>`` is found by itself.

    Args:
        name: As for `find_set`.
        scale: Factor.
        lr: Folder of the low-resolution images: named like the originals, or with more at the end.
        pattern: Glob of originals below the folder, such as ``*.png``.

    Raises:
        DataError: Nothing there, or an original without exactly one low-resolution image.
    """
    if pattern is None:
        originals = find_set(name)
    else:
        originals = sorted(p for p in _folder_of(name).glob(pattern) if p.is_file())
    if not originals:
        raise DataError(f"find_pairs: {name} must have files like {pattern!r}, got none")
    beside = originals[0].parent.parent / f"LRbicx{scale}"
    if lr is None and originals[0].parent.name.startswith("GTmod") and beside.is_dir():
        lr = beside
    if lr is None:
        return Pairs(originals)
    small = find_photographs(lr)
    return Pairs(originals, [_low_of(path, small, Path(lr)) for path in originals])


def _low_of(original: Path, small: Sequence[Path], folder: Path) -> Path:
    found = [path for path in small if path.stem == original.stem]
    found = found or [
        path for path in small if re.fullmatch(re.escape(original.stem) + r"[_x\W].*", path.stem)
    ]
    if len(found) != 1:
        raise DataError(
            f"find_pairs: {folder} must have one image for {original.name}, got {len(found)}; name "
            "it like the original"
        )
    return found[0]


def evaluate(
    model: Upscaler,
    originals: Sequence[Path],
    *,
    lows: Sequence[Path] | None = None,
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
        lows: Low-resolution image of each, from `find_pairs`; made from the originals by default.
        scale: Factor; the model's by default. IMDN_AS gets the bicubic enlargement to refine.
        protocol: See `potstill.sr.score`.
        progress: Called with (done, total).
        **options: Options of `potstill.sr.upscale`: tiling, backend, precision.

    Raises:
        ConfigError: IMDN_AS without a factor.
        DataError: An image that cannot be read, or a pair whose sizes do not fit.
    """
    refines = model.scale == 1
    if refines and not scale:
        raise ConfigError("evaluate: scale must be given for a network that refines, got none")
    factor = scale or model.scale
    rows = []
    for done, path in enumerate(originals):
        hr = read_image(path).rgb8()
        if lows is None:
            lr, hr = reduced(hr, factor)
        else:
            lr, hr = _fitting(lows[done], path, hr, factor)
        base = imresize(lr, factor)
        made = upscale(base if refines else lr, model, **options)
        ours, theirs = (score(image, hr, factor, protocol) for image in (made.image, base))
        rows.append(Row(path.stem, ours, theirs, made.seconds))
        progress(done + 1, len(originals))
    return rows


def _fitting(
    low: Path, path: Path, hr: NDArray[np.uint8], factor: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The low-resolution image, and the part of the original that it is of."""
    lr = read_image(low).rgb8()
    h, w = (factor * side for side in lr.shape[:2])
    if not (0 <= hr.shape[0] - h < factor and 0 <= hr.shape[1] - w < factor):
        raise DataError(
            f"evaluate: {low} must be {path.name} reduced by {factor}, got {lr.shape[1]} x "
            f"{lr.shape[0]} for {hr.shape[1]} x {hr.shape[0]} pixels"
        )
    return lr, hr[:h, :w]


def mean(rows: Sequence[Row]) -> Row:
    """The average over images, as tables print it."""
    ours, base = (
        Score(*np.mean([getattr(row, side) for row in rows], axis=0).tolist())
        for side in ("ours", "bicubic")
    )
    return Row("mean", ours, base, float(np.mean([row.seconds for row in rows])))
