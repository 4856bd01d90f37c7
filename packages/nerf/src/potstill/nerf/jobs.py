"""Jobs of radiance fields: training on images, and conversion."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import nn

from potstill.core import ConfigError, Job, seed_all
from potstill.core.engine import resolve_device
from potstill.nerf.backends import ENCODERS
from potstill.nerf.config import ConvertConfig, SceneConfig, TrainConfig
from potstill.nerf.distill.convert import convert, hand_over
from potstill.nerf.distill.edit import EditedField
from potstill.nerf.distill.evaluation import on
from potstill.nerf.distill.objective import Progression
from potstill.nerf.distill.page import conversion_page
from potstill.nerf.distill.priors import load_prior, prior_of
from potstill.nerf.fields.base import Field
from potstill.nerf.fields.make import load_field, make_field, save_field, sized
from potstill.nerf.from_images import budget, decaying, score, train_field
from potstill.nerf.inspection import show_scene
from potstill.nerf.optim import RowAdam, with_rates
from potstill.nerf.pictures import compare
from potstill.nerf.scenes.load import load_scene
from potstill.nerf.scenes.scene import Scene

__all__ = ["Convert", "Train", "scene_of"]

C = TypeVar("C", bound=TrainConfig | ConvertConfig)


def scene_of(config: SceneConfig, similarity: Any = None) -> Scene:
    """The scene that options name; in the coordinates of a field, where there is its similarity."""
    options = dataclasses.asdict(config)
    data, layout, rescale = (options.pop(k) for k in ("data", "layout", "rescale_intrinsics"))
    if similarity is not None:  # these have made it
        options |= dict.fromkeys(("scale", "near", "far")) | {
            "center": (),
            "aabb": (),
            "bounded": False,
        }
    return load_scene(data, layout, rescale=rescale, similarity=similarity, **options)


class _FieldJob(Job[C]):
    """What training and conversion have in common; wrong input is refused before a folder is made.

    Raises:
        ConfigError: An option of training that fields do not have.
        BackendError: The backend cannot run here.
    """

    optimizers: ClassVar = {"row-adam": RowAdam, **Job.optimizers}
    movable = (*Job.movable, "backend")
    field: Field

    def __init__(self, config: C) -> None:
        super().__init__(config)
        only = {"precision": "fp32", "parallel": "ddp", "workers": 0, "epochs": None}
        for name, value in only.items():
            if (got := getattr(config.training, name)) != value:
                raise ConfigError(f"Training: {name} must be {value} for fields, got {got}")
        probe = [("probe", nn.Parameter(torch.zeros(1)))]
        super().optimizer(None)(probe, lr=1.0)  # type: ignore[arg-type]  # looks at names alone
        self.backend = ENCODERS.resolve(config.backend, resolve_device(config.training.device))
        self.size = sized(config.kind, **dataclasses.asdict(config.size))

    def optimizer(self, distiller: Any) -> Any:
        """The one that ``training.optimizer`` names, at the rates of the field."""
        return with_rates(super().optimizer(distiller), distiller)

    def options(self) -> dict[str, Any]:
        """Options of `train_field` and `convert` out of those of training."""
        training = self.config.training
        return {
            "steps": training.steps, "seconds": training.seconds, "lr": training.lr,
            "accumulate": training.accumulate, "clip": training.clip or None,
            "ema": training.ema or None, "seed": training.seed, "rays": training.batch,
            "optimizer": self.optimizer, "engine": self.engine, "every": self.config.every,
            "samples": self.config.samples,
            "run": training.run(self.config.out),
        }  # fmt: skip


class Train(_FieldJob[TrainConfig]):
    """Train a field on the images of a scene.

    Args:
        config: Scene, kind and size of the field, terms and training.
    """

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config)
        self.scene = scene_of(config.scene)

    def train(self, progress: Any) -> None:
        """One part, or two for a grid: coarse and fine."""
        config, scene = self.config, self.scene
        if progress and self.engine.main:
            show_scene(scene, backend=f"{self.backend.name} ({self.backend.about})")
        seed_all("field", config.training.seed)
        field = make_field(
            config.kind, scene.space, self.size, occupancy=config.occupancy, backend=config.backend
        )
        self.field, self.history = train_field(
            field, scene, background=config.background, depth=config.depth,
            distortion=config.distortion, variation=config.variation, progress=progress,
            schedule=decaying(config.training.final, config.training.warmup), **self.options(),
        )  # fmt: skip

    def export(self, folder: Path, history: Sequence[dict[str, float]]) -> dict[str, Any]:
        """The field, a pose prior of its cameras, and a picture of two test views."""
        scene, field = self.scene, self.field
        note = f"{scene.name}, {len(history)} steps, backend {self.backend.name}"
        prior_of(scene.train.cameras, scene.space).save(folder / "prior.json")
        views = tuple(range(min(2, len(scene.test.cameras))))
        with on(self.engine.device, field):
            return {
                "PSNR on the test views": score(field, scene.test),
                "occupied cells": field.occupancy.share(),
                "field": save_field(field, folder / "field.safetensors", scene.similarity, note),
                "picture": compare(field, scene.test, folder / "comparison.png", views),
            }


class Convert(_FieldJob[ConvertConfig]):
    """Turn a trained field into one of another kind, and go on with images where there are some.

    Args:
        config: Teacher, kind and size of the student, terms and training.
    """

    def __init__(self, config: ConvertConfig) -> None:
        super().__init__(config)
        self.find_unused = config.feature_until > 0
        beside = config.teacher if config.teacher.is_dir() else config.teacher.parent
        self.prior = load_prior(config.prior or beside / "prior.json")
        self.teacher, self.header = load_field(config.teacher, config.backend)
        similarity = self.header["similarity"]
        self.scene = scene_of(config.scene, similarity) if config.scene.data else None
        if box := config.erase or config.keep:
            low, high = (box[0], box[1], box[2]), (box[3], box[4], box[5])
            mode: Literal["erase", "keep"] = "erase" if config.erase else "keep"
            self.teacher = EditedField(self.teacher, low, high, mode)

    def train(self, progress: Any) -> None:
        """The conversion, and where it is asked for the hand-over."""
        config, options = self.config, self.options()
        steps, seconds = config.training.steps, config.training.seconds
        progression = Progression(
            config.feature_until, config.points_until, norm=config.norm, pools=config.pools
        )
        options |= budget(1 - config.hand_over, steps, seconds)
        self.field, self.report = convert(
            self.teacher, config.kind, self.prior, progression, config=self.size,
            clock=config.clock, inherit=config.inherit, progress=progress,
            truth=None if self.scene is None else self.scene.test, schedule=self.schedule(),
            **options,
        )  # fmt: skip
        self.history = self.report.rows
        if self.scene and config.hand_over:
            options |= budget(config.hand_over, steps, seconds)
            options |= {"run": dataclasses.replace(options["run"], folder=config.out / "hand-over")}
            options |= {"every": 0, "progress": progress}
            for name in ("rays", "samples"):  # there of each process, here of all together
                options[name] = -(-options[name] // self.engine.world)
            self.field, rows = hand_over(self.field, self.scene, **options)
            self.history = [*self.history, *rows]

    def export(self, folder: Path, history: Sequence[dict[str, float]]) -> dict[str, Any]:
        """The student, the pose prior, and the report with its page."""
        report, found = self.report, {}
        self.prior.save(folder / "prior.json")
        report.save(folder / "conversion.json")
        if self.scene is not None:
            with on(self.engine.device, self.field):
                found["PSNR on the test views"] = score(self.field, self.scene.test)
        note, similarity = f"{report.teacher} teacher", self.header["similarity"]
        title = f"{report.teacher} to {report.student}"
        return {
            "PSNR to the teacher": report.scores["teacher"],
            **found,
            "occupied cells": report.occupied,
            "field": save_field(self.field, folder / "field.safetensors", similarity, note),
            "page": conversion_page([report], folder, title=title),
        }
