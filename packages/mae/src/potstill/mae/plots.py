"""The pictures of masked distillation, each from plain numbers, saved with its data as CSV."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from potstill.core import ShapeError, atomic
from potstill.core.measure.report import csv_text

__all__ = [
    "alignment_error_map",
    "cka_heatmap",
    "masking_ratio_curve",
    "reconstruction_grid",
    "save",
    "step_time_stack",
]

_INK, _BLUE, _ORANGE = "#57606a", "#1f6feb", "#c2410c"


def save(
    figure: Figure, path: str | os.PathLike[str], rows: Sequence[Mapping[str, object]]
) -> Path:
    """Write ``path`` (a ``.png``) and, beside it, the data of the figure as ``.csv``."""
    path = Path(path).with_suffix(".png")
    with atomic(path) as temporary:
        figure.savefig(temporary)
    if rows:
        with atomic(path.with_suffix(".csv")) as temporary:
            temporary.write_text(csv_text(list(rows[0]), rows), encoding="utf-8")
    return path


def reconstruction_grid(images: Tensor, mask: Tensor, painted: Tensor, grid: Any) -> Figure:
    """Input, what the encoder saw, the decoder's picture, and the error: one row per image.

    Args:
        images: True images in [0, 1], [B 3 H W].
        mask: 1 where a patch was hidden, [B L].
        painted: Hidden patches painted, visible ones as they are, in [0, 1] (clipped here).
        grid: Rows and columns of patches.
    """
    if images.shape != painted.shape or mask.shape != (len(images), grid[0] * grid[1]):
        raise ShapeError(
            f"reconstruction_grid: painted must be {list(images.shape)} and mask "
            f"{[len(images), grid[0] * grid[1]]}, got {list(painted.shape)} and {list(mask.shape)}"
        )
    height, width = images.shape[2] // grid[0], images.shape[3] // grid[1]
    hidden = mask.view(-1, 1, *grid).repeat_interleave(height, 2).repeat_interleave(width, 3)
    error = (painted.clamp(0, 1) - images).abs().mean(dim=1)  # [B H W]
    columns = [
        ("input", images),
        (f"visible ({1 - float(mask.mean()):.0%})", images * (1 - hidden) + 0.85 * hidden),
        ("reconstruction", painted),
        ("error", error[:, None]),
    ]
    figure, axes = _grid(len(images), len(columns), 1.7)
    limit = max(float(error.max()), 1e-3)
    for column, (title, pictures) in enumerate(columns):
        axes[0][column].set_title(title, fontsize=10)
        for row, picture in enumerate(pictures.clamp(0, 1).float().cpu().numpy()):
            if title == "error":
                shown = axes[row][column].imshow(picture[0], cmap="magma", vmin=0, vmax=limit)
            else:
                axes[row][column].imshow(np.moveaxis(picture, 0, -1))
    bar = figure.colorbar(shown, ax=[line[-1] for line in axes], fraction=0.1, shrink=0.6)
    bar.set_label("absolute error", fontsize=8)
    return figure


def cka_heatmap(similarity: Mapping[str, Tensor], pairs: Sequence[tuple[int, int]] = ()) -> Figure:
    """Similarity of each student block with each teacher block, one panel per state.

    Args:
        similarity: Linear CKA in [0, 1], [student blocks, teacher blocks], by title ("before",
            "after").
        pairs: Aligned blocks, marked.
    """
    figure, axes = _grid(1, len(similarity), 3.6, keep_ticks=True)
    for panel, (title, values) in zip(axes[0], similarity.items(), strict=True):
        shown = panel.imshow(values.cpu().numpy(), origin="lower", vmin=0, vmax=1, cmap="viridis")
        panel.set_title(title, loc="left", fontsize=11)
        panel.set(xlabel="teacher block", ylabel="student block")
        panel.set_xticks(range(values.shape[1]))
        panel.set_yticks(range(values.shape[0]))
        panel.tick_params(labelsize=8)
        for s, t in pairs:
            panel.plot(t, s, "s", markersize=11, fillstyle="none", color="white", mew=2)
    bar = figure.colorbar(shown, ax=list(axes[0]), shrink=0.8)
    bar.set_label("linear CKA (square: aligned)")
    return figure


def masking_ratio_curve(rows: Sequence[tuple[float, Sequence[float], Sequence[float]]]) -> Figure:
    """Accuracy against masking ratio, images per second on the second axis.

    Args:
        rows: ``(ratio, accuracies in %, images per second)``, one value per seed.
    """
    figure = _figure(6.4, 4.2)
    axes = figure.add_subplot()
    speed = axes.twinx()
    ratios = [100 * ratio for ratio, _, _ in rows]
    for panel, column, color, marker in ((axes, 1, _BLUE, "o"), (speed, 2, _ORANGE, "s")):
        values = [np.asarray(row[column], dtype=float) for row in rows]
        means = [float(v.mean()) for v in values]
        spread = [[m - v.min() for m, v in zip(means, values, strict=True)],
                  [v.max() - m for m, v in zip(means, values, strict=True)]]  # fmt: skip
        panel.errorbar(ratios, means, yerr=spread, color=color, marker=marker, capsize=3)
        panel.tick_params(axis="y", labelcolor=color)
        panel.spines[["top"]].set_visible(False)
    axes.set_xticks(ratios)
    axes.set_xlabel("hidden patches (%)")
    axes.set_ylabel("top-1 after fine-tuning (%)", color=_BLUE)
    speed.set_ylabel("pre-training, images per second", color=_ORANGE)
    speed.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    seeds = len(rows[0][1])
    what = "one seed" if seeds == 1 else f"mean and range of {seeds} seeds"
    axes.set_title(f"Masking ratio ({what})", loc="left", fontsize=11)
    low, high = axes.get_ylim()
    if high - low < 5:  # points: a seed's noise should not look like a cliff
        axes.set_ylim((low + high) / 2 - 2.5, (low + high) / 2 + 2.5)
    return figure


def alignment_error_map(images: Tensor, errors: Tensor, grid: Any) -> Figure:
    """Where student and teacher disagree: the distance of each patch, over the image.

    Args:
        images: In [0, 1], [B 3 H W].
        errors: Distance per patch, [B L], both models seeing all patches.
        grid: Rows and columns of patches.
    """
    figure, axes = _grid(len(images), 2, 2.0)
    pictures = images.clamp(0, 1).float().cpu().numpy()
    maps = errors.view(-1, *grid).float().cpu().numpy()
    size = images.shape[-1], images.shape[-2]
    for row, (picture, values) in enumerate(zip(pictures, maps, strict=True)):
        extent = (0, size[0], size[1], 0)
        axes[row][0].imshow(np.moveaxis(picture, 0, -1), extent=extent)
        axes[row][1].imshow(np.moveaxis(picture, 0, -1).mean(-1), cmap="gray", extent=extent)
        shown = axes[row][1].imshow(
            values, extent=extent, cmap="magma", alpha=0.75, vmin=maps.min(), vmax=maps.max()
        )
    axes[0][0].set_title("input", fontsize=10)
    axes[0][1].set_title("alignment error", fontsize=10)
    figure.colorbar(shown, ax=[line[-1] for line in axes], fraction=0.1, shrink=0.6)
    return figure


def step_time_stack(times: Mapping[str, Mapping[str, float]]) -> Figure:
    """What a training step is spent on, one bar per setting.

    Args:
        times: Milliseconds by part, by setting; the parts in the order in which they are stacked.
    """
    parts = list(next(iter(times.values())))
    figure = _figure(8.5, 1.3 + 0.45 * len(times))
    axes = figure.add_subplot()
    colors = ("#6e7781", _BLUE, "#1a7f37", "#9a6700", _ORANGE)
    left = np.zeros(len(times))
    for part, color in zip(parts, colors, strict=False):
        widths = np.array([values[part] for values in times.values()])
        axes.barh(list(times), widths, left=left, color=color, label=part, height=0.65)
        left += widths
    for y, total in enumerate(left):
        axes.annotate(f"{total:,.0f} ms", (total, y), (4, 0), textcoords="offset points",
                      va="center", fontsize=9)  # fmt: skip
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12 * left.max())
    axes.set_xlabel("median time of a step (ms)")
    figure.legend(loc="outside upper right", fontsize=9, frameon=False, ncols=len(parts))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", alpha=0.25)
    return figure


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _grid(
    rows: int, columns: int, side: float, *, keep_ticks: bool = False
) -> tuple[Figure, list[list[Any]]]:
    figure = _figure(side * columns + 0.8, side * rows + (0.6 if keep_ticks else 0.3))
    axes = figure.subplots(rows, columns, squeeze=False)
    if not keep_ticks:
        for panel in axes.flat:
            panel.axis("off")
    return figure, [list(line) for line in axes]


def rows_of(
    values: Tensor, first: str, second: str, name: str, **more: object
) -> list[dict[str, object]]:
    """A matrix as rows ``{first: i, second: j, name: value}``, for :func:`save`."""
    matrix = torch.as_tensor(values).cpu()
    return [
        {**more, first: i, second: j, name: float(matrix[i, j])}
        for i in range(matrix.shape[0])
        for j in range(matrix.shape[1])
    ]
