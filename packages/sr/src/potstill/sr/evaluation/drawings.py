"""Pictures: crops side by side with their errors, seams, and quality against time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
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
        original: Original, ``[H W 3]``.
        images: Enlargements by name, of the same size; the first one decides where to look.
        scale: Width of the border that scores leave out.
        size: Side of the crop, pixels of the original.
        corner: Top left corner of the crop; where the first image is worst by default.
        title: Title.

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
    _show(axes[1][0], original, "where")
    frame = Rectangle((left, top), size, size, fill=False, edgecolor="gold", linewidth=2)
    axes[1][0].add_patch(frame)
    for column, (name, image) in enumerate(images.items(), start=1):
        values = score(image, original, scale)
        _show(axes[0][column], image[view], f"{name}\n{values.psnr:.2f} dB, {values.ssim:.4f}")
        error = np.abs(image[view].astype(float) - original[view]).mean(axis=2) * _GAIN
        _show(axes[1][column], error, f"|error| x {_GAIN}")
    return _finished(figure, axes[1], f"grey levels x {_GAIN}", title)


def seam_figure(whole: Bytes, tiled: Mapping[str, Bytes], *, title: str = "") -> Figure:
    """What tiling changed, multiplied by 64: black means the same bytes.

    Args:
        whole: Image enlarged at once, ``[H W 3]``.
        tiled: Images enlarged in tiles, by mode; at least one.
        title: Title.
    """
    figure = _figure(4.2 * (1 + len(tiled)) + 0.6, 4.2 * whole.shape[0] / whole.shape[1] + 0.9)
    axes = figure.subplots(1, 1 + len(tiled), squeeze=False)[0]
    _show(axes[0], whole, "whole frame")
    for panel, (name, image) in zip(axes[1:], tiled.items(), strict=True):
        gap = np.abs(image.astype(float) - whole).max(axis=2)
        share = 100 * float((gap > 0).mean())
        said = f"{name}: at most {gap.max():.0f} levels, {share:.2g} % of pixels"
        _show(panel, gap * _SEAM_GAIN, said)
    return _finished(figure, axes, f"|tiled - whole| x {_SEAM_GAIN}", title)


def quality_against_time(points: Sequence[Mapping[str, Any]], *, title: str = "") -> Figure:
    """PSNR against time, the area of a point showing the number of parameters.

    Args:
        points: Mappings with ``name``, ``seconds``, ``psnr`` and ``parameters``.
        title: Title.
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


def _show(axes: Any, image: NDArray[Any], title: str) -> None:
    """An image, or errors [H W] as colours."""
    axes.imshow(image, interpolation="nearest", cmap="magma", vmin=0, vmax=255)
    axes.set_title(title, fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])


def _finished(figure: Figure, axes: Any, label: str, title: str) -> Figure:
    """Add the scale of the errors, whose last panel is the last of ``axes``."""
    bar = figure.colorbar(axes[-1].images[0], ax=axes.tolist(), shrink=0.8, pad=0.01)
    bar.set_label(label, fontsize=8)
    figure.suptitle(title, fontsize=11)
    return figure
