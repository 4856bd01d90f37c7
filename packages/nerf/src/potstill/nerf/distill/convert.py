"""`convert`: any field into any other, from a checkpoint and a pose prior alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from potstill.core import (
    ConfigError,
    DataError,
    Engine,
    NonFiniteError,
    Run,
    ShapeError,
    Validation,
    atomic,
    cosine,
    count_parameters,
    fit,
    generator,
    psnr,
    seed_all,
)
from potstill.nerf.cameras import Cameras
from potstill.nerf.distill.distiller import FieldToField, VirtualRays
from potstill.nerf.distill.objective import Schedule
from potstill.nerf.distill.priors import NearPrior, PosePrior
from potstill.nerf.distill.results import Conversion, picture
from potstill.nerf.fields.base import Field
from potstill.nerf.fields.grid import GridConfig, GridField
from potstill.nerf.fields.make import make_field
from potstill.nerf.optim import RowAdam
from potstill.nerf.render.image import render_image
from potstill.nerf.render.march import march
from potstill.nerf.scenes.scene import Scene, Split
from potstill.nerf.training import RATES, score, train_field

__all__ = ["Transfer", "Watch", "convert", "hand_over", "student_of", "transfer"]


class Transfer(NamedTuple):
    """What a student was given before its first step.

    Attributes:
        occupied: Share of occupied cells, from the teacher's grid.
        head: Whether block 2 was copied.
    """

    occupied: float
    head: bool


class Watch:
    """A clock for `fit` that can be stopped, so that judging a student costs it no budget.

    Args:
        kind: "wall", or "cpu" for the CPU-seconds of this process.

    Example:
        >>> watch = Watch("cpu")
        >>> with watch.stopped():
        ...     before = watch()
        >>> watch() >= before
        True
    """

    def __init__(self, kind: Literal["wall", "cpu"] = "wall") -> None:
        if kind not in ("wall", "cpu"):
            raise ConfigError(f"Watch: kind must be wall or cpu, got {kind!r}")
        self._now = time.monotonic if kind == "wall" else time.process_time
        self._lost = 0.0
        self._since: float | None = None

    def __call__(self) -> float:
        """Seconds that counted."""
        return (self._now() if self._since is None else self._since) - self._lost

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Time that does not count."""
        self._since = self._now()
        try:
            yield
        finally:
            self._lost += self._now() - self._since
            self._since = None


def student_of(teacher: Field, kind: str, config: Any = None) -> Field:
    """A fresh student in the space of a teacher; `transfer` gives it the rest.

    A ``grid`` stores only the vertices around what the teacher says is occupied.

    Args:
        teacher: A trained field.
        kind: Of the student.
        config: Its size; the default of the kind when None.
    """
    options: dict[str, Any] = {
        "occupancy": teacher.occupancy.size,
        "activation": teacher.activation,
        "backend": teacher.backend,
    }
    if kind == GridField.kind:
        if config is not None and not isinstance(config, GridConfig):
            raise ConfigError(
                f"student_of: config of 'grid' must be GridConfig, got {type(config).__name__}"
            )
        cells = teacher.occupancy.dilated()
        return GridField(config, teacher.space, cells=cells, **options)
    return make_field(kind, teacher.space, config, **options)


@torch.no_grad()
def transfer(teacher: Field, student: Field, *, head: bool = True) -> Transfer:
    """Give a student the teacher's occupancy grid, and block 2 where both have the same.

    Without the grid a student would sample empty space, and what it never learns there would show:
    the grid is part of every conversion. Block 2 of the kinds with features is the same network
    behind the same 16 numbers, so that a copy of it makes the features of the teacher the right
    ones for the student.

    Args:
        teacher: A trained field.
        student: A field with an occupancy grid of the same size.
        head: Whether block 2 is copied, too.

    Raises:
        DataError: The teacher's grid is empty, or was never computed.
        ShapeError: The grids differ in size.
    """
    teacher.occupancy.check("transfer")
    if not bool(teacher.occupancy.occs.any()) and teacher.occupancy.share() == 1:
        raise DataError(
            "transfer: the teacher's occupancy grid must have been computed, got a fresh one; call "
            "teacher.refresh(torch.Generator(), everywhere=True)"
        )
    if teacher.occupancy.size != student.occupancy.size:
        raise ShapeError(
            f"transfer: the student's occupancy grid must have {teacher.occupancy.size} cells an "
            f"axis, got {student.occupancy.size}"
        )
    student.occupancy.load_state_dict(teacher.occupancy.state_dict())
    ours, theirs = (getattr(field, "color", None) for field in (student, teacher))
    copied = False
    if head and isinstance(ours, nn.Module) and isinstance(theirs, nn.Module):
        shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (ours, theirs)]
        if shapes[0] == shapes[1]:
            ours.load_state_dict(theirs.state_dict())
            copied = True
    return Transfer(student.occupancy.share(), copied)


def convert(
    teacher: Field,
    kind: str | Field,
    views: Cameras | PosePrior,
    schedule: Schedule | None = None,
    *,
    config: Any = None,
    steps: int | None = None,
    seconds: float | None = None,
    clock: Literal["wall", "cpu"] = "wall",
    lr: float | None = None,
    samples: int = 6144,
    rays: int = 4096,
    inherit: bool = True,
    project: bool = True,
    every: int = 0,
    truth: Split | None = None,
    run: Run | Path | str | None = None,
    engine: Engine | None = None,
    seed: int = 0,
    progress: bool | str | Callable[[dict[str, float], float], None] = True,
) -> tuple[Field, Conversion]:
    """Turn a trained field into one of another kind, without an image.

    Source: Fang et al., "One is All", AAAI 2023 (PVD), and "PVD-AL", arXiv 2304.04012. A student
    does not pass its teacher this way; where there are images, `hand_over` goes on from here.

    Args:
        teacher: A trained field; it is not changed.
        kind: Of the student; or a student, to which `transfer` is applied.
        views: A pose prior, or cameras whose neighbourhood is one (their images are not needed).
        schedule: What is learned when; `Schedule` with its defaults when None.
        config: Size of the student.
        steps: Budget in steps; and/or
        seconds: in seconds.
        clock: Whether seconds are the wall's or of the CPU; judging the student does not count.
        lr: Learning rate; that of the kind when None.
        samples: Samples a step.
        rays: Rays drawn a step, of which as many are used as ``samples`` allow.
        inherit: Whether the student begins with the teacher's block 2 where that fits.
        project: Whether features of another width are projected, by a linear map that is left
            behind; else such a pair is refused.
        every: Steps between judgements, in which the best weights so far are kept; 0 for none.
        truth: Views with images, only to judge by.
        run: Folder of checkpoints, history and curves; a killed conversion continues there.
        engine: Device and processes. Several need ``find_unused=True`` where features come first.
        seed: Of everything random.
        progress: As in `potstill.core.fit`.

    Returns:
        The student, and the report.

    Raises:
        DataError: An occupancy grid that is empty or was never computed; rays that never meet it.
        ShapeError: Features of different widths without ``project``.
        ConfigError: No budget, an unknown kind, another space.
        NonFiniteError: A loss is not finite; with a ``run``, the batch lies in its folder.

    Example:
        >>> from potstill.nerf import load_scene, make_field, train_field
        >>> scene = load_scene("analytic", downsample=6)
        >>> teacher = make_field("hash", scene.space)
        >>> teacher, _ = train_field(teacher, scene, steps=9, progress=False)
        >>> student, report = convert(teacher, "cp", scene.train.cameras, steps=3, progress=False)
        >>> student.kind, len(report.rows)
        ('cp', 3)
    """
    schedule = schedule or Schedule()
    prior = views if isinstance(views, PosePrior) else NearPrior(views)
    if isinstance(kind, str):
        seed_all("student", seed)
        student = student_of(teacher, kind, config)
    else:
        student = kind
    trained = [(p, p.requires_grad) for p in teacher.parameters()]
    given = transfer(teacher, student, head=inherit)
    _check_sight(prior, student, seed)
    source = VirtualRays(prior, rays, seed=seed)
    distiller = FieldToField(
        student, teacher, schedule, samples=samples, prior=prior, views=source.views,
        steps=source.steps, projector=_projector(teacher, student, project), seed=seed,
    )  # fmt: skip
    several = engine is not None and engine.world > 1 and not engine.find_unused
    if several and distiller.schedule.feature_until:
        raise ConfigError(
            "convert: engine must be made with find_unused=True, got False; block 2 takes no part "
            "while only features count"
        )
    watch = Watch(clock)
    judge = Judge(teacher, prior, truth, seed)
    try:
        history = fit(
            distiller,
            source,
            steps=steps,
            seconds=seconds,
            clock=watch,
            lr=lr or RATES[student.kind],
            optimizer=partial(RowAdam, scale=partial(_rate, student)),
            schedule=cosine(final=0.02, warmup=0.01),
            validation=judge.validation(every, watch),
            run=run,
            engine=engine,
            seed=seed,
            progress=progress,
        )
    except NonFiniteError as error:
        raise NonFiniteError(f"{error}{_save_batch(source, run)}") from error
    finally:
        for parameter, flag in trained:  # a student may be a teacher, and then learn on
            parameter.requires_grad_(flag)
    return student, Conversion(
        teacher=teacher.kind,
        student=student.kind,
        schedule=distiller.schedule,
        clock=clock,
        rows=history,
        occupied=given.occupied,
        head=given.head,
        parameters=count_parameters(student),
        bytes=sum(v.nbytes for v in student.state_dict().values()),
        scores=judge(student),
        pictures=judge.pictures(student),
    )


def hand_over(
    student: Field, scene: Scene, *, lr: float | None = None, **options: Any
) -> tuple[Field, list[dict[str, float]]]:
    """Fine-tune a converted student on images, where there are some after all.

    The student keeps the occupancy grid that it was given: outside of it, it has learned nothing.

    Args:
        student: From `convert`.
        scene: With images.
        lr: Learning rate; that of the kind when None.
        **options: Of `train_field`, such as ``steps``, ``seconds`` and ``clock``.

    Returns:
        The field and the history.

    Raises:
        DataError: No images.
    """
    if scene.train.images is None:
        raise DataError("hand_over: scene must have images, got poses only; keep the student")
    return train_field(student, scene, lr=lr, refresh=False, **options)


class Judge:
    """Decibels of a student: to its teacher on fixed poses of the prior, and to images.

    Args:
        teacher: What it shall look like.
        prior: Where it is looked at from.
        truth: Views with images; none when None.
        seed: Of the poses.
        views: How many of each.
    """

    def __init__(
        self, teacher: Field, prior: PosePrior, truth: Split | None, seed: int, views: int = 3
    ) -> None:
        self.teacher, self.truth, self.views = teacher, truth, views
        self.cameras = prior.cameras(views, generator("judge", seed))
        self._targets: list[Tensor] = []

    def __call__(self, student: Field) -> dict[str, float]:
        """PSNR to the teacher, and to the images where there are some, in dB."""
        pairs = zip(self._images(student), self.targets(), strict=True)
        values = [float(psnr(a, b)) for a, b in pairs]
        scores = {"teacher": sum(values) / len(values)}
        if self.truth is not None:
            scores["truth"] = score(student, self.truth, self.views)
        return scores

    def targets(self) -> list[Tensor]:
        """What the teacher shows, rendered once."""
        if not self._targets:
            self._targets = self._images(self.teacher)
        return self._targets

    def validation(self, every: int, watch: Watch) -> Validation | None:
        """For `fit`: the student that is nearest to its teacher stays; the watch stands still."""
        if not every:
            return None

        def judged(student: nn.Module) -> dict[str, float]:
            assert isinstance(student, Field)
            with watch.stopped():
                return self(student)

        return Validation(judged, every, key="teacher", ties="latest")

    def pictures(self, student: Field) -> list[dict[str, str]]:
        """Teacher and student from each pose, and the images with both, as PNG in text."""
        rows = [
            {"teacher": picture(theirs), "student": picture(ours)}
            for theirs, ours in zip(self.targets(), self._images(student), strict=True)
        ]
        if self.truth is None:
            return rows
        for view in range(min(self.views, len(self.truth.cameras))):
            images = {"truth": self.truth.image(view)}
            for name, field in (("teacher", self.teacher), ("student", student)):
                images[name] = _render(field, self.truth.cameras, view)
            rows.append({name: picture(image) for name, image in images.items()})
        return rows

    def _images(self, field: Field) -> list[Tensor]:
        return [_render(field, self.cameras, view) for view in range(self.views)]


def _render(field: Field, cameras: Cameras, view: int) -> Tensor:
    return render_image(field, cameras, view, field.space, field.occupancy)[0]


def _rate(student: Field, name: str) -> float:
    """The student's own factor of the learning rate; criteria learn at the full rate."""
    own = name.removeprefix("student.")
    return student.rate(own) if own != name else 1.0


def _projector(teacher: Field, student: Field, project: bool) -> nn.Module | None:
    """A linear map of features where both have some, of different widths."""
    if not (teacher.has_features and student.has_features):
        return None
    with torch.no_grad():
        probe = torch.zeros(1, 3)
        theirs, ours = (
            int(field.features(probe.to(next(field.parameters()))).shape[1])
            for field in (teacher, student)
        )
    if theirs == ours:
        return None
    if not project:
        raise ShapeError(
            f"convert: the student's features must be {theirs} wide like the teacher's, got "
            f"{ours}; pass project=True to learn a projection"
        )
    return nn.Linear(ours - 1, theirs - 1, bias=False)


def _check_sight(prior: PosePrior, field: Field, seed: int) -> None:
    """Refuse a prior whose cameras see nothing, before anything starts."""
    batch = VirtualRays(prior, 4096, views=64, seed=seed)(0)
    pose = batch.poses[batch.view]
    directions = (pose[:, :3, :3] @ batch.local[:, :, None])[..., 0]
    device = field.occupancy.binaries.device
    rays = field.space.trace(pose[:, :3, 3].to(device), directions.to(device))
    counts = march(rays, field.space, field.occupancy).counts
    if not bool((counts > 0).any()):
        raise DataError(
            "convert: the pose prior must look at occupied space, got 4,096 rays without a "
            "sample; is it in the coordinates of the field?"
        )


def _save_batch(source: VirtualRays, run: Run | Path | str | None) -> str:
    """Keep the batch that broke a run: it is a pure function of the step."""
    if run is None:
        return "; give a run to have the batch saved"
    folder = run.folder if isinstance(run, Run) else Path(run)
    lines = (folder / "history.jsonl").read_text().splitlines()
    path = folder / "broken-batch.safetensors"
    batch = source(len(lines))
    with atomic(path) as temporary:
        save_file({k: v.contiguous() for k, v in batch._asdict().items()}, temporary)
    return f"; the batch is in {path}"
