"""The jobs that train: each makes a folder of a configuration."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn

from potstill.core import Batches, Distiller, Job, Validation
from potstill.core.adapters import Renormalized
from potstill.core.command import as_dict
from potstill.core.engine import MakeOptimizer
from potstill.core.images import ImageSet, ResidentImages, keyed
from potstill.mae.checkpoints import Weights, load_weights, write_folder, write_weights
from potstill.mae.config import Finetune, Mask, Pretrain
from potstill.mae.models.encoder import MaskedViT
from potstill.mae.models.masking import BlockMasking, GridMasking, Masking, RandomMasking
from potstill.mae.models.students import (
    Loaded,
    Student,
    channels_of,
    described,
    given,
    initial,
    load_model,
    statistics_of,
)
from potstill.mae.training.classifier import (
    Classification,
    grouped_adamw,
    layer_scales,
    prepare_classifier,
    require_classes,
    top1,
)
from potstill.mae.training.criteria import FeatureDistance
from potstill.mae.training.data import held_out, require, train_transform
from potstill.mae.training.distiller import MaskedToMasked, Resized
from potstill.mae.training.layers import Layers, layer_map
from potstill.mae.training.reconstruction import draw_reconstructions

__all__ = ["Finetuning", "Pretraining", "finetune", "make_distiller", "make_masking", "pretrain"]

_log = logging.getLogger(__name__)
C = TypeVar("C", bound=Pretrain | Finetune)


def pretrain(config: Pretrain, *, progress: bool = True) -> dict[str, Any]:
    """Pre-train and write the student to ``config.out``.

    The folder then holds ``config.yaml``, ``history.jsonl``, ``curves.png``, ``student/`` (for
    ``Student.from_pretrained``), ``encoder.safetensors`` (for timm), ``weights.safetensors``
    (encoder, decoder and projectors), ``result.json`` and ``reconstruction.png``.

    Returns:
        Steps, last losses, seconds, and the teacher's origin and licence.
    """
    return Pretraining(config).run(progress).summary


def finetune(config: Finetune, *, progress: bool = True) -> dict[str, Any]:
    """Train a classifier from a pre-trained encoder and write it to ``config.out``.

    The folder then holds ``classifier/``, for ``timm.create_model("local-dir:...")`` and as the
    ``init`` of other commands, and ``classifier.safetensors``.

    Returns:
        Steps, last losses, seconds, classes and, with test images, top-1 accuracy in percent.
    """
    return Finetuning(config).run(progress).summary


class _ImageJob(Job[C]):
    """Batches of images, AdamW, and a learning rate in proportion to the global batch."""

    optimizers: ClassVar = {"adamw": grouped_adamw}
    labels: ClassVar[bool]
    vit: Any  # the timm model that trains: `distiller` makes it, `source` and `export` follow

    def __init__(self, config: C) -> None:
        super().__init__(config)
        require(config.data, "train")
        self.images = ImageSet(config.data.train, labels=self.labels)

    def lr(self) -> float:
        """The published rule."""
        training = self.config.training
        items = training.batch * training.accumulate * self.engine.world
        return self.config.lr_per_256 * items / 256

    def augmentation(self) -> dict[str, Any]:
        """Options of `train_transform`."""
        return {}

    def source(self) -> Batches:
        """Shifted and flipped images in memory, or decoded and transformed ones."""
        batch, statistics = self.config.training.batch, statistics_of(self.vit)
        self.images.channels = channels_of(self.vit)
        if self.config.data.resident:
            return ResidentImages.of(self.images, batch, statistics)
        size = tuple(self.vit.patch_embed.img_size)
        transform = keyed(train_transform(size, statistics, **self.augmentation()))
        workers = self.config.training.workers
        return Batches(self.images, batch, workers=workers, augment=transform)


class Pretraining(_ImageJob[Pretrain]):
    """Masked pre-training: see `pretrain`."""

    labels = False

    def distiller(self) -> MaskedToMasked:
        """Student, teacher and objective."""
        self.trained, self.teacher = make_distiller(self.config)
        self.vit = self.trained.student.encoder.vit
        return self.trained

    def export(self, folder: Path, history: Sequence[dict[str, float]]) -> dict[str, Any]:
        """Write the student for potstill and for timm, and draw what it paints."""
        student: Any = self.trained.student
        origin, licence = "", ""
        if self.teacher is not None:
            origin, licence = self.teacher.origin, self.teacher.licence
        losses = {k: v for k, v in history[-1].items() if k not in ("step", "lr")}
        student.save_pretrained(folder / "student", teacher=origin, metrics=losses)
        write_weights(self.vit, folder / "encoder.safetensors", "timm")
        description = {"config": as_dict(self.config)}
        write_weights(self.trained, folder / "weights.safetensors", description=description)
        if student.decoder is not None:
            draw_reconstructions(
                student, self.images, self.trained.masking, folder / "reconstruction.png",
                normalized=self.config.normalize_pixels,
            )  # fmt: skip
        return {"teacher": origin, "teacher_licence": licence}


class Finetuning(_ImageJob[Finetune]):
    """Supervised training of an encoder: see `finetune`."""

    labels = True

    def distiller(self) -> Classification:
        """A classifier with a new head, and its augmentation in batches."""
        config = self.config
        torch.manual_seed(config.training.seed)
        self.vit = prepare_classifier(
            initial(config.init, config.encoder), len(self.images.classes),
            pool=config.pool, drop_path=config.drop_path,
        )  # fmt: skip
        return Classification(
            self.vit, self.classifier(), kd=config.kd, temperature=config.temperature,
            mixup=config.mixup, cutmix=config.cutmix, smoothing=config.smoothing,
        )  # fmt: skip

    def classifier(self) -> Any:
        """The teacher, on the student's images; None without one."""
        config = self.config.teacher
        if not config.source:
            return None
        loaded = load_model(config.source, given(config.encoder), head=True)
        require_classes(loaded.model, self.images.classes)
        dtype, model = torch.bfloat16 if config.bf16 else torch.float32, loaded.model
        resized = nn.Sequential(Resized(model.patch_embed.img_size, dtype), model.to(dtype))
        return Renormalized(resized, statistics_of(self.vit), loaded.statistics)

    def validation(self) -> Validation | None:
        """Accuracy on images that are neither trained on nor reported, after each epoch."""
        source, training = self.config.data.validation, self.config.training
        if not source:
            return None
        batches = held_out(source, self.vit, training.batch, self.images.classes)
        items = training.batch * training.accumulate * self.engine.world
        return Validation(partial(accuracy_on, batches), max(len(self.images) // items, 1))

    def augmentation(self) -> dict[str, Any]:
        """The recipe and the chance of erasing."""
        return {"strong": self.config.augment == "strong", "erase": self.config.erase}

    def optimizer(self, distiller: Distiller) -> MakeOptimizer:
        """AdamW with layer decay, and betas as for fine-tuning."""
        scales = layer_scales(self.vit, self.config.layer_decay)
        return partial(super().optimizer(distiller), scales=scales, betas=(0.9, 0.999))

    def export(self, folder: Path, history: Sequence[dict[str, float]]) -> dict[str, Any]:
        """Write the classifier, and count its hits on test images."""
        found: dict[str, Any] = {"classes": list(self.images.classes)}
        if self.config.data.test:
            vit = self.vit.to(self.engine.device)  # `fit` gave it back to where it was made
            batches = held_out(self.config.data.test, vit, classes=self.images.classes)
            found["top1"] = accuracy_on(batches, vit)
        write_weights(self.vit, folder / "classifier.safetensors", "timm")
        write_folder(self.vit, folder / "classifier", self.images.classes)
        return found


def accuracy_on(batches: Any, model: nn.Module) -> float:
    """Percentage of images of labelled batches whose class is found."""
    hits = [(top1(model, *batch) * len(batch[1]), len(batch[1])) for batch in batches]
    return sum(hit for hit, _ in hits) / sum(count for _, count in hits)


def make_masking(mask: Mask) -> Masking:
    """The masking that a configuration describes."""
    if mask.kind == "block":
        return BlockMasking(mask.ratio, mask.side)
    return (GridMasking if mask.kind == "grid" else RandomMasking)(mask.ratio)


def _student(config: Pretrain) -> Student:
    """A student with fresh weights, or one that begins as a model that is there."""
    if not config.init:
        return Student(config.student, config.decoder)
    vit = load_model(config.init, given(config.student)).model
    student = Student(described(vit), config.decoder, fixed_positions=False)
    load_weights(student.encoder.vit, Weights.of(vit))
    return student


def make_distiller(config: Pretrain) -> tuple[MaskedToMasked, Loaded | None]:
    """Student, teacher and objective of a pre-training, and where the teacher came from."""
    torch.manual_seed(config.training.seed)
    student, align = _student(config), config.align
    layers: Layers = align.blocks()
    loaded = teacher = statistics = None
    if config.teacher.source:
        loaded = load_model(config.teacher.source, given(config.teacher.encoder))
        statistics = statistics_of(student.encoder.vit), loaded.statistics
        teacher = MaskedViT(loaded.model)
        if teacher.grid != student.encoder.grid:
            _log.warning(
                "pretrain: the teacher has %s patches, its positions are interpolated to the "
                "student's %s", teacher.grid, student.encoder.grid,
            )  # fmt: skip
            teacher.with_grid(student.encoder.grid)
        layers = layer_map(layers, student.encoder.depth, teacher.depth)
        if config.teacher.prune:
            teacher.prune(max(t for _, t in layers))
        if config.teacher.bf16:
            teacher.to(torch.bfloat16)
    distiller = MaskedToMasked(
        student,
        teacher,
        masking=make_masking(config.mask),
        layers=layers,
        alpha=align.weight,
        distance=FeatureDistance(align.distance, align.norm),
        projector=align.projector,
        normalize_pixels=config.normalize_pixels,
        statistics=statistics,
    )
    return distiller, loaded
