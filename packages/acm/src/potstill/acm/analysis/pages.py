"""Pages about an adaptive model: what it does on images, and what it costs in time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from potstill.acm.analysis import plots
from potstill.acm.analysis.profiles import Profile, predict, profiles
from potstill.acm.analysis.sweep import sweep_layer, sweep_model
from potstill.acm.analysis.turns import ratio
from potstill.acm.backends import BACKENDS
from potstill.acm.config import BatchConfig, TimeConfig
from potstill.acm.layers.budget import images_for, images_of
from potstill.acm.layers.module import acms, record_gates
from potstill.acm.layers.surgery import acmize
from potstill.acm.store.folders import dense_model, has_teacher, teacher_of
from potstill.acm.store.images import held_out, image_size, pixels_of, statistics
from potstill.acm.store.pretrained import from_pretrained
from potstill.core import Batches, Column, Report, accuracy
from potstill.core.engine import resolve_device
from potstill.core.images import Statistics

__all__ = ["profile_page", "time_page"]


def profile_page(model: Path, images: BatchConfig, device: str) -> Report:
    """Figures and plots of an adaptive model: gated, and with each number of learners for all.

    Args:
        model: Folder of an adaptive model.
        images: Images, and their batches.
        device: Device, as in `resolve_device`.

    Raises:
        DataError: Images are missing.
    """
    where = resolve_device(device)
    student: Any = from_pretrained(model).to(where)
    dense = teacher_of(model).to(where) if has_teacher(model) else None
    batches = held_out(images, student)
    columns = {
        "top-1 %": Column("%", best="max"), "budget": Column(digits=3), "spread": Column(digits=2),
        "MMACs": Column(), "MACs ratio": Column(digits=3), "time ratio": Column(digits=3),
    }  # fmt: skip
    report = Report(
        f"Adaptive model {model.name}", label="mode", columns=columns,
        data=Batches(batches.dataset, 1).fingerprint(),  # type: ignore[arg-type]
    )  # fmt: skip
    most = min(acm.count for acm in acms(student).values())
    saved = {name: acm.mode for name, acm in acms(student).items()}
    modes: dict[str, Any] = {"gated": "gated", **{f"k = {k}": k for k in range(1, most + 1)}}
    if set(saved.values()) != {"gated"}:
        modes["fitted"] = saved
    found = profiles(student, batches, modes, dense=dense)
    rows: dict[str, dict[str, Any]] = {name: one.row() for name, one in found.items()}
    if dense is not None:
        rows["dense"] = _beside(dense, batches, found["gated"])
    for name, row in rows.items():
        report.add(name, published="", **{k: v for k, v in row.items() if v == v})  # NaN: unknown
    _draw(report, found, rows, most)
    if dense is not None:
        path = next(iter(acms(student)))
        errors = plots.token_errors(student, dense, images_for(student, next(iter(batches))), path)
        title = f"Error of the first learners of {path}, tokens of one batch from easy to hard"
        report.plot(lambda axes: plots.draw_token_errors(axes, errors), title)
    if hasattr(student, "patch_embed"):
        _maps(report, student, batches, statistics(images, student))
    return report


def time_page(config: TimeConfig) -> Report:
    """Time a layer or a model against its dense form; weights are random, which time ignores.

    Raises:
        BackendError: The backend or the device is not there.
    """
    device = resolve_device(config.device)
    BACKENDS.resolve(config.backend, device)
    dense = dense_model(config.model, {} if config.whole else {"depth": 1}).to(device).eval()
    size = image_size(dense)
    images = torch.randn(config.batch, 3, size, size, device=device)
    if config.bf16:
        dense, images = dense.bfloat16(), images.bfloat16()
    adaptive = acmize(dense, learners=config.learners, backend=config.backend).eval()
    if config.whole:
        rows, what = sweep_model(adaptive, dense, images, config.budgets), "whole model"
    else:
        path, acm = next(iter(acms(adaptive).items()))
        with torch.no_grad(), record_gates(adaptive) as readings:
            adaptive(images[:1])
        tokens = config.batch * readings[path].choices.numel()
        module = dense.get_submodule(path)
        rows = sweep_layer(acm, module, tokens, config.budgets, backend=config.backend)
        what = f"{path} alone"
    report = Report(
        f"{config.model}, {what}, batch {config.batch}",
        summary="Random choices, gates included, in turns with the dense side.",
        label="budget",
        columns={"ms": Column("ms"), "dense ms": Column("ms"), "ratio": Column(digits=3)},
        device=str(device),
    )
    for row in rows:
        figures: dict[str, Any] = {k: v for k, v in row.items() if k != "budget"}
        report.add(f"{row['budget']:.3f}", published="", **figures)
    report.plot(lambda axes: plots.draw_latency(axes, rows), "Time against budget", "Latency")
    return report


def _beside(dense: nn.Module, batches: Iterable[Any], gated: Profile) -> dict[str, float]:
    """The row of the dense model."""
    row = {"MMACs": gated.dense_macs / 1e6, "MACs ratio": 1.0, "time ratio": 1.0,
           f"ms (batch {gated.batch})": gated.dense_milliseconds}  # fmt: skip
    logits, labels = predict(dense, batches)
    return row if labels is None else {"top-1 %": 100 * accuracy(logits, labels), **row}


def standard_error(share: float, count: int) -> float:
    """Of a share of ``count`` independent trials."""
    return math.sqrt(share * (1 - share) / count)


def _draw(
    report: Report, found: Mapping[str, Profile], rows: Mapping[str, dict[str, float]], most: int
) -> None:
    """Accuracy against cost, where there are labels, and what was chosen."""
    gated, alike = found["gated"], found[f"k = {most}"]
    same = [name for name in found if name.startswith("k = ")]
    families: dict[str, list[str]] = {"same k for all tokens": same}
    families |= {name: [name] for name in found if name not in same}
    if not math.isnan(gated.accuracy):
        dense = "dense" in rows
        error = {n: 100 * standard_error(p.accuracy, len(p.images)) for n, p in found.items()}
        macs, times = {}, {}
        for family, names in families.items():
            tops = [rows[name]["top-1 %"] for name in names]
            macs[family] = [(rows[n]["MMACs"], y) for n, y in zip(names, tops, strict=True)]
            sides = [found[n].ratio or ratio(found[n].time, alike.time) for n in names]  # type: ignore[arg-type]
            times[family] = [
                (*side, y, error[n]) for n, side, y in zip(names, sides, tops, strict=True)
            ]
        if dense:
            macs["dense"] = [(rows["dense"]["MMACs"], rows["dense"]["top-1 %"])]
            error["dense"] = 100 * standard_error(rows["dense"]["top-1 %"] / 100, len(gated.images))
            times["dense"] = [(1.0, 1.0, 1.0, rows["dense"]["top-1 %"], error["dense"])]
        of = "the dense model" if dense else f"k = {most}"
        for curves, axis, title in (
            (macs, "multiply-adds of an image [M]", "Accuracy against MACs"),
            (times, f"time of a batch of {gated.batch} / time of {of}", "Accuracy against time"),
        ):
            draw = partial(plots.draw_curves, families=curves, x=axis, y="top-1 accuracy [%]")
            report.plot(draw, f"{title}; bars: 20th to 80th percentile, standard error")
    report.plot(
        lambda axes: plots.draw_gate_histogram(axes, gated.choices),
        "What tokens choose, by module", size=(6.4, 1.2 + 0.32 * len(gated.choices)),
    )  # fmt: skip
    report.plot(lambda axes: plots.draw_cost_histogram(axes, gated.images), "What images cost")


def _maps(report: Report, student: nn.Module, loader: DataLoader[Any], numbers: Statistics) -> None:
    """What patches cost: of the 25 cheapest and dearest images, and of six by module."""
    grid, prefix = plots.grid_of(student)
    maps = []
    for batch in loader:
        with torch.no_grad(), record_gates(student) as readings:
            student(images_for(student, batch))
        maps.append(plots.compute_maps(readings, grid, prefix).cpu())
    by_module = torch.cat(maps)
    heat = by_module.mean(1)
    order = heat.flatten(1).mean(1).argsort()

    def shown(rows: Tensor) -> Tensor:
        items: Any = loader.dataset
        return pixels_of(torch.stack([images_of(items[int(row)]) for row in rows]), numbers)

    count = min(25, max(1, len(order) // 2))
    for title, rows in (("cheapest", order[:count]), ("dearest", order[-count:])):
        figure = plots.heat_maps(shown(rows), heat[rows])
        report.figure(figure, f"The {count} {title} images; share of the full cost by patch")
    some = order[torch.linspace(0, len(order) - 1, min(6, len(order))).long()]
    figure = plots.module_maps(shown(some), by_module[some], list(acms(student)))
    report.figure(figure, "By module, from a cheap image to a dear one")
