"""The progressive report: a page of curves, renders, error maps and the matrix of conversions."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from potstill.core import DataError
from potstill.core.measure.report import Column, Report, data_uri
from potstill.nerf.distill.results import Conversion, pixels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["conversion_page", "error_map", "heat_map", "matrix_of"]

ERROR_RANGE = 0.2
"""Absolute error that is brightest in error maps: one scale for all of a page."""

CAVEAT = (
    "A student is shown what its teacher renders and no image, so it does not pass its teacher. "
    "Where there are images and time, training on them with the teacher's occupancy grid, or "
    "handing a converted student over to the images, can end higher. The 10 to 20 times shorter "
    "time of PVD is published: a GPU against the original NeRF, not measured here."
)


def conversion_page(
    conversions: Sequence[Conversion],
    folder: str | os.PathLike[str],
    *,
    title: str = "Conversions",
    extra: Callable[[Report], None] | None = None,
    orbits: Mapping[str, Path] | None = None,
) -> Path:
    """Draw ``index.html`` from stored conversions alone; nothing is rendered again.

    Args:
        conversions: Reports, from `load_conversion`.
        folder: Folder of the page; its plots are written as PNG, too.
        title: Title of the page.
        extra: Adds sections after the curves.
        orbits: GIF files by name.

    Returns:
        The page.

    Raises:
        DataError: There is no conversion.
    """
    if not conversions:
        raise DataError("conversion_page: conversions must hold at least one, got none")
    columns = {
        "to the teacher": Column("dB"),
        "to the images": Column("dB"),
        "steps": Column(digits=6),
        "time": Column("s"),
        "parameters": Column(),
        "occupied": Column(),
    }
    report = Report(title, summary=CAVEAT, label="conversion", columns=columns)
    for item in conversions:
        row: dict[str, Any] = {"to the teacher": item.scores["teacher"]}
        if "truth" in item.scores:
            row["to the images"] = item.scores["truth"]
        row |= {
            "steps": len(item.rows),
            "time": item.seconds,
            "parameters": f"{item.parameters:,}",
            "occupied": f"{item.occupied:.1%}",
        }
        report.add(_name(item), **row)
    _curves(report, conversions)
    if extra is not None:
        extra(report)
    if len({item.teacher for item in conversions}) > 1:
        names, values = matrix_of(conversions)
        caption = "PSNR of the student to its teacher in dB: row teacher, column student"
        size = (1.6 + 0.9 * len(names), 1.2 + 0.7 * len(names))
        report.plot(heat_map(names, values), caption, "Any into any", size)
    _stages(report, conversions)
    for name, path in (orbits or {}).items():
        caption = f"<figcaption>{name}</figcaption>"
        report.html(f'<figure><img src="{data_uri(path)}" alt="{name}">{caption}</figure>')
    for item in conversions:
        _pictures(report, item)
    return report.save(Path(folder))


def matrix_of(
    conversions: Sequence[Conversion], score: str = "teacher"
) -> tuple[list[str], np.ndarray]:
    """Kinds, and decibels [teacher, student]; NaN where there is no conversion."""
    order = ("hash", "mlp", "vm", "cp", "grid", "composite")
    kinds = {item.teacher for item in conversions} | {item.student for item in conversions}
    names = [kind for kind in order if kind in kinds]
    values = np.full((len(names), len(names)), np.nan)
    for item in conversions:
        at = names.index(item.teacher), names.index(item.student)
        values[at] = item.scores.get(score, np.nan)
    return names, values


def heat_map(names: Sequence[str], values: np.ndarray) -> Callable[[Axes], None]:
    """Draw a matrix of decibels, teacher by student, with its numbers."""

    def draw(axes: Axes) -> None:
        axes.imshow(values, cmap="viridis", aspect="auto")
        middle = (np.nanmin(values) + np.nanmax(values)) / 2
        for (i, j), value in np.ndenumerate(values):
            if np.isfinite(value):
                color = "white" if value < middle else "black"
                axes.text(j, i, f"{value:.1f}", ha="center", va="center", color=color)
        axes.set_xticks(range(len(names)), names)
        axes.set_yticks(range(len(names)), names)
        axes.set_xlabel("student")
        axes.set_ylabel("teacher")
        axes.grid(visible=False)

    return draw


def error_map(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Absolute error of two images [H W 3] as colours, on the scale of the page."""
    from matplotlib import colormaps

    error = np.abs(one - other).mean(2) / ERROR_RANGE
    colors: np.ndarray = colormaps["magma"](np.clip(error, 0, 1))[..., :3]
    return colors


def _curves(report: Report, conversions: Sequence[Conversion]) -> None:
    clock = "CPU-seconds" if all(item.clock == "cpu" for item in conversions) else "seconds"
    for key, what in (("teacher", "to the teacher"), ("truth", "to the images")):
        lines = {_name(item): item.curve(key) for item in conversions}
        lines = {name: points for name, points in lines.items() if len(points) > 1}
        if not lines:
            continue

        def draw(axes: Axes, lines: dict[str, list[tuple[float, float]]] = lines) -> None:
            for name, points in lines.items():
                axes.plot(*zip(*points, strict=True), marker=".", label=name)
            axes.set_xlabel(f"{clock} of optimisation")
            axes.set_ylabel("PSNR (dB)")
            axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize="small")

        report.plot(draw, f"PSNR {what} against {clock}", f"PSNR {what}", (7.5, 3.8))


def _stages(report: Report, conversions: Sequence[Conversion]) -> None:
    header = ("conversion", "stage", "steps", "seconds", "last loss")
    rows = [
        (_name(item), stage["stage"], stage["steps"], stage["seconds"], stage["loss"])
        for item in conversions
        for stage in item.stages()
    ]
    report.table(header, rows, "Stages")


def _pictures(report: Report, item: Conversion) -> None:
    """One row a view: what there is, and the errors against the teacher or the image."""
    for number, stored in enumerate(item.pictures):
        images = {name: pixels(text) for name, text in stored.items()}
        shown: dict[str, np.ndarray] = {}
        target = "truth" if "truth" in images else "teacher"
        names = ("truth", "teacher", "student")
        for name in [name for name in names if name in images]:
            error = images[name] - images[target]
            decibels = -10 * np.log10(max(float((error**2).mean()), 1e-10))
            shown[name if name == target else f"{name}, {decibels:.2f} dB"] = images[name]
        for name in [name for name in names if name in images and name != target]:
            shown[f"error of the {name}"] = error_map(images[name], images[target])
        title = f"{_name(item)}" if number == 0 else ""
        caption = f"Errors against the {target}, absolute, from 0 to {ERROR_RANGE:g}."
        report.images(shown, title, caption, pixels=True)


def _name(item: Conversion) -> str:
    return f"{item.teacher} to {item.student}"
