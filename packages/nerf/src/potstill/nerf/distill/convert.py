"""`convert`: any field into any other, from a checkpoint and a pose prior alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import nn

from potstill.core import (
    ConfigError,
    DataError,
    Distiller,
    Engine,
    NonFiniteError,
    Run,
    Schedule,
    ShapeError,
    atomic,
    cosine,
    count_parameters,
    fit,
    seed_all,
)
from potstill.core.engine import MakeOptimizer
from potstill.core.measure import Clock
from potstill.nerf.cameras import Cameras
from potstill.nerf.distill.distiller import FieldToField
from potstill.nerf.distill.evaluation import Evaluation, Stopwatch, on
from potstill.nerf.distill.objective import Progression
from potstill.nerf.distill.priors import NearPrior, PosePrior
from potstill.nerf.distill.results import Conversion
from potstill.nerf.distill.virtual import VirtualRays, rays_from
from potstill.nerf.fields.base import Field
from potstill.nerf.fields.make import make_field
from potstill.nerf.from_images import train_field
from potstill.nerf.optim import RATES, row_adam
from potstill.nerf.render.march import march
from potstill.nerf.scenes.scene import Scene, Split

__all__ = ["Transfer", "convert", "hand_over", "student_of", "transfer"]


class Transfer(NamedTuple):
    """What a student was given before its first step.

    Attributes:
        occupied: Share of occupied cells, from the teacher's grid.
        head: True where block 2 was copied.
    """

    occupied: float
    head: bool


def student_of(teacher: Field, kind: str, config: Any = None) -> Field:
    """A fresh student in the space of a teacher; `transfer` gives it the rest.

    A ``grid`` stores only the vertices around what the teacher says is occupied.

    Args:
        teacher: A trained field.
        kind: Kind of the student.
        config: Size of the student; the default of the kind when None.
    """
    cells = teacher.occupancy.dilated()
    return make_field(kind, teacher.space, config, cells=cells, **teacher.options)


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
        head: Copy block 2, too.

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
    progression: Progression | None = None,
    *,
    config: Any = None,
    clock: Clock = "wall",
    lr: float | None = None,
    optimizer: Callable[[Distiller], MakeOptimizer] = row_adam,
    schedule: Schedule | None = None,
    samples: int = 6144,
    rays: int = 4096,
    inherit: bool = True,
    project: bool = True,
    every: int = 0,
    truth: Split | None = None,
    run: Run | Path | str | None = None,
    engine: Engine | None = None,
    seed: int = 0,
    **options: Any,
) -> tuple[Field, Conversion]:
    """Turn a trained field into one of another kind, without an image.

    Source: Fang et al., "One is All", AAAI 2023 (PVD), and "PVD-AL", arXiv 2304.04012. A student
    does not pass its teacher this way; where there are images, `hand_over` goes on from here.

    Args:
        teacher: A trained field; it is not changed.
        kind: Kind of the student; or a student, to which `transfer` is applied.
        views: A pose prior, or cameras whose neighbourhood is one (their images are not needed).
        progression: Terms and when they count; `Progression` with its defaults when None.
        config: Size of the student.
        clock: Seconds of the wall or of the CPU; evaluating the student does not count.
        lr: Learning rate; that of the kind when None.
        optimizer: Function of a distiller that gives its optimizer factory.
        schedule: Factor of the learning rate; a cosine to a fiftieth when None.
        samples: Samples a step.
        rays: Rays drawn a step, of which as many are used as ``samples`` allow.
        inherit: Begin with the teacher's block 2 where that fits.
        project: Project features of another width, by a linear map that is left behind; else such
            a pair is refused.
        every: Steps between evaluations, in which the best weights so far are kept; 0 for none.
        truth: Views with images, for the evaluation only.
        run: Folder of checkpoints, history and curves; a killed conversion continues there.
        engine: Device and processes. Several need ``find_unused=True`` where features come first.
        seed: Seed of weights, poses and rays.
        **options: Other options of `potstill.core.fit`: ``steps`` and ``seconds`` (a budget is
            needed), ``progress`` and so on.

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
    prior = views if isinstance(views, PosePrior) else NearPrior(views)
    if isinstance(kind, str):
        seed_all("student", seed)
        kind = student_of(teacher, kind, config)
    student = kind
    given = transfer(teacher, student, head=inherit)
    source = VirtualRays(prior, rays, seed=seed)
    _check_sight(source, student)
    distiller = FieldToField(
        student, teacher, progression or Progression(), samples=samples, prior=prior,
        views=source.views, steps=source.steps, projector=_projector(teacher, student, project),
        seed=seed,
    )  # fmt: skip
    several = engine is not None and engine.world > 1 and not engine.find_unused
    if several and distiller.progression.feature_until:
        raise ConfigError(
            "convert: engine must be made with find_unused=True, got False; block 2 takes no part "
            "while only features count"
        )
    watch, evaluation = Stopwatch(clock), Evaluation(teacher, prior, truth, seed)
    assert distiller.teacher is not None
    with ExitStack() as stack:
        engine = engine or stack.enter_context(Engine())
        stack.callback(distiller.teacher.release)  # where `fit` refuses its options, too
        stack.enter_context(_saving_a_broken_batch(source, run))
        history = fit(
            distiller,
            source,
            clock=watch,
            lr=lr or RATES[student.kind],
            optimizer=optimizer(distiller),
            schedule=schedule or cosine(final=0.02, warmup=0.01),
            validation=evaluation.validation(every, watch),
            run=run,
            engine=engine,
            seed=seed,
            **options,
        )
        with on(engine.device, student, teacher):
            scores, pictures = evaluation(student), evaluation.pictures(student)
    return student, Conversion(
        teacher=teacher.kind,
        student=student.kind,
        progression=distiller.progression,
        clock=clock,
        rows=list(history),
        occupied=given.occupied,
        head=given.head,
        parameters=count_parameters(student),
        bytes=sum(v.nbytes for v in student.state_dict().values()),
        scores=scores,
        pictures=pictures,
    )


def hand_over(
    student: Field, scene: Scene, **options: Any
) -> tuple[Field, Sequence[dict[str, float]]]:
    """Fine-tune a converted student on images, where there are some after all.

    The student keeps the occupancy grid that it was given: outside of it, it has learned nothing.

    Args:
        student: Student from `convert`.
        scene: A scene with images.
        **options: Options of `train_field`, such as ``steps``, ``seconds`` and ``lr``.

    Returns:
        The field and the history.

    Raises:
        DataError: No images.
    """
    if scene.train.images is None:
        raise DataError("hand_over: scene must have images, got poses only; keep the student")
    return train_field(student, scene, refresh=False, **options)


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


def _check_sight(source: VirtualRays, field: Field) -> None:
    """Refuse a prior whose cameras see nothing, before anything starts."""
    batch = VirtualRays(source.prior, 4096, views=64, seed=source.seed)(0)
    device = field.occupancy.binaries.device
    origins, directions = rays_from(batch.poses[batch.view], batch.local)
    rays = field.space.trace(origins.to(device), directions.to(device))
    if not bool(march(rays, field.space, field.occupancy).counts.any()):
        raise DataError(
            "convert: the pose prior must look at occupied space, got 4,096 rays without a "
            "sample; is it in the coordinates of the field?"
        )


@contextmanager
def _saving_a_broken_batch(source: VirtualRays, run: Run | Path | str | None) -> Iterator[None]:
    """Keep the batch that broke a run: it is a pure function of the step."""
    try:
        yield
    except NonFiniteError as error:
        if run is None:
            raise NonFiniteError(f"{error}; give a run to have the batch saved") from error
        folder = run.folder if isinstance(run, Run) else Path(run)
        lines = (folder / "history.jsonl").read_text().splitlines()
        path = folder / "broken-batch.safetensors"
        batch = source(len(lines))
        with atomic(path) as temporary:
            save_file({k: v.contiguous() for k, v in batch._asdict().items()}, temporary)
        raise NonFiniteError(f"{error}; the batch is in {path}") from error
