"""The jobs of the command line, each from a configuration to a folder."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from potstill.core import Batches, ConfigError, Engine, Run, atomic, cosine, fit
from potstill.core.command import as_dict, record
from potstill.core.images import Statistics as Normalization
from potstill.core.images import image_path
from potstill.mae.checkpoints import write_weights
from potstill.mae.classifier import Classification, adamw, layer_decayed, prepare_classifier, top1
from potstill.mae.config import Data, Encoder, Finetune, Mask, Optim, Pretrain, Probe
from potstill.mae.criteria import FeatureDistance
from potstill.mae.data import ImageSet, ResidentImages, eval_transform, keyed, train_transform
from potstill.mae.distiller import MaskedToMasked
from potstill.mae.masking import BlockMasking, GridMasking, Masking, RandomMasking
from potstill.mae.models import Loaded, Student, create_encoder, load_model, statistics_of
from potstill.mae.probes import features_of, knn_probe, linear_probe

__all__ = ["finetune", "make_distiller", "make_masking", "pretrain", "probe"]

_WHERE = ("device", "parallel")  # of a run that is continued; its result is the same elsewhere


def make_masking(mask: Mask) -> Masking:
    """The masking that a configuration describes."""
    if mask.kind == "block":
        return BlockMasking(mask.ratio, mask.side)
    return (GridMasking if mask.kind == "grid" else RandomMasking)(mask.ratio)


def make_distiller(config: Pretrain) -> tuple[MaskedToMasked, Loaded | None]:
    """Student, teacher and objective of a pre-training, and where the teacher came from."""
    torch.manual_seed(config.seed)
    student = Student(config.student, config.decoder)
    teacher = None
    if config.teacher.source:
        teacher = load_model(config.teacher.source, _given(config.teacher.encoder))
    align = config.align
    distiller = MaskedToMasked(
        student,
        None if teacher is None else teacher.model,
        masking=make_masking(config.mask),
        layers=align.blocks(),
        alpha=align.weight,
        distance=FeatureDistance(align.distance, align.norm),
        projector=align.projector,
        normalize_pixels=config.normalize_pixels,
        statistics=(
            None if teacher is None else (statistics_of(student.encoder.vit), teacher.statistics)
        ),
        teacher_dtype=torch.bfloat16 if config.teacher.bf16 else None,
        prune_teacher=config.teacher.prune,
    )
    return distiller, teacher


def pretrain(config: Pretrain, *, progress: bool = True) -> dict[str, Any]:
    """Pre-train and write the student to ``config.out``.

    The folder then holds ``config.yaml``, ``history.jsonl``, ``curves.png``, ``student/`` (for
    ``Student.from_pretrained``), ``encoder.safetensors`` (for timm), ``weights.safetensors``
    (encoder, decoder and projectors) and ``reconstruction.png``.

    Returns:
        Steps, last losses, seconds, and the teacher's origin and licence.
    """
    _require(config.data.train, "train")
    with Engine(config.device, config.precision, config.parallel) as engine:
        distiller, teacher = make_distiller(config)
        student: Any = distiller.student
        if engine.main:
            record(config, config.out, ignore=_WHERE)
        statistics = statistics_of(student.encoder.vit)
        size = student.encoder.vit.patch_embed.img_size[0]
        batches, per_epoch = _training(config.data, config.optim, size, statistics, engine,
                                       seed=config.seed)  # fmt: skip
        history = _fit(config, distiller, batches, per_epoch, engine, progress)
        summary = {
            "steps": len(history),
            **{k: history[-1][k] for k in history[-1] if k not in ("step", "lr")},
            "teacher": "" if teacher is None else teacher.origin,
            "teacher_licence": "" if teacher is None else teacher.licence,
        }
        if engine.main:
            _write_pretrained(config, distiller, summary, statistics)
    return summary


def finetune(config: Finetune, *, progress: bool = True) -> dict[str, Any]:
    """Train a classifier from a pre-trained encoder and write it to ``config.out``.

    Returns:
        Steps, seconds and, with test images, top-1 accuracy in percent.
    """
    _require(config.data.train, "train")
    train = ImageSet(image_path(config.data.train), labels=True)
    with Engine(config.device, config.precision, config.parallel) as engine:
        torch.manual_seed(config.seed)
        vit = _initial(config.init, config.encoder)
        statistics, size = statistics_of(vit), vit.patch_embed.img_size[0]
        prepare_classifier(vit, len(train.classes), pool=config.pool, drop_path=config.drop_path)
        distiller = Classification(
            vit, mixup=config.mixup, cutmix=config.cutmix, smoothing=config.smoothing
        )
        if engine.main:
            record(config, config.out, ignore=_WHERE)
        batches, per_epoch = _training(
            config.data, config.optim, size, statistics, engine, seed=config.seed, images=train,
            strong=config.augment == "strong", erase=config.erase,
        )  # fmt: skip
        history = _fit(config, distiller, batches, per_epoch, engine, progress)
        summary: dict[str, Any] = {
            "steps": len(history), "loss": history[-1]["loss"], "seconds": history[-1]["seconds"],
            "classes": list(train.classes),
        }  # fmt: skip
        if config.data.test:
            summary["top1"] = _top1(vit, _held_out(config.data.test, size, statistics))
        if engine.main:
            write_weights(vit, config.out / "classifier.safetensors", "timm")
            _write_json(config.out / "result.json", summary)
    return summary


def probe(config: Probe, *, progress: bool = True) -> dict[str, float]:
    """Accuracy in percent of nearest neighbours and of a linear classifier on frozen features."""
    _require(config.data.train, "train")
    _require(config.data.test, "test")
    with Engine(config.device) as engine:
        vit = _initial(config.init, config.encoder)
        statistics, size = statistics_of(vit), vit.patch_embed.img_size[0]
        parts: list[Tensor] = []
        for source in (config.data.train, config.data.test):
            loader = _held_out(source, size, statistics, config.batch_size)
            parts += features_of(vit, loader, engine.device)
        return {
            "knn": knn_probe(*parts, neighbors=config.neighbors),
            "linear": linear_probe(
                *parts, epochs=config.epochs, seed=config.seed, engine=engine, progress=progress
            ),
        }


def _fit(
    config: Pretrain | Finetune,
    distiller: Any,
    batches: Any,
    per_epoch: int,
    engine: Engine,
    progress: bool,
) -> list[dict[str, float]]:
    optim = config.optim
    if isinstance(config, Pretrain):
        optimizer = adamw(optim.weight_decay)
    else:
        optimizer = layer_decayed(distiller.student, optim.layer_decay, optim.weight_decay)
    return fit(
        distiller,
        batches,
        steps=max(optim.epochs * per_epoch // optim.accumulate, 1),
        lr=optim.lr(engine.world),
        optimizer=optimizer,
        schedule=cosine(optim.final, optim.warmup),
        accumulate=optim.accumulate,
        clip=optim.clip or None,
        ema=optim.ema or None,
        run=Run(config.out),
        engine=engine,
        seed=config.seed,
        progress=progress,
    )


def _training(
    data: Data,
    optim: Optim,
    size: int,
    statistics: Normalization,
    engine: Engine,
    *,
    seed: int,
    images: ImageSet | None = None,
    strong: bool = False,
    erase: float = 0.0,
) -> tuple[Any, int]:
    """A source of batches for ``fit``, and how many of them are an epoch."""
    images = images or ImageSet(image_path(data.train))
    if data.resident:
        resident = ResidentImages.of(images, optim.batch_size, statistics, seed=seed)
        return resident, max(len(resident.images) // (optim.batch_size * engine.world), 1)
    transform = train_transform(size, statistics, strong=strong, erase=erase)
    batches = Batches(images, optim.batch_size, workers=data.workers, augment=keyed(transform))
    return batches, batches.steps_per_epoch(engine.world)


def _held_out(
    source: str, size: int, statistics: Normalization, batch_size: int = 128
) -> DataLoader[Any]:
    """Labelled images as they are seen at test time; small ones are not cropped."""
    images = ImageSet(image_path(source), labels=True)
    crop = 1.0 if size <= 64 else 0.875
    images.transform = eval_transform(size, statistics, crop)
    return DataLoader(images, batch_size)  # type: ignore[arg-type]  # any sequence will do


def _top1(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    hits, count = 0.0, 0
    for images, labels in batches:
        hits += top1(model, images, labels) * len(labels)
        count += len(labels)
    return hits / count


def _initial(init: str, encoder: Encoder) -> Any:
    return load_model(init, _given(encoder)).model if init else create_encoder(encoder)


def _given(encoder: Encoder) -> Encoder | None:
    """None for the default: the source then says what the architecture is."""
    return None if encoder == Encoder() else encoder


def _write_pretrained(
    config: Pretrain, distiller: MaskedToMasked, summary: dict[str, Any], statistics: Normalization
) -> None:
    from potstill.mae import plots
    from potstill.mae.diagnostics import painted_images

    student: Any = distiller.student
    losses = {k: v for k, v in summary.items() if isinstance(v, float)}
    student.save_pretrained(config.out / "student", teacher=summary["teacher"], metrics=losses)
    write_weights(distiller.export_student(), config.out / "encoder.safetensors", "timm")
    write_weights(
        distiller, config.out / "weights.safetensors", description={"config": as_dict(config)}
    )
    _write_json(config.out / "result.json", summary)
    if student.decoder is not None:
        source, size = (
            ImageSet(image_path(config.data.train)),
            student.encoder.vit.patch_embed.img_size,
        )
        shown = painted_images(
            student, source, size, statistics, make_masking(config.mask),
            normalized=config.normalize_pixels,
        )  # fmt: skip
        figure = plots.reconstruction_grid(*shown, student.encoder.grid)
        plots.save(figure, config.out / "reconstruction.png", [])


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1))


def _require(source: str, what: str) -> None:
    if not source:
        raise ConfigError(
            f"data.{what} must be a folder or zip file of images, got nothing; pass "
            f"--data.{what} PATH"
        )
