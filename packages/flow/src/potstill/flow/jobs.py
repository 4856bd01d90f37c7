"""The jobs: training a teacher, distilling it, and judging what came of it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save_file
from torch import Tensor

from potstill.core import (
    ConfigError,
    Job,
    Objective,
    Report,
    Schedule,
    Stage,
    Training,
    atomic,
    reading,
    seed_all,
)
from potstill.core.command import as_dict
from potstill.flow.config import DistillConfig, EvaluateConfig, TeacherConfig
from potstill.flow.data import Data, load_data
from potstill.flow.measure.evaluate import Judge, Learning, evaluate
from potstill.flow.methods.critic import Critic, bottleneck
from potstill.flow.methods.draws import Items, Prior
from potstill.flow.methods.onestep import OneStep, objectives, players
from potstill.flow.methods.phases import Phases, phases
from potstill.flow.methods.regress import Degrading, Denoising, ScoreMatching
from potstill.flow.methods.twin import Twin, TwinFlow
from potstill.flow.store import load_student, load_teacher, save_student, save_teacher
from potstill.flow.student import Generator, Phased, Student, Students, partition
from potstill.flow.teachers.networks import PointNet, make_network, without_label_dropout
from potstill.flow.teachers.paths import Linear
from potstill.flow.teachers.teacher import Teacher, drawn, in_batches
from potstill.flow.teachers.velocity import Velocity

__all__ = ["Distill", "Evaluate", "TrainTeacher", "distill"]


class TrainTeacher(Job[TeacherConfig]):
    """Train a flow teacher.

    Leaves ``teacher/``, a folder for `load_teacher`, whose network diffusers reads.

    Args:
        config: What to do.
        data: Real items; by default those of ``config.data``.

    Raises:
        ConfigError: No data.
    """

    def __init__(self, config: TeacherConfig, data: Data | None = None) -> None:
        super().__init__(config)
        if data is None and config.data is None:
            raise ConfigError("train-teacher: data must name the images, got nothing")
        self.data = load_data(config.data, size=config.size) if data is None else data  # type: ignore[arg-type]

    def source(self) -> Prior:
        """Real items."""
        return Prior(self.data.shape, self.config.training.batch, data=self.data.items)

    def distiller(self) -> Denoising:
        """The network that the configuration names."""
        config, classes = self.config, len(self.data.classes)
        shape = self.data.shape
        model = make_network(
            config.network, shape, classes, widths=config.widths, depth=config.depth,
            patch=config.patch,
        )  # fmt: skip
        scale = 1.0 if config.network == "points" else 1000.0
        null = classes if classes else None
        self.teacher = Teacher(
            model, "flow", Linear(scale), null=null, shape=shape, classes=classes
        )
        return Denoising(self.teacher, config.drop, null)

    def export(self, folder: Path, history: Sequence[dict[str, float]]) -> Mapping[str, Any]:
        """Write the teacher."""
        save_teacher(self.teacher, folder / "teacher", **as_dict(self.config))
        return {"teacher": str(folder / "teacher")}


class Distill(Job[DistillConfig]):
    """Distil a teacher into a one-step student.

    Leaves ``student/``, a folder for `load_student`, whose network diffusers reads.

    Args:
        config: What to do.
        teacher: The teacher; by default that of ``config.teacher``.
        data: Real items; by default those of ``config.data``, if any.

    Raises:
        ConfigError: No teacher, or one that does not fit the data.
    """

    def __init__(
        self, config: DistillConfig, teacher: Teacher | None = None, data: Data | None = None
    ) -> None:
        super().__init__(config)
        if teacher is None and config.teacher is None:
            raise ConfigError("distill: teacher must name a folder, got nothing")
        if teacher is None:
            teacher = load_teacher(config.teacher, guidance=config.guidance)  # type: ignore[arg-type]
        if data is None and config.data is not None:
            data = load_data(config.data, size=config.size)
        self.teacher, self.data = teacher.eval(), data

    def train(self, progress: Any) -> None:
        """Check the teacher, and train each student."""
        self.check()
        parts = self.config.student.students
        if parts == 1:
            self.student: Generator = self._student("", None, progress)
            return
        options = self.config.student
        router = partition(
            self.teacher.classes, parts, options.partition, self.config.training.seed
        )
        made: list[Any] = [
            self._student(f"students/{n}", (router == n).nonzero().flatten(), progress)
            for n in range(parts)
        ]
        self.student = Students(made, router, as_dict(self.config))

    def check(self) -> None:
        """Refuse a teacher that does not denoise the data: see `Teacher.check`."""
        if self.data is not None:
            Prior(self.teacher.shape, 1, data=self.data.items)  # says what shape does not fit
            values, labels, _ = self.data.items
        if self.data is not None and self.config.check:
            self.teacher.check(values[:256], None if labels is None else labels[:256])

    def export(self, folder: Path, history: Sequence[dict[str, float]]) -> Mapping[str, Any]:
        """Write the student."""
        save_student(self.student, folder / "student")
        return {"student": str(folder / "student"), "evaluations": self.student.evaluations}

    # --- a student ------------------------------------------------------------------------------

    def _student(self, folder: str, own: Tensor | None, progress: Any) -> Generator:
        """Train one student, of all classes or of some, in a folder of its own."""
        config, teacher, critic = self.config, self.teacher, self.config.critic
        if own is not None:
            seed_all("student", config.training.seed, *own.tolist())
        if config.method == "twinflow":
            return self._twin(folder, own, progress)
        start = self._start(folder, own, progress)
        if config.method == "phased":
            return self._phased(start, folder, own, progress)
        student = Student(
            start, 0.0 if config.maps else 1.0, shape=teacher.shape, classes=teacher.classes,
            about=as_dict(config),
        )  # fmt: skip
        terms, critic_terms = self._objectives()
        nodes = self._nodes(student, folder, own, progress)
        distiller = OneStep(
            student, teacher, terms, self._critic(start, nodes[-1:]),
            derivative=config.map.derivative, step=config.map.step,
            nodes=nodes[-2::-1], interval=critic.interval,
        )  # fmt: skip
        turns = players(critic_terms, updates=critic.updates, lr=critic.lr)
        self.fit(
            distiller, self._source(own), folder=folder, progress=progress,
            stages=() if distiller.critic is None else self._halves(turns) or [turns],
        )  # fmt: skip
        return student

    def _twin(self, folder: str, own: Tensor | None, progress: Any) -> Twin:
        """A new network of two times, as large as the teacher's or as asked for."""
        model, config, (channels, *sides) = self.teacher.model, self.config, self.teacher.shape
        classes, wider = self.teacher.classes, (channels + 1, *sides)
        if config.student.widths or not self.teacher.from_library:
            widths = config.student.widths or (config.width,)
            depth = config.student.depth if config.student.widths else 3
            new = make_network(self._kind, wider, classes, widths=widths, depth=depth)
        else:
            own_config = {**model.config, "in_channels": wider[0], "out_channels": wider[0]}  # type: ignore[dict-item]
            new = without_label_dropout(type(model).from_config(own_config))  # type: ignore[attr-defined]
        scale = 1000.0 if self.teacher.from_library else 1.0
        student = Twin(
            new, scale=scale, shape=self.teacher.shape, classes=classes, about=as_dict(config)
        )
        source = self._source(own)
        self.fit(TwinFlow(student), source, folder=folder, progress=progress)
        return student

    @property
    def _kind(self) -> str:
        """Kind of the teacher's network, for one of another size."""
        kinds = {"UNet2DModel": "unet", "DiTTransformer2DModel": "dit"}
        return kinds.get(type(self.teacher.model).__name__, "points")

    def _halves(self, turns: Stage) -> list[Stage]:
        """FreeFlow's: the map alone, then the map with its correction, on one learning rate."""
        if self.config.method != "freeflow":
            return []
        alone = Stage(share=0.5, objective=objectives(flow_map=1.0)[0], trainable=["student.*"])
        return [
            replace(stage, share=0.5, schedule=partial(_half, self.schedule(), number))
            for number, stage in enumerate((alone, turns))
        ]

    def _phased(self, start: Velocity, folder: str, own: Tensor | None, progress: Any) -> Phased:
        """Experts that all begin as one network, trained one after the other."""
        config, teacher, critic = self.config, self.teacher, self.config.critic
        levels = (1.0, *config.student.levels)
        student = Phased(
            [copy.deepcopy(start) for _ in levels], levels, shape=teacher.shape,
            classes=teacher.classes, about=as_dict(config),
        )  # fmt: skip
        fake = self._critic(start, [])
        assert fake is not None
        self.fit(
            Phases(student, teacher, fake), self._source(own), folder=folder, progress=progress,
            stages=phases(student, updates=critic.updates, lr=critic.lr),
        )  # fmt: skip
        return student

    def _objectives(self) -> tuple[Objective, Objective]:
        config = self.config
        if config.maps:
            return objectives(flow_map=1.0, match=config.correction)
        return objectives(match=1.0, adversarial=config.adversarial, regression=config.regression)

    def _source(self, own: Tensor | None) -> Prior:
        """Noise and classes; real items and pairs where the method has them."""
        config, teacher = self.config, self.teacher
        data = self._of(self.data.items, own) if self.data and config.real else None
        pairs = self._of(self._pairs(), own) if config.regression else None
        conditions = teacher.classes if own is None else own
        return Prior(teacher.shape, config.training.batch, conditions, data, pairs)

    def _start(self, folder: str, own: Tensor | None, progress: Any) -> Velocity:
        """The teacher's weights; or a network of another size that learned to say the same."""
        options, teacher = self.config.student, self.teacher
        if not options.widths:
            return self._fresh()
        model = make_network(
            self._kind, teacher.shape, teacher.classes, widths=options.widths, depth=options.depth
        )
        scale = 1000.0 if teacher.from_library else 1.0
        net = Velocity(model, "flow", Linear(scale))
        items = self.data.items if self.data is not None else self._pairs()._replace(noise=None)
        training = replace(self.config.training, steps=options.matching_steps)
        self.fit(
            ScoreMatching(net, teacher),
            Prior(teacher.shape, training.batch, data=self._of(items, own)),
            folder=f"{folder}/matching".lstrip("/"), training=training, progress=progress,
        )  # fmt: skip
        return net

    def _fresh(self) -> Velocity:
        """A network with the teacher's weights, or a new one where the teacher has none."""
        if any(True for _ in self.teacher.model.parameters()):
            return self.teacher.trainable()
        size, classes = self.teacher.shape[0], self.teacher.classes
        return Velocity(PointNet(size, self.config.width, classes=classes))

    def _critic(self, start: Velocity, nodes: Sequence[Velocity]) -> Critic | None:
        """A critic that begins as the teacher, or as the last of DisBack's nodes."""
        if self.config.maps and not self.config.correction:
            return None
        has_weights = any(True for _ in self.teacher.model.parameters())
        origin: Velocity = nodes[-1] if nodes else self.teacher if has_weights else start
        net = origin.trainable()
        if not self.config.adversarial:
            return Critic(net)
        condition = torch.zeros(1, dtype=torch.long) if self.teacher.classes else None
        head = self.config.critic.head or bottleneck(net.model)
        return Critic(net, head, self.teacher.shape, condition)

    def _nodes(
        self, student: Student, folder: str, own: Tensor | None, progress: Any
    ) -> list[Velocity]:
        """The teacher on its way to the student's first distribution, recorded in between."""
        critic, found = self.config.critic, list[Velocity]()
        if self.config.method != "disback":
            return found
        if not any(True for _ in self.teacher.model.parameters()):
            raise ConfigError("distill: disback needs a teacher with weights, got a closed form")
        net, initial = self._fresh(), copy.deepcopy(student)
        for number in range(critic.nodes):
            self.fit(
                Degrading(net, initial), self._source(own), progress=progress,
                folder=f"{folder}/degrade/{number}".lstrip("/"),
                training=replace(self.config.training, steps=critic.node_steps, ema=0.0),
            )  # fmt: skip
            found.append(net.trainable())
        return found

    def _of(self, items: Items, own: Tensor | None) -> Items:
        """The items of some classes."""
        if own is None or items.labels is None:
            return items
        rows = torch.isin(items.labels, own).nonzero().flatten()
        return Items(*(None if part is None else part[rows] for part in items))  # type: ignore[arg-type]

    def _pairs(self) -> Items:
        """Noise and the teacher's endpoints, made once."""
        path, options = self.config.out / "pairs.safetensors", self.config.critic
        if not path.exists() and self.engine.main:
            noise, labels = drawn(
                self.teacher.shape, self.teacher.classes, options.pairs,
                self.config.training.seed, "pairs",
            )  # fmt: skip
            device, teacher = self.engine.device, copy.deepcopy(self.teacher)
            teacher.to(device)
            ends = [
                teacher.sample(
                    z.to(device), None if c is None else c.to(device), steps=options.pair_steps
                ).cpu()
                for z, c in in_batches(noise, labels, 256)
            ]
            found = {"noise": noise, "values": torch.cat(ends)}
            with atomic(path) as temporary:
                save_file(found if labels is None else {**found, "labels": labels}, temporary)
        self.engine.barrier()
        with reading(path, "pairs of noise and endpoint"):
            kept = load(path.read_bytes())
            return Items(kept["values"], kept.get("labels"), kept["noise"])


def _half(schedule: Schedule, number: int, progress: float) -> float:
    return schedule((number + progress) / 2)


def distill(
    teacher: Teacher,
    method: str = "boot",
    *,
    out: Path | str,
    data: Data | None = None,
    progress: bool = True,
    **options: Any,
) -> Generator:
    """Distil a teacher in Python, as ``potstill flow distill`` does with folders.

    Args:
        teacher: The teacher.
        method: ``boot``, ``freeflow``, ``dmd``, ``dmd2``, ``disback``, ``phased`` or ``twinflow``.
        out: Folder of the run; one that holds the same run is continued.
        data: Real items, which dmd2 and twinflow need.
        progress: Show a line while it runs.
        **options: Other fields of `DistillConfig`.

    Raises:
        ConfigError: What `DistillConfig` refuses, or a teacher that does not fit the data.
    """
    if data is not None:
        options.setdefault("data", Path("given"))
    config = DistillConfig(method=method, out=Path(out), **options)  # type: ignore[arg-type]
    job = Distill(config, teacher, data)
    job.run(progress=progress)
    found: Generator = job.student.cpu()
    return found


class Evaluate(Job[EvaluateConfig]):
    """Compare a student with its teacher: a page with a row for each sampler.

    Args:
        config: What to do.

    Raises:
        ConfigError: No student, teacher or data.
    """

    def __init__(self, config: EvaluateConfig) -> None:
        super().__init__(config)
        for name in ("student", "teacher", "data"):
            if getattr(config, name) is None:
                raise ConfigError(f"evaluate: {name} must be given, got nothing")

    def train(self, progress: Any) -> None:
        """Train the judge, where one is asked for, and compare."""
        config: Any = self.config
        judge = None
        if config.judge is not None:
            learned = load_data(config.judge, size=config.size)
            judge = Judge(learned.shape[0], max(len(learned.classes), 1))
            training = Training(
                steps=config.judge_steps, batch=64, lr=1e-3, final=0.0, seed=config.training.seed
            )
            source = Prior(learned.shape, training.batch, data=learned.items)
            self.fit(Learning(judge), source, folder="judge", training=training, progress=progress)
        self.report = evaluate(
            load_student(config.student), load_teacher(config.teacher, guidance=config.guidance),
            load_data(config.data, size=config.size).items, judge=judge, samples=config.samples,
            steps=config.steps, seed=config.training.seed, batch=config.training.batch,
            device=self.engine.device,
        )  # fmt: skip

    def export(self, folder: Path, history: Sequence[dict[str, float]]) -> Report:
        """The page."""
        return self.report
