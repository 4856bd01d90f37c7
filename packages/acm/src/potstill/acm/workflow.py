"""What the commands do, as functions of folders."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Literal

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from potstill.acm import plots
from potstill.acm.backends import BACKENDS
from potstill.acm.budget import costs
from potstill.acm.calibrate import calibrate as tilt
from potstill.acm.config import Convert, Phases, Reading, Timing
from potstill.acm.distiller import distill as distill_modules
from potstill.acm.distiller import finetune, pretrain_gates
from potstill.acm.export import export as write_graph
from potstill.acm.images import CIFAR10, IMAGENET, Images, load_images
from potstill.acm.layers import acms, record_gates, set_mode
from potstill.acm.pretrained import from_pretrained, save_pretrained
from potstill.acm.profile import Profile, predict
from potstill.acm.profile import profile as measure
from potstill.acm.surgery import acmize
from potstill.acm.sweep import dense_of, sweep_layer, sweep_model
from potstill.core import (
    ConfigError,
    DataError,
    Engine,
    accuracy,
    atomic,
    fingerprint,
)
from potstill.core.command import record
from potstill.core.engine import resolve_device
from potstill.core.measure.report import Column, Report

__all__ = ["bench", "calibrate", "convert", "distill", "export", "profile"]

_DENSE = "dense.safetensors"


def convert(config: Convert, out: Path) -> dict[str, Any]:
    """Write an adaptive model, and the dense one beside it as the teacher of the phases.

    Raises:
        ConfigError: timm does not know the model, or a weight does not fit; all of `acmize`.
        DataError: The checkpoint is missing.
    """
    options = config.options()
    dense = _create(config.model, config.pretrained, options)
    if config.checkpoint is not None:
        _load_dense(dense, config.checkpoint)
    dense.acm_origin = (config.model, options)
    adaptive = acmize(
        dense,
        config.targets,
        config.learners,
        flops_factor=config.flops_factor,
        initial=config.initial,
    )
    save_pretrained(adaptive, out)
    with atomic(out / _DENSE) as temporary:
        save_file({k: v.contiguous() for k, v in dense.state_dict().items()}, temporary)
    size = _size(adaptive, config.size)
    count = costs(adaptive, torch.zeros(1, 3, size, size))
    return {
        "modules": len(acms(adaptive)),
        "dense MMACs": count.dense / 1e6,
        "gates MMACs": count.gates / 1e6,
        "MMACs at budget 0.5": count.at(0.5) / 1e6,
    }


def distill(model: Path, out: Path, images: Reading, phases: Phases, device: str) -> dict[str, Any]:
    """Run the phases into ``out``; each has its own run folder and can be continued.

    Raises:
        DataError: Images or the teacher are missing.
        ConfigError: All of the phases.
    """
    record(phases, out)
    student, teacher = from_pretrained(model), _teacher(model)
    found = _read(images, student)
    draws = partial(found.draws, images.batch)
    epoch = max(1, len(found) // images.batch)
    task = partial(F.cross_entropy, label_smoothing=phases.smoothing)
    summary: dict[str, Any] = {}
    with Engine(device=device, precision=phases.precision) as engine:  # type: ignore[arg-type]
        common: dict[str, Any] = {"engine": engine, "seed": phases.seed}

        def options(name: str, epochs: int, number: int) -> dict[str, Any]:
            return {**common, "steps": epochs * epoch, "run": out / f"{number}-{name}",
                    "progress": f"phase {number}"}  # fmt: skip

        if phases.distill:
            rows = distill_modules(
                student, teacher, draws(seed=1), lr=phases.distill_lr,
                **options("distill", phases.distill, 1),
            )  # fmt: skip
            summary["phase 1 error"] = rows[-1]["loss"] / len(acms(student))
            save_pretrained(student, out / "1-distill" / "model")
        if phases.gate:
            rows = pretrain_gates(
                student, teacher, draws(seed=2), lr=phases.gate_lr, threshold=phases.threshold,
                **options("gate", phases.gate, 2),
            )  # fmt: skip
            summary["phase 2 loss"] = rows[-1]["loss"] / len(acms(student))
            save_pretrained(student, out / "2-gate" / "model")
        if phases.finetune:
            rows = finetune(
                student, draws(seed=3), budget=phases.budget, task=task, lr=phases.finetune_lr,
                weights={"budget": phases.budget_weight},
                **options("finetune", phases.finetune, 3),
            )  # fmt: skip
            summary["phase 3 loss"] = rows[-1]["loss"]
        if engine.main:
            save_pretrained(student.cpu(), out / "model", budget=phases.budget)
            _copy_teacher(model, out / "model")
    return summary


def profile(model: Path, images: Reading, device: str) -> Report:
    """Figures and plots of an adaptive model: gated, and with each number of learners for all.

    Raises:
        DataError: Images are missing.
    """
    where = resolve_device(device)
    student: Any = from_pretrained(model).to(where)
    dense = _teacher(model).to(where) if (model / _DENSE).exists() else None
    found = _read(images, student)
    batches = [tuple(t.to(where) for t in b) for b in found.batches(images.batch)]
    most = min(acm.count for acm in acms(student).values())
    columns = {
        "top-1 %": Column("%", best="max"), "budget": Column(digits=3), "spread": Column(digits=2),
        "MMACs": Column(), "MACs ratio": Column(digits=3), "time ratio": Column(digits=3),
    }  # fmt: skip
    report = Report(
        f"Adaptive model {model.name}", label="mode", columns=columns,
        data=fingerprint(found.pixels)[:12],
    )  # fmt: skip
    profiles: dict[str, Profile] = {}
    for name, mode in {"gated": "gated", **{f"k = {k}": k for k in range(1, most + 1)}}.items():
        profiles[name] = measure(set_mode(student, mode), batches, dense=dense)  # type: ignore[arg-type]
        shown: dict[str, Any] = {
            k: v for k, v in profiles[name].row().items() if v == v
        }  # NaN: not asked for
        report.add(name, published="", **shown)
    set_mode(student, "gated")
    gated = profiles["gated"]
    beside = None if dense is None else _beside(dense, batches, gated)
    if beside is not None:
        report.add("dense", published="", **beside)
    _draw(report, profiles, beside)
    if dense is not None:
        path = next(iter(acms(student)))
        errors = plots.token_errors(student, dense, batches[0][0], path)
        title = f"Error of the first learners of {path}, tokens of one batch from easy to hard"
        report.plot(lambda axes: plots.draw_token_errors(axes, errors), title)
    if hasattr(student, "patch_embed"):
        _maps(report, student, found)
    return report


def calibrate(model: Path, budget: float, out: Path, images: Reading, limit: int) -> dict[str, Any]:
    """Tilt the gates to ``budget`` and write the model to ``out``.

    Raises:
        ConfigError: All of `potstill.acm.calibrate`.
    """
    student = from_pretrained(model)
    found = _read(images, student)
    step = max(1, len(found) // limit)
    some = found.take(torch.arange(0, len(found), step)[:limit])
    result = tilt(student, some.batches(images.batch), budget)
    save_pretrained(student, out, budget=budget)
    _copy_teacher(model, out)
    return {"images": len(some), "budget": result.budget, "tilt": result.tilt}


def export(
    model: Path, out: Path, form: Literal["gathered", "dense_masked"], size: int | None
) -> dict[str, Any]:
    """Write and check the graph of a model.

    Raises:
        ExportError: It cannot be exported, or disagrees.
    """
    student = from_pretrained(model)
    side = _size(student, size)
    example = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    found = write_graph(student, out, example, form=form)
    return {
        "relative error, batch 2": found.error,
        "relative error, batch 4": found.error_elsewhere,
    }


def bench(timing: Timing) -> Report:
    """Time a layer or a model against its dense form; weights are random, which time ignores.

    Raises:
        BackendError: The backend or the device is not there.
    """
    device = resolve_device(timing.device)
    BACKENDS.resolve(timing.backend, device)
    depth = {} if timing.whole else {"depth": 1}
    dense = _create(timing.model, False, depth).to(device).eval()
    dense = dense.bfloat16() if timing.bf16 else dense
    adaptive = acmize(dense, learners=timing.learners, backend=timing.backend).eval()
    size = _size(dense, None)
    images = torch.randn(timing.batch, 3, size, size, device=device)
    images = images.bfloat16() if timing.bf16 else images
    if timing.whole:
        rows, what = sweep_model(adaptive, dense, images, timing.budgets), "whole model"
    else:
        path, acm = next(iter(acms(adaptive).items()))
        with torch.no_grad(), record_gates(adaptive) as readings:
            adaptive(images[:1])
        tokens = timing.batch * readings[path].choices.numel()
        module = dense_of(adaptive, path)
        rows = sweep_layer(acm, module, tokens, timing.budgets, backend=timing.backend)
        what = f"{path} alone"
    report = Report(
        f"{timing.model}, {what}, batch {timing.batch}",
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


# --- parts ---------------------------------------------------------------------------------------


def _beside(dense: nn.Module, batches: list[Any], gated: Profile) -> dict[str, float]:
    """The row of the dense model."""
    row = {"MMACs": gated.dense_macs / 1e6, "MACs ratio": 1.0, "time ratio": 1.0,
           f"ms (batch {gated.batch})": gated.dense_milliseconds}  # fmt: skip
    logits, labels = predict(dense, batches)
    return row if labels is None else {"top-1 %": 100 * accuracy(logits, labels), **row}


def _draw(report: Report, profiles: dict[str, Profile], dense: dict[str, float] | None) -> None:
    rows = {name: found.row() for name, found in profiles.items()}
    gated = profiles["gated"]
    families = {
        "same k for all tokens": [row for name, row in rows.items() if name != "gated"],
        "gated": [rows["gated"]],
        "dense": [] if dense is None else [dense],
    }
    if gated.accuracy == gated.accuracy:
        time = f"ms (batch {gated.batch})"
        for x, axis, title in (
            ("MMACs", "multiply-adds of an image [M]", "Accuracy against MACs"),
            (time, f"time of a batch of {gated.batch} [ms]", "Accuracy against time"),
        ):
            curves = {n: [(r[x], r["top-1 %"]) for r in f] for n, f in families.items() if f}
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


def _create(name: str, pretrained: bool, options: dict[str, Any]) -> Any:
    try:
        return timm.create_model(name, pretrained=pretrained, **options)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"acm: model must be one that timm can create, got {error}") from error


def _load_dense(model: nn.Module, path: Path) -> None:
    if path.suffix != ".safetensors" or not path.is_file():
        raise DataError(f"acm: checkpoint must be a .safetensors file, got {path}")
    try:
        model.load_state_dict(load_file(path))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"acm: checkpoint must fit the model, got {reason}; check size, patch, width, depth, "
            "heads, classes and pool"
        ) from error


def _teacher(folder: Path) -> nn.Module:
    if not (folder / _DENSE).is_file():
        raise DataError(
            f"acm: {folder} must hold {_DENSE}, got none; potstill acm convert writes it"
        )
    origin: Any = from_pretrained(folder)
    name, options = origin.acm_origin
    dense = _create(name, False, options)
    _load_dense(dense, folder / _DENSE)
    return dense.eval()


def _copy_teacher(source: Path, target: Path) -> None:
    if (source / _DENSE).is_file():
        with atomic(target / _DENSE) as temporary:
            temporary.write_bytes((source / _DENSE).read_bytes())


def _size(model: Any, given: int | None) -> int:
    if given is not None:
        return given
    embed = getattr(model, "patch_embed", None)
    size = getattr(embed, "img_size", None) or (model.pretrained_cfg["input_size"][-1],)
    return int(size[-1])


def _read(images: Reading, model: nn.Module) -> Images:
    statistics = CIFAR10 if images.statistics == "cifar10" else IMAGENET
    return load_images(images.data, size=_size(model, None), statistics=statistics)
