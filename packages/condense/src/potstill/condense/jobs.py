"""The jobs: condensing a set of images, and judging what came of it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from potstill.condense.condensed import Condensed, Teacher, random_sets
from potstill.condense.config import CondenseConfig, EvaluateConfig, SelectConfig
from potstill.condense.data.pool import Pool, load_pool
from potstill.condense.data.siamese import Siamese
from potstill.condense.evaluation.evaluate import Evaluation, Protocol, evaluate
from potstill.condense.gallery import write_gallery
from potstill.condense.models.convnet import make_network
from potstill.condense.models.learning import Learner, Samples
from potstill.condense.selection.select import embed, select
from potstill.condense.synthesis.experts import (
    Expert,
    Flatness,
    Labelled,
    Starts,
    Trajectories,
    Window,
    expert_labels,
)
from potstill.condense.synthesis.images import SyntheticImages
from potstill.condense.synthesis.matching import (
    AttentionMatching,
    DistributionMatching,
    EqualClasses,
)
from potstill.condense.synthesis.recovery import Crops, Recovery, batch_norms
from potstill.condense.synthesis.trajectories import TrajectoryMatching, matching_optimizer
from potstill.core import ConfigError, Distiller, Job, Report, Training, cosine, generator, seed_all
from potstill.core.command import as_dict

__all__ = ["Condense", "Evaluate", "condense", "select_images"]

_STEPS = {"dm": 20_000, "datadam": 8000, "datm": 10_000, "mtt": 10_000, "sre2l": 4000, "cda": 4000}
_LR = {"dm": 1.0, "datadam": 1.0, "datm": 100.0, "mtt": 100.0, "sre2l": 0.25, "cda": 0.25}


class Condense(Job[CondenseConfig]):
    """Make few images in the place of many.

    Leaves ``condensed/`` (see `Condensed`), ``gallery.png`` with the images above random ones, and
    for datm and mtt the experts in ``experts/``.

    Args:
        config: What to do.
        pool: The images; by default those of ``config.data``.

    Raises:
        ConfigError: No images.
    """

    optimizers: ClassVar[Mapping[str, Callable[..., torch.optim.Optimizer]]] = {
        **Job.optimizers, "adam": partial(torch.optim.Adam, betas=(0.5, 0.9)),
    }  # fmt: skip

    def __init__(self, config: CondenseConfig, pool: Pool | None = None) -> None:
        super().__init__(config)
        if pool is None and config.data is None:
            raise ConfigError("condense: data must name the images, got nothing")
        self.pool = load_pool(config.data, size=config.size) if pool is None else pool  # type: ignore[arg-type]
        self.pool.require(config.ipc, "condense")
        self.seed = config.training.seed
        self.augment = Siamese(config.augment)

    def train(self, progress: Any) -> None:
        """Synthesis by the method of the configuration."""
        methods: dict[str, Callable[[Any], Condensed]] = {
            "dm": self._match, "datadam": self._match, "datm": self._follow, "mtt": self._follow,
            "sre2l": self._recover, "cda": self._recover,
        }  # fmt: skip
        self.condensed = methods[self.config.method](progress)

    def lr(self) -> float:
        """That of the method."""
        return _LR[self.config.method]

    def export(self, folder: Path, history: Any) -> Mapping[str, Any]:
        """Write the set, and a picture of it."""
        self.condensed.save(folder / "condensed")
        write_gallery(self.condensed, self.pool, folder / "gallery.png")
        return {"images": len(self.condensed), "set": str(folder / "condensed")}

    # --- the methods ----------------------------------------------------------------------------

    def _match(self, progress: Any) -> Condensed:
        """Dm and datadam: one distiller over random networks."""
        options = self.config.match
        student = self._start("real")
        network = self._network(self.config.network)
        source = EqualClasses(self.pool, options.real)
        if self.config.method == "dm":
            distiller: Distiller = DistributionMatching(student, network, self.augment)
        else:
            distiller = AttentionMatching(
                student, network, self.augment,
                power=options.power, mmd=options.mmd, scale=options.scale,
            )  # fmt: skip
        self.fit(
            distiller, source, folder="synthesis", progress=progress, training=self._training(),
            optimizer=partial(torch.optim.SGD, momentum=options.momentum),
        )  # fmt: skip
        return self._finished(student)

    def _follow(self, progress: Any) -> Condensed:
        """Datm and mtt: experts first, then images on which a network moves as they did."""
        options = self.config.follow
        network = self._network(self.config.network)
        experts = Trajectories(
            [self._expert(n, progress) for n in range(options.experts)], self.pool.digest()
        )
        self.history = []  # not of experts, which have their own folders and are trained once
        soft = self.config.method == "datm"
        labelled = expert_labels(self.pool, network, experts)
        student, rows = self._right_ones(labelled)
        student = SyntheticImages(
            student.images.detach(), student.labels, lr=options.rate,
            logits=labelled.logits[rows] if soft else None,
        )  # fmt: skip
        window = Window(options.first, options.last, options.opening, options.growth, options.span)
        distiller = TrajectoryMatching(
            student, network, self.augment, steps=options.steps, batch=options.batch,
            threshold=options.threshold, exact=options.unroll == "exact",
        )  # fmt: skip
        make = partial(matching_optimizer, labels=options.label_lr, rate=options.rate_lr)
        history = self.fit(
            distiller, Starts(experts, window), folder="synthesis", progress=progress,
            training=self._training(), optimizer=make,
        )  # fmt: skip
        idle = sum(row["trajectory"] > options.threshold for row in history) / len(history)
        if idle > 0.5:
            warnings.warn(
                f"condense: {100 * idle:.0f} % of the steps were above follow.threshold "
                f"({options.threshold:g}) and changed nothing; raise it, or lower follow.rate or "
                "follow.steps",
                stacklevel=2,
            )
        return self._finished(student, labelled if soft else None)

    def _recover(self, progress: Any) -> Condensed:
        """sre2l and cda: a teacher first, then groups of one image of each class."""
        config, options = self.config, self.config.recover
        teacher = self._teacher(progress)
        crops = Crops(
            options.curriculum or ("none" if config.method == "sre2l" else "cosine"),
            options.milestone, options.roll, "flip" in config.augment,
        )  # fmt: skip
        groups = []
        for number in range(config.ipc):
            rng = generator("noise", self.seed, number)
            group = SyntheticImages.start(self.pool, 1, "noise", rng)
            distiller = Recovery(group, teacher, self.pool, crops, strength=options.strength)
            self.fit(
                distiller, [torch.zeros(1)], folder=f"recover/{number}", progress=progress,
                training=self._training(), schedule=cosine(0.0), curves=False,
            )  # fmt: skip
            group.clamp()
            groups.append(group.images.detach())
        images = torch.stack(groups, 1).flatten(0, 1)  # class after class
        labels = torch.arange(len(self.pool.classes)).repeat_interleave(config.ipc)
        student = SyntheticImages(images, labels)
        return self._finished(
            student, teacher=Teacher(options.teacher, teacher, options.temperature)
        )

    # --- their parts ----------------------------------------------------------------------------

    def _training(self, **changes: Any) -> Training:
        """The options of training, with the budget of the method where none is given."""
        own = self.config.training
        if own.steps is own.epochs is own.seconds is None:
            changes = {"steps": _STEPS[self.config.method], **changes}
        return replace(own, **changes)

    def _part(self, **budget: Any) -> Training:
        """Options of a part before the synthesis, which says itself how it trains."""
        own = self.config.training
        return Training(
            checkpoint_minutes=own.checkpoint_minutes, tensorboard=own.tensorboard,
            checkpoint_asynchronous=own.checkpoint_asynchronous, **budget,
        )  # fmt: skip

    def _network(self, name: str, *parts: int) -> nn.Module:
        seed_all("network", self.seed, name, *parts)
        return make_network(name, len(self.pool.classes), self.pool.shape)

    def _start(self, kind: Any) -> SyntheticImages:
        return SyntheticImages.start(
            self.pool, self.config.ipc, kind, generator("start", self.seed)
        )

    def _samples(self, batch: int) -> Samples:
        return Samples(self.pool, self.pool.labels, batch, drop_last=self.engine.world > 1)

    def _expert(self, number: int, progress: Any) -> Path:
        """Train an expert, unless its trajectory is there."""
        options = self.config.follow
        path = self.config.out / "experts" / f"{number:03}.safetensors"
        if not path.exists():
            samples = self._samples(options.expert_batch)
            expert = Expert(
                self._network(self.config.network, number), self.augment, options.epochs,
                samples.steps_per_epoch(self.engine.world), Flatness() if options.flat else None,
            )  # fmt: skip
            budget = self._part(
                epochs=options.epochs, lr=options.expert_lr, seed=self.seed + number
            )
            self.fit(
                expert, samples, folder=f"experts/{number:03}", progress=progress,
                training=budget, optimizer=torch.optim.SGD, curves=False,
            )  # fmt: skip
            if self.engine.main:
                expert.save(path, self.pool.digest())
            self.engine.barrier()
        return path

    def _right_ones(self, labelled: Labelled) -> tuple[SyntheticImages, torch.Tensor]:
        """Random images of each class that experts classify correctly, as far as there are any."""
        rng = generator("start", self.seed)
        chance = torch.rand(len(self.pool), generator=rng, dtype=torch.float64)
        order = (2 * self.pool.labels + ~labelled.right + 0.9 * chance).argsort()
        begins = self.pool.counts.cumsum(0) - self.pool.counts
        rows = order[begins[:, None] + torch.arange(self.config.ipc)].flatten()
        return SyntheticImages(self.pool.normalized(rows), self.pool.labels[rows]), rows

    def _teacher(self, progress: Any) -> nn.Module:
        options = self.config.recover
        network = self._network(options.teacher)
        batch_norms(network)  # says what is wrong before anything starts
        budget = self._part(
            steps=options.teacher_steps, lr=options.teacher_lr, seed=self.seed, final=0.0
        )
        sgd = partial(torch.optim.SGD, momentum=0.9, weight_decay=5e-4, nesterov=True)
        self.fit(
            Learner(network, self.augment), self._samples(128), folder="teacher",
            progress=progress, training=budget, optimizer=sgd,
        )  # fmt: skip
        return network

    def _finished(
        self, student: SyntheticImages, labelled: Labelled | None = None,
        teacher: Teacher | None = None,
    ) -> Condensed:  # fmt: skip
        """The set, with random images under the same labels."""
        baseline = random_sets(self.pool, student.labels, self.config.draws, self.seed)
        options = as_dict(self.config)
        family = {"dm": "match", "datadam": "match", "datm": "follow", "mtt": "follow"}
        own = family.get(self.config.method, "recover")
        return Condensed(
            student.images.detach().cpu(), student.labels.cpu(), self.pool.classes,
            self.pool.statistics,
            {
                "method": self.config.method, "ipc": self.config.ipc, "seed": self.seed,
                "data": self.pool.digest(), "network": self.config.network, own: options[own],
                "steps": self._training().steps,
            },
            logits=None if student.logits is None else student.logits.detach().cpu(),
            lr=None if student.lr is None else abs(float(student.lr.detach())),
            teacher=teacher, baseline=baseline,
            baseline_logits=None if labelled is None else labelled.logits[baseline],
        )  # fmt: skip


def condense(
    pool: Pool,
    method: str = "dm",
    ipc: int = 10,
    *,
    out: Path | str,
    progress: bool = True,
    **options: Any,
) -> Condensed:
    """Condense a pool in Python, as ``potstill condense condense`` does with folders.

    Args:
        pool: The images.
        method: ``dm``, ``datadam``, ``datm``, ``mtt``, ``sre2l`` or ``cda``.
        ipc: Images per class.
        out: Folder of the run; one that holds the same run is continued.
        progress: Show a line while it runs.
        **options: Other fields of `CondenseConfig`.

    Raises:
        ConfigError: What `CondenseConfig` refuses, or more images than a class has.
    """
    config = CondenseConfig(method=method, ipc=ipc, out=Path(out), **options)  # type: ignore[arg-type]
    job = Condense(config, pool)
    job.run(progress=progress)
    return job.condensed


def select_images(
    data: Path | str, out: Path | str, config: SelectConfig | None = None
) -> Condensed:
    """Choose real images of a folder, and write them as a condensed set.

    Args:
        data: Folder or .zip file with a folder for each class.
        out: Folder of the result.
        config: Rule and share.

    Raises:
        ConfigError: What `select` refuses.
    """
    config = config or SelectConfig()
    pool = load_pool(data, size=config.size)
    features = None if config.features == "pixels" else config.features
    rows = select(
        pool, ratio=config.ratio, ipc=config.ipc, method=config.method,
        features=embed(pool, features), seed=config.seed,
    )  # fmt: skip
    about = {"method": config.method, "features": config.features, "seed": config.seed}
    found = Condensed.of(pool, rows, **about)
    found = replace(found, baseline=random_sets(pool, found.labels, config.draws, config.seed))
    found.save(out)
    return found


class Evaluate(Job[EvaluateConfig]):
    """Judge a condensed set: a page with accuracies, random images and scores.

    Args:
        config: What to do.
    """

    def train(self, progress: Any) -> None:
        """All trainings; each is a part that is continued by itself."""
        config, training = self.config, self.config.training
        condensed = Condensed.load(config.condensed)
        train = load_pool(config.train, size=config.size)
        test = load_pool(
            config.test, size=config.size, classes=train.classes, statistics=train.statistics
        )
        protocol = Protocol(
            config.networks, config.repeats, config.draws, config.steps, config.full_steps,
            training.batch, training.lr or 0.01, config.augment, config.margins, training.seed,
        )  # fmt: skip
        self.data = train.digest()
        self.found: Evaluation = evaluate(
            condensed,
            train,
            test,
            protocol,
            fit=partial(self.fit, progress=progress, curves=False),
            world=self.engine.world,
        )

    def export(self, folder: Path, history: Any) -> Report:
        """The page."""
        training = self.config.training
        return self.found.report(self.data[:12], training.seed, training.device)
