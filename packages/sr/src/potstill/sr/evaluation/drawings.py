"""Pictures: crops side by side with their errors, seams, and quality against time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from potstill.core import ConfigError, ShapeError
from potstill.sr.images.metrics import score

__all__ = ["hardest_crop", "quality_against_time", "seam_figure", "strip"]

Bytes = NDArray[np.uint8]

_GAIN, _SEAM_GAIN = 8, 64


def hardest_crop(image: Bytes, original: Bytes, size: int) -> tuple[int, int]:
    """Top left corner of the square where ``image`` is furthest from ``original``.

    Source: summed-area tables, Crow, SIGGRAPH 1984.

    Example:
        >>> original = np.zeros((40, 60, 3), np.uint8)
        >>> image = original.copy()
        >>> image[25:35, 40:50] = 200
        >>> hardest_crop(image, original, 10)
        (25, 40)
    """
    error = np.abs(image.astype(np.int64) - original).sum(axis=2)
    size = min(size, *error.shape)
    table = np.pad(error.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    sums = table[size:, size:] - table[:-size, size:] - table[size:, :-size] + table[:-size, :-size]
    top, left = np.unravel_index(int(sums.argmax()), sums.shape)
    return int(top), int(left)


def strip(
    original: Bytes,
    images: Mapping[str, Bytes],
    *,
    scale: int,
    size: int = 96,
    corner: tuple[int, int] | None = None,
    title: str = "",
) -> Figure:
    """Crops of the original and of enlargements, with their errors and scores below.

    Args:
        original: ``[H W 3]``.
        images: By name, of the same size; the first one decides where to look.
        scale: Border that scores leave out.
        size: Side of the crop, pixels of the original.
        corner: Top left of the crop; where the first image is worst by default.
        title: Above.

    Raises:
        ShapeError: An image of another size.
        ConfigError: No image.
    """
    if not images:
        raise ConfigError("strip: images must hold at least one image, got none")
    for name, image in images.items():
        if image.shape != original.shape:
            raise ShapeError(
                f"strip: {name} must be {list(original.shape)} like the original, got "
                f"{list(image.shape)}"
            )
    first = next(iter(images.values()))
    top, left = corner or hardest_crop(first, original, size)
    view = np.s_[top : top + size, left : left + size]
    columns = 1 + len(images)
    figure = _figure(2.5 * columns + 0.6, 6.1)
    axes = figure.subplots(2, columns, squeeze=False)
    _show(axes[0][0], original[view], "original")
    _show(axes[1][0], _framed(original, top, left, size), "where")
    shown = None
    for column, (name, image) in enumerate(images.items(), start=1):
        values = score(image, original, scale)
        _show(axes[0][column], image[view], f"{name}\n{values.psnr:.2f} dB, {values.ssim:.4f}")
        error = np.abs(image[view].astype(float) - original[view]).mean(axis=2) * _GAIN
        shown = axes[1][column].imshow(error, cmap="magma", vmin=0, vmax=255)
        _bare(axes[1][column], f"|error| x {_GAIN}")
    assert shown is not None
    bar = figure.colorbar(shown, ax=axes[1, :].tolist(), shrink=0.8, pad=0.01)
    bar.set_label(f"grey levels x {_GAIN}", fontsize=8)
    figure.suptitle(title, fontsize=11)
    return figure


def seam_figure(whole: Bytes, tiled: Mapping[str, Bytes], *, title: str = "") -> Figure:
    """What tiling changed, multiplied by 64: black means the same bytes.

    Args:
        whole: The image enlarged at once, ``[H W 3]``.
        tiled: Enlarged in tiles, by mode.
        title: Above.
    """
    figure = _figure(4.2 * (1 + len(tiled)) + 0.6, 4.2 * whole.shape[0] / whole.shape[1] + 0.9)
    axes = figure.subplots(1, 1 + len(tiled), squeeze=False)[0]
    _show(axes[0], whole, "whole frame")
    shown = None
    for panel, (name, image) in zip(axes[1:], tiled.items(), strict=True):
        gap = np.abs(image.astype(float) - whole).max(axis=2)
        shown = panel.imshow(gap * _SEAM_GAIN, cmap="magma", vmin=0, vmax=255)
        share = 100 * float((gap > 0).mean())
        _bare(panel, f"{name}: at most {gap.max():.0f} levels, {share:.2g} % of pixels")
    if shown is not None:
        bar = figure.colorbar(shown, ax=axes.tolist(), shrink=0.8, pad=0.01)
        bar.set_label(f"|tiled - whole| x {_SEAM_GAIN}", fontsize=8)
    figure.suptitle(title, fontsize=11)
    return figure


def quality_against_time(points: Sequence[Mapping[str, Any]], *, title: str = "") -> Figure:
    """PSNR against time, the area of a point showing the number of parameters.

    Args:
        points: Mappings with ``name``, ``seconds``, ``psnr`` and ``parameters``.
        title: Above.
    """
    figure = _figure(6.4, 4.2)
    axes = figure.subplots()
    most = max(float(p["parameters"]) for p in points) or 1.0
    ordered = sorted(points, key=lambda point: float(point["seconds"]))
    for index, point in enumerate(ordered):
        area = 40 + 600 * float(point["parameters"]) / most
        place = (point["seconds"], point["psnr"])
        axes.scatter(*place, s=area, alpha=0.6)
        label = f"{point['name']}\n{point['parameters'] / 1e3:,.0f} K"
        # Above and below in turns, so that labels of neighbours do not meet.
        gap, side = (area / np.pi) ** 0.5 + 4, ("bottom", "top")[index % 2]
        axes.annotate(
            label,
            place,
            (0, gap if side == "bottom" else -gap),
            textcoords="offset points",
            ha="center",
            va=side,
            fontsize=8,
        )
    axes.set_xscale("log")
    for axis in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        axis("{x:g}")
    axes.margins(0.25)
    axes.set_xlabel("seconds an image")
    axes.set_ylabel("PSNR of Y [dB]")
    axes.grid(alpha=0.3, which="both")
    axes.set_title(title, fontsize=11)
    return figure


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _show(axes: Any, image: Bytes, title: str) -> None:
    axes.imshow(image, interpolation="nearest", vmin=0, vmax=255)
    _bare(axes, title)


def _bare(axes: Any, title: str) -> None:
    axes.set_title(title, fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])


def _framed(image: Bytes, top: int, left: int, size: int) -> Bytes:
    """The whole image with a yellow frame around the crop."""
    width = max(2, max(image.shape) // 150)
    framed = image.copy()
    outer = np.s_[
        max(0, top - width) : top + size + width, max(0, left - width) : left + size + width
    ]
    inside = image[top : top + size, left : left + size]
    framed[outer] = (255, 220, 0)
    framed[top : top + size, left : left + size] = inside
    return framed
