"""The jobs behind the commands: each leaves a page in its folder."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from safetensors.torch import load_model
from torch import Tensor, nn

from potstill.audit.attacks.bench import Bench, Data, backdoor
from potstill.audit.attacks.poison import poison
from potstill.audit.attacks.triggers import Patch
from potstill.audit.config import BackdoorConfig, InspectConfig, PrivacyConfig
from potstill.audit.detect.invert import finished, prepare
from potstill.audit.inspection import Inspection, inspect
from potstill.audit.privacy.canaries import Canaries, plant
from potstill.audit.privacy.membership import Worlds, membership
from potstill.audit.training.arms import ARMS
from potstill.audit.training.learn import Learning
from potstill.audit.training.networks import Network
from potstill.core import ConfigError, Job, Report, fingerprint, generator, nearest
from potstill.core.adapters import Renormalized, load_teacher
from potstill.core.images import Images, load_images

__all__ = ["Backdoor", "Inspect", "Privacy"]

PLAIN = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)  # statistics of pixels in [0, 1]


class Inspect(Job[InspectConfig]):
    """Invert the triggers of a teacher, train a student on own labels, and compare the two."""

    def train(self, progress: Any) -> None:
        """Inversion and the student."""
        config, seed = self.config, self.config.training.seed
        images = _images(config.data, config.size)
        x, y = _pixels(images), images.labels
        classes = len(images.classes)
        teacher = self._teacher(classes)
        own = torch.randperm(len(x), generator=generator("own", seed))
        learn, judge = own[: len(own) // 2], own[len(own) // 2 :]
        few = x[judge][: config.count]
        inversion = prepare(teacher, few, classes, seed=seed)
        self.fit(inversion, [few], folder="inversion", progress=progress, steps=120, lr=0.1,
                 schedule=None)  # fmt: skip
        learning = _learning(self, classes)
        student = learning.train_student(x[learn], y[learn], seed)
        controls = {str(path): Network.from_pretrained(path) for path in config.controls}
        ink = x.mean((1, 2, 3))
        bright = torch.zeros(len(x), dtype=torch.bool)
        for k in range(classes):
            bright[y == k] = ink[y == k] > ink[y == k].median()
        self.found: Inspection = inspect(
            teacher, x[judge], y[judge], classes=classes, student=student,
            controls=controls, slices={"brighter than the median of its class": bright[judge]},
            count=config.count, inverted=finished(inversion, few),
            engine=self.engine,
        )  # fmt: skip
        self.data = fingerprint(x, y)[:12]

    def export(self, folder: Path, history: Sequence[dict[str, float]]) -> Report:
        """The page."""
        index = self.found.inverted.index
        over = self.found.found is not None and index is not None and max(index) > self.config.limit
        self.exit_code = int(self.config.check and over)
        return self.found.report(data=self.data, seed=self.config.training.seed)

    def _teacher(self, classes: int) -> nn.Module:
        """The model, from pixels in [0, 1] to logits."""
        name = self.config.teacher
        if ":" not in name:
            return Network.from_pretrained(name)
        loaded = load_teacher(name, pretrained=self.config.weights is None, num_classes=classes)
        if self.config.weights is not None:
            load_model(loaded.model, str(self.config.weights))
        return Renormalized(loaded.model, PLAIN, loaded.statistics)


class Backdoor(Job[BackdoorConfig]):
    """Poisoned teachers and their students, with all controls.

    Leaves ``teacher/``, a poisoned network of the first seed, to try the other tools on.
    """

    def train(self, progress: Any) -> None:
        """Every model of the bench; figures of finished ones are kept."""
        config, seed = self.config, self.config.training.seed
        for name in config.arms:
            if name not in ARMS:
                raise ConfigError(f"backdoor: no arm {name!r}; {nearest(name, ARMS)}")
        images = _images(config.data, config.size)
        x, y = _pixels(images), images.labels
        order = torch.randperm(len(x), generator=generator("split", seed))
        cuts = [round(len(x) * share) for share in (0.4, 0.73)]
        parts = [(x[rows], y[rows]) for rows in order.tensor_split(cuts)]
        learning, trigger = (
            _learning(self, len(images.classes)),
            Patch(config.rows, config.columns, config.value),
        )
        found = poison(
            *parts[0], trigger, config.target, max(config.rates), classes=len(images.classes),
            seed=seed,
        )  # fmt: skip
        self.teacher = learning.train_teacher(found.x, found.y, seed)
        self.bench: Bench = backdoor(
            learning.train_teacher, {name: learning.arm(name) for name in config.arms},
            Data(*parts), trigger=trigger,
            target=config.target, rates=config.rates, seeds=range(seed, seed + config.seeds),
            labels=learning.train_student, classes=len(images.classes), run=config.out / "models",
        )  # fmt: skip
        self.data = fingerprint(x, y)[:12]

    def export(self, folder: Path, history: Sequence[dict[str, float]]) -> Report:
        """The page, and the poisoned network."""
        self.teacher.save_pretrained(folder / "teacher")
        passed = [
            100 * (found.rate - clean.rate) > self.config.limit
            for arm, inputs, rate in self.bench.rows()
            if inputs == "own" and rate and arm != "teacher"
            for found, clean in zip(
                self.bench.of(arm, inputs, rate), self.bench.of(arm, inputs, 0.0), strict=True
            )
        ]
        self.exit_code = int(self.config.check and any(passed))
        return self.bench.report(data=self.data)


class Privacy(Job[PrivacyConfig]):
    """Worlds of teachers and students, with canaries."""

    def train(self, progress: Any) -> None:
        """Every world; finished ones are kept."""
        config, seed = self.config, self.config.training.seed
        images = _images(config.data, config.size)
        x, y = _pixels(images), images.labels
        order = torch.randperm(len(x), generator=generator("split", seed))
        rows, test = order.tensor_split([round(0.8 * len(x))])
        classes = len(images.classes)
        planted = Canaries(x[rows], y[rows], torch.empty(0, dtype=torch.long))
        if config.canaries:
            planted = plant(*planted[:2], config.canaries, classes=classes, test=x[test], seed=seed)
        learning = _learning(self, classes)

        def world(members: Tensor, seed: int) -> dict[str, nn.Module]:
            inputs, labels = planted.x[members], planted.y[members]
            teacher = learning.train_teacher(inputs, labels, seed)
            students = {
                name: learning.arm(name)(teacher, inputs, labels, seed) for name in config.arms
            }
            return {
                "teacher": teacher,
                "labels only": learning.train_student(inputs, labels, seed),
                **students,
            }

        self.worlds: Worlds = membership(
            world, (planted.x, planted.y), worlds=config.worlds, canaries=planted.rows,
            insert=config.insert, test=(x[test], y[test]), run=config.out / "worlds", seed=seed,
        )  # fmt: skip
        self.data = fingerprint(x, y)[:12]

    def export(self, folder: Path, history: Sequence[dict[str, float]]) -> Report:
        """The page."""
        worlds, config = self.worlds, self.config
        over = [
            fmean(worlds.exposure(model)) - worlds.floor() > config.exposure
            or fmean(attack.at_1 for attack in worlds.lira(model)) > config.tpr
            for model in worlds.phi
        ]
        self.exit_code = int(config.check and any(over))
        return worlds.table(data=self.data, seed=config.training.seed)


def _images(path: Path | None, size: int | None) -> Images:
    assert path is not None
    images = load_images(path, size=size)
    if len(images.classes) < 2:
        raise ConfigError(f"audit: {path} must hold a folder of images for each class, got one")
    return images


def _pixels(images: Images) -> Tensor:
    return images.pixels.float() / 255


def _learning(job: Job[Any], classes: int) -> Learning:
    network, training = job.config.network, job.config.training
    return Learning(
        classes, network.teacher, network.student, network.kind, training.steps, training.batch,
        training.lr or 3e-3, partial(job.fit, run=None, progress=False),
    )  # fmt: skip
