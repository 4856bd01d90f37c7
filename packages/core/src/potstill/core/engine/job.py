"""Jobs: a configuration that becomes a folder."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar

import torch

from potstill.core.command.config import record
from potstill.core.engine.device import Engine
from potstill.core.engine.fit import claim, fit
from potstill.core.engine.history import Row
from potstill.core.engine.plan import MakeOptimizer, Stage, Validation
from potstill.core.engine.training import Training
from potstill.core.errors import ConfigError, nearest
from potstill.core.files import atomic
from potstill.core.measure.report import Report
from potstill.core.seed import seed_all
from potstill.core.vocabulary.distiller import Distiller
from potstill.core.vocabulary.schedule import Schedule, cosine

__all__ = ["Job", "JobConfig", "Result", "fit_with"]

Progress = bool | str | Callable[[Row, float], None]

OPTIMIZERS: Mapping[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": partial(torch.optim.Adam, fused=True),
    "adamw": partial(torch.optim.AdamW, fused=True),
    "sgd": partial(torch.optim.SGD, momentum=0.9, nesterov=True),
}


class JobConfig(Protocol):
    """A frozen dataclass with the folder of the run and the options of training."""

    @property
    def out(self) -> Path:
        """Folder of the run."""
        ...

    @property
    def training(self) -> Training:
        """Budget, optimizer, precision, device and seed."""
        ...


C = TypeVar("C", bound=JobConfig)


class Result(NamedTuple):
    """What a job leaves behind.

    Attributes:
        folder: Folder of the run.
        summary: Figures of ``result.json`` and of the table.
        history: Rows of `fit`, of all its calls in order.
        report: Page of the job, where it has one.
    """

    folder: Path
    summary: dict[str, Any]
    history: Sequence[Row]
    report: Report | None


class Job(ABC, Generic[C]):
    """A configuration that becomes a folder: source, distiller, validation, export.

    A domain writes these four; `run` does the rest once for all domains: it records the whole
    configuration as ``config.yaml``, makes the engine, trains, exports on the main process, and
    writes ``result.json``. A folder that holds a run of the same configuration is continued.

    Args:
        config: A frozen dataclass with ``out`` and ``training``, checked.

    Attributes:
        config: The configuration.
        engine: Device and processes, while the job runs.
        optimizers: Optimizer factories by the name that ``training.optimizer`` may have.
        exit_code: Exit code of the command; a job that checks limits sets it to 1.
        movable: Options that may differ when a run is continued, as dotted names.

    Raises:
        ConfigError: The folder holds a run with another configuration.
        CheckpointError: Another process writes into the folder at the moment.
    """

    optimizers: ClassVar[Mapping[str, Callable[..., torch.optim.Optimizer]]] = OPTIMIZERS
    movable: ClassVar[tuple[str, ...]] = (
        "out", "training.device", "training.parallel", "training.workers",
        "training.checkpoint_minutes", "training.checkpoint_asynchronous", "training.tensorboard",
    )  # fmt: skip
    find_unused: bool = False
    exit_code: int = 0
    engine: Engine

    def __init__(self, config: C) -> None:
        self.config = config
        self.history: Sequence[Row] = []

    # --- what a domain writes -------------------------------------------------------------------

    def source(self) -> Any:
        """What a step trains on: anything that `fit` takes as batches."""
        raise self._unwritten("source")

    def distiller(self) -> Distiller:
        """Student, teacher and objective; the global streams are seeded before."""
        raise self._unwritten("distiller")

    def validation(self) -> Validation | None:
        """How the best weights are chosen; by default the last ones stay."""
        return None

    @abstractmethod
    def export(self, folder: Path, history: Sequence[Row]) -> Report | Mapping[str, Any]:
        """Write what is deployed into ``folder``, and say what was reached; main process only."""

    # --- what a domain may write ----------------------------------------------------------------

    def stages(self) -> Sequence[Stage]:
        """Intervals with their own objective, parameters or players; one over everything."""
        return ()

    def optimizer(self, distiller: Distiller) -> MakeOptimizer:
        """The optimizer that ``training.optimizer`` names, with its weight decay.

        Raises:
            ConfigError: An unknown name.
        """
        return _optimizer(self.config.training, self.optimizers)

    def lr(self) -> float:
        """The peak learning rate where ``training.lr`` names none."""
        return 1e-3

    def schedule(self) -> Schedule:
        """Half a cosine from the peak to ``training.final`` of it, after the warm-up."""
        return cosine(self.config.training.final, self.config.training.warmup)

    def train(self, progress: Progress) -> None:
        """Train; jobs of several parts call `fit` for each instead."""
        self.fit(self.distiller(), self.source(), validation=self.validation(),
                 stages=self.stages(), progress=progress)  # fmt: skip

    # --- what is done once ----------------------------------------------------------------------

    def run(self, progress: Progress = True) -> Result:
        """Do the job, or continue it.

        Args:
            progress: As of `fit`.

        Returns:
            Folder, figures, history and report; the figures only on the main process.
        """
        config, training = self.config, self.config.training
        with ExitStack() as stack:
            self.engine = stack.enter_context(
                Engine(training.device, training.precision, training.parallel, self.find_unused)
            )
            if self.engine.sharded:
                raise ConfigError(
                    "Training: parallel must be ddp in a job, got fsdp: what is exported are whole "
                    "weights; potstill.core.fit itself trains sharded"
                )
            claim(config.out, self.engine, stack)
            if self.engine.main:
                stack.enter_context(_recorded(config, self.movable))
            seed_all("job", training.seed)
            self.history = []
            self.train(progress)
            if not self.engine.main:
                return Result(config.out, {}, self.history, None)
            found = self.export(config.out, self.history)
        report = found if isinstance(found, Report) else None
        summary = self._summary({} if isinstance(found, Report) else found)
        if report is not None:
            report.save(config.out)
        return Result(config.out, summary, self.history, report)

    def fit(
        self,
        distiller: Distiller,
        batches: Any,
        *,
        folder: str = "",
        training: Training | None = None,
        progress: Progress = True,
        curves: bool = True,
        **options: Any,
    ) -> Sequence[Row]:
        """`potstill.core.fit` with the options of the job.

        Args:
            distiller: Student, teacher and objective.
            batches: Anything that `fit` takes.
            folder: Folder of this part below ``out``, in jobs of several parts.
            training: Options of this part; those of the job by default.
            progress: As of `fit`.
            curves: As of `Run`.
            **options: Other options of `fit`; they win over ``training``.
        """
        own = training or self.config.training
        job = self if training is None else _with(self, training)
        settings: dict[str, Any] = {
            "lr": own.lr or self.lr(), "optimizer": job.optimizer(distiller),
            "schedule": job.schedule(), "engine": self.engine, "progress": progress,
            "run": replace(own.run(self.config.out / folder), curves=curves),
        }  # fmt: skip
        rows = fit_with(own, distiller, batches, **{**settings, **options})
        self.history = [*self.history, *rows] if self.history else rows
        return rows

    def _unwritten(self, name: str) -> NotImplementedError:
        return NotImplementedError(
            f"{type(self).__name__}: write {name}(), or train() where a job has several parts"
        )

    def _summary(self, found: Mapping[str, Any]) -> dict[str, Any]:
        """Write ``result.json``: steps, seconds, the last losses, and what was found."""
        last = self.history[-1] if self.history else {}
        losses = {k: v for k, v in last.items() if k not in ("step", "stage", "lr")}
        summary = {"steps": len(self.history), **losses, **found}
        with atomic(self.config.out / "result.json") as temporary:
            temporary.write_text(json.dumps(summary, indent=1, default=str), encoding="utf-8")
        return summary


@contextmanager
def _recorded(config: JobConfig, movable: tuple[str, ...]) -> Iterator[None]:
    """``config.yaml``; gone again when the job fails before there is anything to continue.

    Else a wrong path or name would claim the folder, and the corrected command be refused.
    """
    path = config.out / "config.yaml"
    fresh = not path.exists()
    record(config, config.out, ignore=movable)
    try:
        yield
    except BaseException:
        if fresh and next(config.out.rglob("checkpoints/step-*"), None) is None:
            path.unlink(missing_ok=True)
        raise


def fit_with(
    training: Training,
    distiller: Distiller,
    batches: Any,
    *,
    engine: Engine | None = None,
    **options: Any,
) -> Sequence[Row]:
    """`potstill.core.fit` with options of training, where there is no job.

    Args:
        training: Budget, optimizer, precision, device and seed.
        distiller: Student, teacher and objective.
        batches: Anything that `fit` takes.
        engine: Device and processes; those that ``training`` names by default.
        **options: Other options of `fit`; they win over ``training``.

    Returns:
        Rows of `fit`.

    Raises:
        ConfigError: An unknown optimizer, or what `fit` refuses.
    """
    settings: dict[str, Any] = {
        "steps": training.steps, "epochs": training.epochs, "seconds": training.seconds,
        "accumulate": training.accumulate, "clip": training.clip or None,
        "ema": training.ema or None, "seed": training.seed,
    }  # fmt: skip
    settings["schedule"] = cosine(training.final, training.warmup)
    settings |= {"lr": training.lr} if training.lr else {}
    if "optimizer" not in options:
        settings["optimizer"] = _optimizer(training, OPTIMIZERS)
    if isinstance(run := options.get("run"), str | Path):
        options["run"] = training.run(Path(run))
    with ExitStack() as stack:
        engine = engine or stack.enter_context(
            Engine(training.device, training.precision, training.parallel)
        )
        return fit(distiller, batches, engine=engine, **{**settings, **options})


def _optimizer(
    training: Training, known: Mapping[str, Callable[..., torch.optim.Optimizer]]
) -> MakeOptimizer:
    if training.optimizer not in known:
        raise ConfigError(
            f"Training: optimizer must be a known one, got {training.optimizer!r}; "
            f"{nearest(training.optimizer, known)}"
        )
    return partial(known[training.optimizer], weight_decay=training.weight_decay or 0.0)


def _with(job: Job[Any], training: Training) -> Job[Any]:
    """The job with other options of training."""
    import copy

    other = copy.copy(job)
    other.config = replace(job.config, training=training)
    return other
