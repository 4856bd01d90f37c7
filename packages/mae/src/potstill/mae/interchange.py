"""The smaller jobs of the command line: convert, time, and look at models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from potstill.core import ConfigError, to_exported, to_onnx
from potstill.core.command import load
from potstill.core.images import ImageSet
from potstill.mae import plots
from potstill.mae.autoencoder import MaskedAutoencoder
from potstill.mae.checkpoints import load_weights, read_weights, write_weights
from potstill.mae.cka import block_similarity
from potstill.mae.config import Encoder, Pretrain
from potstill.mae.diagnostics import (
    denormalized,
    painted_images,
    patch_errors,
    sample,
    step_times,
)
from potstill.mae.distiller import MaskedToMasked
from potstill.mae.masking import RandomMasking
from potstill.mae.models import create_encoder, load_model, statistics_of
from potstill.mae.workflow import make_distiller, make_masking

__all__ = ["bench_steps", "convert", "inspect_run"]


def convert(init: str, out: Path, form: Any, encoder: Encoder) -> str:
    """Write the student of ``init`` in ``form``; says in words what was done."""
    given = None if encoder == Encoder() else encoder
    if form in ("onnx", "pt2"):
        return _export_program(load_model(init, given).model, out, form)
    whole = Path(init) / "weights.safetensors" if Path(init).is_dir() else Path(init)
    weights = read_weights(whole)
    if form in ("mae", "dmae") and not weights.decoder:
        raise ConfigError(f"export: form {form} needs a decoder, but {init} has none; use timm")
    write_weights(weights, out, form)
    return f"wrote {out} ({form}, {out.stat().st_size / 1e6:.1f} MB)"


def _export_program(model: nn.Module, out: Path, form: str) -> str:
    embed: Any = model.patch_embed
    example = torch.randn(2, embed.proj.in_channels, *embed.img_size)
    export = (to_onnx if form == "onnx" else to_exported)(model, example, out, dynamic={0: "batch"})
    return (
        f"wrote {out}; largest relative difference {export.error:.1e}, on another batch size "
        f"{export.error_elsewhere:.1e}"
    )


def bench_steps(
    student: Encoder,
    teacher: Encoder,
    ratios: tuple[float, ...],
    batch_size: int,
    repeats: int,
    device: str,
    out: Path,
) -> None:
    """Time the parts of a step by ratio and decoder; print them and draw the stack."""
    from potstill.core.measure.report import Column, Report

    big = create_encoder(teacher).to(device)
    small = create_encoder(student)
    size = small.patch_embed.img_size
    images = torch.randn(batch_size, small.patch_embed.proj.in_channels, *size, device=device)
    decoders = {"8 x 512": (8, 1.0), "8 x 512, 1/4 decoded": (8, 0.25), "2 x 512": (2, 1.0)}
    settings = {"all patches, no decoder": _setting(student, big, 0.0, None, device)}
    for ratio in ratios:
        for name, (depth, share) in decoders.items():
            options = {"depth": depth, "width": 512, "share": share}
            settings[f"{ratio:.0%}, {name}"] = _setting(student, big, ratio, options, device)
        settings[f"{ratio:.0%}, no decoder"] = _setting(student, big, ratio, None, device)
    times = step_times(settings, images, repeats)
    rows: list[dict[str, object]] = [{"setting": name, **parts} for name, parts in times.items()]
    plots.save(plots.step_time_stack(times), out, rows)
    columns = {name: Column("ms", digits=3) for name in next(iter(times.values()))}
    report = Report(f"Step of {batch_size} images", columns=columns, label="setting")
    for name, parts in times.items():
        report.add(name, **dict[str, Any](parts))
    report.show()


def _setting(
    student: Encoder, teacher: nn.Module, ratio: float, decoder: Any, device: str
) -> MaskedToMasked:
    masked = MaskedAutoencoder(create_encoder(student), decoder)
    return MaskedToMasked(masked, teacher, masking=RandomMasking(ratio)).to(device).train()


def inspect_run(run: Path, images: str, count: int, tokens: int) -> Iterator[Path]:
    """Draw the pictures of a pre-training run into its folder; yields their paths."""
    path = run / "config.yaml"
    if not path.is_file():
        raise ConfigError(
            f"inspect: {run} must be the folder of a pre-training run, got no config.yaml there"
        )
    config = load(Pretrain, path)
    source = ImageSet(images or config.data.train)
    fresh, _ = make_distiller(config)
    trained, _ = make_distiller(config)
    load_weights(trained, run / "weights.safetensors")
    student = trained.student
    statistics = statistics_of(student.encoder.vit)
    size = student.encoder.vit.patch_embed.img_size[0]
    if student.decoder is not None:
        shown = painted_images(
            student, source, size, statistics, make_masking(config.mask),
            normalized=config.normalize_pixels, count=count,
        )  # fmt: skip
        figure = plots.reconstruction_grid(*shown, student.encoder.grid)
        yield plots.save(figure, run / "reconstruction.png", [])
    if trained.teacher is None:
        return
    few = sample(source, size, statistics, count)
    errors = patch_errors(trained, few)
    figure = plots.alignment_error_map(denormalized(few, statistics), errors, student.encoder.grid)
    yield plots.save(
        figure, run / "alignment_error.png", plots.rows_of(errors, "image", "patch", "error")
    )
    yield _similarity(run, fresh, trained, source, size, statistics, tokens)


def _similarity(
    run: Path,
    fresh: MaskedToMasked,
    trained: MaskedToMasked,
    source: ImageSet,
    size: int,
    statistics: Any,
    tokens: int,
) -> Path:
    """CKA of all blocks, before and after training."""
    grid = trained.student.encoder.grid
    wanted = -(-tokens // (grid[0] * grid[1]))
    batches = sample(source, size, statistics, max(wanted, 2)).split(16)
    batches = [batch for batch in batches if len(batch) > 1]
    similarity = {
        title: block_similarity(d.student.encoder, d.teacher.model, batches, tokens // 2)  # type: ignore[union-attr]
        for title, d in (("before", fresh), ("after", trained))
    }
    figure = plots.cka_heatmap(similarity, list(trained.pairs.values()))
    rows = [
        row
        for title, values in similarity.items()
        for row in plots.rows_of(values, "student_block", "teacher_block", "cka", state=title)
    ]
    return plots.save(figure, run / "cka.png", rows)
