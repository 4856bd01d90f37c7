"""Pages about an adaptive model: what it does on images, and what it costs in time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from potstill.acm.analysis import plots
from potstill.acm.analysis.profiles import Profile, predict, profile
from potstill.acm.analysis.sweep import sweep_layer, sweep_model
from potstill.acm.backends import BACKENDS
from potstill.acm.config import BatchConfig, TimeConfig
from potstill.acm.images import Images
from potstill.acm.layers.module import acms, record_gates, set_mode
from potstill.acm.layers.surgery import acmize
from potstill.acm.store.folders import (
    dense_model,
    has_teacher,
    image_size,
    read_images,
    teacher_of,
)
from potstill.acm.store.pretrained import from_pretrained
from potstill.core import Column, Report, accuracy, fingerprint
from potstill.core.engine import resolve_device

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
    found = read_images(images, student)
    batches = [tuple(t.to(where) for t in b) for b in found.batches(images.batch)]
    columns = {
        "top-1 %": Column("%", best="max"), "budget": Column(digits=3), "spread": Column(digits=2),
        "MMACs": Column(), "MACs ratio": Column(digits=3), "time ratio": Column(digits=3),
    }  # fmt: skip
    report = Report(
        f"Adaptive model {model.name}", label="mode", columns=columns,
        data=fingerprint(found.pixels)[:12],
    )  # fmt: skip
    most = min(acm.count for acm in acms(student).values())
    modes: dict[str, Any] = {"gated": "gated", **{f"k = {k}": k for k in range(1, most + 1)}}
    profiles = {
        name: profile(set_mode(student, mode), batches, dense=dense) for name, mode in modes.items()
    }
    set_mode(student, "gated")
    rows: dict[str, dict[str, Any]] = {name: one.row() for name, one in profiles.items()}
    if dense is not None:
        rows["dense"] = _beside(dense, batches, profiles["gated"])
    for name, row in rows.items():
        report.add(name, published="", **{k: v for k, v in row.items() if v == v})  # NaN: unknown
    _draw(report, profiles["gated"], rows)
    if dense is not None:
        path = next(iter(acms(student)))
        errors = plots.token_errors(student, dense, batches[0][0], path)
        title = f"Error of the first learners of {path}, tokens of one batch from easy to hard"
        report.plot(lambda axes: plots.draw_token_errors(axes, errors), title)
    if hasattr(student, "patch_embed"):
        _maps(report, student, found)
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


def _beside(dense: nn.Module, batches: Sequence[Any], gated: Profile) -> dict[str, float]:
    """The row of the dense model."""
    row = {"MMACs": gated.dense_macs / 1e6, "MACs ratio": 1.0, "time ratio": 1.0,
           f"ms (batch {gated.batch})": gated.dense_milliseconds}  # fmt: skip
    logits, labels = predict(dense, batches)
    return row if labels is None else {"top-1 %": 100 * accuracy(logits, labels), **row}


def _draw(report: Report, gated: Profile, rows: Mapping[str, dict[str, float]]) -> None:
    """Accuracy against cost, where there are labels, and what was chosen."""
    alone = {name: [row] for name, row in rows.items() if not name.startswith("k = ")}
    same = [row for name, row in rows.items() if name.startswith("k = ")]
    families = {"same k for all tokens": same, **alone}
    if gated.accuracy == gated.accuracy:
        time = f"ms (batch {gated.batch})"
        for x, axis, title in (
            ("MMACs", "multiply-adds of an image [M]", "Accuracy against MACs"),
            (time, f"time of a batch of {gated.batch} [ms]", "Accuracy against time"),
        ):
            curves = {name: [(r[x], r["top-1 %"]) for r in f] for name, f in families.items()}
            draw = partial(plots.draw_curves, families=curves, x=axis, y="top-1 accuracy [%]")
            report.plot(draw, title)
    report.plot(
        lambda axes: plots.draw_gate_histogram(axes, gated.choices),
        "What tokens choose, by module", size=(6.4, 1.2 + 0.32 * len(gated.choices)),
    )  # fmt: skip
    report.plot(lambda axes: plots.draw_cost_histogram(axes, gated.images), "What images cost")


def _maps(report: Report, student: nn.Module, found: Images) -> None:
    """What patches cost: of the 25 cheapest and dearest images, and of six by module."""
    grid, prefix = plots.grid_of(student)
    device = next(student.parameters()).device
    maps = []
    for images, _ in found.batches(64):
        with torch.no_grad(), record_gates(student) as readings:
            student(images.to(device))
        maps.append(plots.compute_maps(readings, grid, prefix).cpu())
    by_module = torch.cat(maps)
    heat = by_module.mean(1)
    order = heat.flatten(1).mean(1).argsort()
    count = min(25, max(1, len(order) // 2))
    for title, rows in (("cheapest", order[:count]), ("dearest", order[-count:])):
        figure = plots.heat_maps(found.pixels[rows], heat[rows])
        report.figure(figure, f"The {count} {title} images; share of the full cost by patch")
    some = order[torch.linspace(0, len(order) - 1, min(6, len(order))).long()]
    figure = plots.module_maps(found.pixels[some], by_module[some], list(acms(student)))
    report.figure(figure, "By module, from a cheap image to a dear one")
