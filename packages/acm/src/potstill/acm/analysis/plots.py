"""Plots: where computation goes in an image, in a layer, and what accuracy costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor, nn

from potstill.acm.layers.budget import evaluation, images_for, share
from potstill.acm.layers.module import ACM, GateReading, record_gates
from potstill.acm.layers.surgery import dense_readings, sources
from potstill.core import ConfigError, ShapeError

__all__ = [
    "compute_maps", "cost_histogram", "draw_cost_histogram", "draw_curves", "draw_gate_histogram",
    "draw_latency", "draw_token_errors", "grid_of", "heat_maps", "module_maps", "overlay",
    "token_errors",
]  # fmt: skip

MAP = "magma"


def compute_maps(
    readings: Mapping[str, GateReading], grid: tuple[int, int], prefix: int
) -> Float[Tensor, "images modules rows columns"]:
    """Share of the full cost that each patch got in each module.

    Args:
        readings: Choices of one batch, from `record_gates`.
        grid: Rows and columns of patches.
        prefix: Tokens before the patches (class token, registers).

    Raises:
        ShapeError: The tokens do not make that grid.
    """
    maps = []
    for name, reading in readings.items():
        choices = reading.choices.flatten(1)[:, prefix:]
        if choices.shape[1] != grid[0] * grid[1]:
            raise ShapeError(
                f"compute_maps: {name!r} must have {prefix} + {grid[0]} x {grid[1]} tokens, got "
                f"{reading.choices.flatten(1).shape[1]}; pass the model's grid and prefix"
            )
        maps.append(reading.costs[choices].unflatten(1, grid) / reading.costs[-1])
    return torch.stack(maps, 1)


def grid_of(model: nn.Module) -> tuple[tuple[int, int], int]:
    """Patch grid and prefix tokens of a timm ViT.

    Raises:
        ConfigError: The model has no patch grid.
    """
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    if grid is None:
        raise ConfigError(
            f"heat maps: model must have patch_embed.grid_size, got a {type(model).__name__}"
        )
    return tuple(grid), int(getattr(model, "num_prefix_tokens", 0))


def overlay(
    image: np.ndarray[Any, Any], heat: np.ndarray[Any, Any], scale: tuple[float, float]
) -> np.ndarray[Any, Any]:
    """The image in grey with the heat on top: [height width 3] bytes.

    Args:
        image: [height width 3] bytes.
        heat: [rows columns] of patches.
        scale: Values at the cold and at the hot end.
    """
    import matplotlib

    height, width, _ = image.shape
    rows = np.arange(height) * heat.shape[0] // height
    columns = np.arange(width) * heat.shape[1] // width
    color = matplotlib.colormaps[MAP](Normalize(*scale)(heat[rows][:, columns]))[..., :3]
    grey = image.mean(-1, keepdims=True) / 255
    return np.asarray(255 * (0.45 * grey + 0.55 * color), dtype=np.uint8)


def heat_maps(pixels: Tensor, maps: Tensor, names: Sequence[str] = (), columns: int = 5) -> Figure:
    """Images and, beside each, what its patches cost; cheapest image first.

    Args:
        pixels: [images 3 height width] bytes.
        maps: [images rows columns], shares of the full cost.
        names: A title for each image.
        columns: Images a row.
    """
    order = maps.flatten(1).mean(1).argsort()
    rows = math.ceil(len(order) / columns)
    figure = Figure(figsize=(2.9 * columns, 1.75 * rows + 0.7), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    scale = _scale(maps)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, index in zip(grid.flat, order.tolist(), strict=False):
        image = pixels[index].permute(1, 2, 0).cpu().numpy()
        heat = overlay(image, maps[index].cpu().numpy(), scale)
        axes.imshow(np.concatenate([image, heat], axis=1))
        title = f"{100 * float(maps[index].mean()):.0f} %"
        axes.set_title(f"{names[index]}: {title}" if names else title, fontsize=8)
    _bar(figure, grid, scale)
    return figure


def module_maps(pixels: Tensor, maps: Tensor, modules: Sequence[str]) -> Figure:
    """Images, one a row, and beside each what its patches cost in every module.

    Args:
        pixels: [images 3 height width] bytes.
        maps: Shares of the full cost from `compute_maps`, [images modules rows columns].
        modules: Paths of the modules, as titles.
    """
    count, columns = len(maps), len(modules) + 1
    figure = Figure(figsize=(1.35 * columns, 1.4 * count + 0.4), layout="constrained")
    grid = figure.subplots(count, columns, squeeze=False)
    scale = _scale(maps)
    for row, image, costs in zip(grid, pixels, maps, strict=True):
        shown = image.permute(1, 2, 0).cpu().numpy()
        heats = [overlay(shown, heat, scale) for heat in costs.cpu().numpy()]
        for axes, picture in zip(row, [shown, *heats], strict=True):
            axes.imshow(picture)
            axes.set_axis_off()
    for axes, name in zip(grid[0, 1:], modules, strict=True):
        axes.set_title(name, fontsize=8)
    _bar(figure, grid, scale)
    return figure


def _scale(maps: Tensor) -> tuple[float, float]:
    """Least and largest value, apart from each other."""
    low, high = float(maps.min()), float(maps.max())
    return low, high if high > low else low + 1e-6


def _bar(figure: Figure, grid: np.ndarray[Any, Any], scale: tuple[float, float]) -> None:
    from matplotlib.cm import ScalarMappable

    bar = figure.colorbar(
        ScalarMappable(Normalize(*scale), MAP), ax=grid, shrink=0.6, aspect=30, pad=0.01
    )
    bar.set_label("share of the full cost")


def draw_gate_histogram(axes: Axes, choices: Mapping[str, Tensor]) -> None:
    """For each module a bar of the shares of tokens that chose 0, 1, ..., N.

    Args:
        axes: Axes to draw on.
        choices: Shares of choices by module, as in `Profile.choices`.
    """
    import matplotlib

    names = list(choices)
    learners = max(len(found) for found in choices.values())
    colors = matplotlib.colormaps["viridis"](np.linspace(0.1, 0.9, learners))
    left = np.zeros(len(names))
    for k in range(learners):
        widths = np.array([float(c[k]) if k < len(c) else 0.0 for c in choices.values()])
        axes.barh(range(len(names)), widths, left=left, color=colors[k], label=str(k), height=0.75)
        left += widths
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of tokens")
    axes.legend(title="learners", loc="center left", bbox_to_anchor=(1.0, 0.5))


def draw_curves(
    axes: Axes, families: Mapping[str, Sequence[tuple[float, ...]]], x: str, y: str
) -> None:
    """Accuracy against cost: a line for each family of points, a square for a single one.

    Args:
        axes: Axes to draw on.
        families: Points by name of the family: (x, y), or (x, its low end, its high end, y, error).
        x: Label of the x axis.
        y: Label of the y axis.
    """
    for name, points in families.items():
        style = "s" if len(points) == 1 else "o-"
        columns = list(zip(*sorted(points), strict=True))
        if len(columns) == 2:
            axes.plot(*columns, style, label=name)
            continue
        at, low, high, height, error = (np.array(column) for column in columns)
        bars = np.maximum([at - low, high - at], 0)
        axes.errorbar(at, height, error, bars, style, label=name, capsize=2)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.legend()


def draw_latency(axes: Axes, rows: Sequence[Mapping[str, float]]) -> None:
    """Time against budget, both relative to dense, with the linear bound; rows from a sweep."""
    ordered = sorted(rows, key=lambda row: row["budget"])
    budgets = [row["budget"] for row in ordered]
    axes.plot(budgets, [row["ratio"] for row in ordered], "o-", label="measured")
    axes.plot(budgets, [row["linear"] for row in ordered], "--", label="multiply-adds")
    axes.axhline(1.0, color="#8b949e", linewidth=1, label="dense")
    axes.set_xlim(0, 1.05)
    axes.set_ylim(0)
    axes.set_xlabel("mean budget")
    axes.set_ylabel("time / dense time")
    axes.legend()


def cost_histogram(model: nn.Module, images: Tensor) -> Tensor:
    """Budget that each image of a batch used."""
    with evaluation(model), record_gates(model) as readings:
        model(images_for(model, images))
    return share(readings)


def draw_cost_histogram(axes: Axes, shares: Tensor) -> None:
    """How many images used how much of the full cost."""
    axes.hist(shares.cpu().numpy(), bins=min(40, max(5, len(shares) // 5)), color="#3b82f6")
    axes.axvline(float(shares.mean()), color="#d97706", label=f"mean {float(shares.mean()):.3f}")
    axes.set_xlabel("share of the full cost")
    axes.set_ylabel("images")
    axes.legend()


def token_errors(student: nn.Module, teacher: nn.Module, images: Tensor, path: str) -> Tensor:
    """Distance of a module's first k learners from the dense one, by token: [N + 1 tokens]."""
    acm = student.get_submodule(path)
    assert isinstance(acm, ACM)
    with torch.no_grad():
        z, o = dense_readings(teacher, sources(student), images)[path]
        return (acm.prefixes(z) - o).norm(dim=-1).flatten(1)


def draw_token_errors(axes: Axes, errors: Tensor) -> None:
    """Error by learners for tokens sorted by their error with one learner.

    Source: the type of plot is Figure 5 of Wójcik et al. 2025.

    Args:
        axes: Axes to draw on.
        errors: Distances from `token_errors`.
    """
    order = errors[min(1, len(errors) - 1)].argsort()
    values = errors[1:, order].cpu().numpy()
    mesh = axes.imshow(values, aspect="auto", cmap=MAP, interpolation="nearest", vmin=0)
    axes.set_yticks(range(len(values)), [str(k + 1) for k in range(len(values))])
    axes.set_xlabel("tokens, from easy to hard")
    axes.set_ylabel("learners")
    axes.figure.colorbar(mesh, ax=axes, label="distance from the dense output")
