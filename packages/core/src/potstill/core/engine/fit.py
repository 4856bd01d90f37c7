"""`fit`: the only training loop of potstill."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Adam, Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from potstill.core.engine.batches import Batches, Shard, stream
from potstill.core.engine.device import Engine
from potstill.core.engine.history import History, Row, Show, plot_curves
from potstill.core.engine.plan import Plan, Run, Stage, Validation
from potstill.core.errors import CheckpointError, ConfigError, Interrupted, NonFiniteError
from potstill.core.files import atomic
from potstill.core.seed import seed_all
from potstill.core.store import checkpoint
from potstill.core.vocabulary.distiller import Distiller
from potstill.core.vocabulary.objective import Losses
from potstill.core.vocabulary.schedule import Schedule, constant

__all__ = ["fit"]

MakeOptimizer = Callable[..., Optimizer]
"""Called as ``optimizer([(name, parameter), ...], lr=lr)``; torch's optimizers are such."""


def fit(
    distiller: Distiller,
    batches: Any,
    *,
    steps: int | None = None,
    seconds: float | None = None,
    clock: Callable[[], float] = time.monotonic,
    lr: float = 1e-3,
    optimizer: MakeOptimizer = Adam,
    schedule: Schedule | None = None,
    accumulate: int = 1,
    clip: float | None = None,
    ema: float | None = None,
    stages: Sequence[Stage] = (),
    validation: Validation | None = None,
    run: Run | Path | str | None = None,
    engine: Engine | None = None,
    seed: int = 0,
    progress: bool | str | Callable[[Row, float], None] = True,
) -> list[Row]:
    """Train the student of ``distiller`` and the modules in its objective.

    Before each step the global random streams are set from (seed, step, rank), and the data order
    is a pure function of (seed, step, rank), so an interrupted run goes on as if nothing had
    happened, and neither validation nor logging changes the result. When it is over the student
    has its best validated weights, else its moving average if there is one, else the last, and is
    in eval mode.

    Args:
        distiller: Student, objective and teacher; moved to the engine's device.
        batches: `Batches`; or a sequence of ready batches, cycled (full batch: ``[data]``); or a
            function ``draw(step, rank, world)``. With ``accumulate`` they count micro-batches.
        steps: Budget in steps of the optimizer.
        seconds: Budget in seconds of ``clock``; with ``steps`` whichever ends first.
        clock: Tells the time that the budget and the rows count: the wall's, or for instance
            ``time.process_time`` for CPU-seconds, or a watch that stands still while one evaluates.
        lr: Learning rate, > 0.
        optimizer: Factory, called as ``optimizer([(name, parameter), ...], lr=lr)``.
        schedule: Factor of the learning rate as a function of progress in [0, 1].
        accumulate: Micro-batches per step; their gradients are averaged.
        clip: Largest total norm of the gradient; the norm is logged as ``grad_norm``.
        ema: Decay of a moving average of the student, in (0, 1).
        stages: Intervals with their own objective, parameters and learning rate.
        validation: How to choose the best weights, and when to stop early.
        run: Folder for checkpoints, history and curves; a run found there is continued.
        engine: Device, precision and processes; ``Engine()`` by default.
        seed: Seeds data order, augmentation and dropout.
        progress: Live line: off, on, on with a label, or a function of (row, share done).

    Returns:
        One row a step: ``step``, ``loss``, the unweighted terms by name, ``lr``, ``seconds``,
        validation scores, and ``stage`` and ``grad_norm`` where they apply.

    Raises:
        ConfigError: No budget, or options that contradict each other.
        NonFiniteError: A loss is NaN or infinite; names step, terms and samples.
        CheckpointError: The folder holds a run with another seed, data, model or objective.
        Interrupted: SIGTERM or SIGINT came; a checkpoint has been written.

    Example:
        >>> import torch.nn.functional as F
        >>> from potstill.core import Distiller, Objective
        >>> class Regression(Distiller):
        ...     def forward(self, batch, step):
        ...         return self.objective(step, task=(self.student(batch[0]), batch[1]))
        >>> x = torch.linspace(-1, 1, 16)[:, None]
        >>> distiller = Regression(nn.Linear(1, 1), Objective(task=(1.0, F.mse_loss)))
        >>> history = fit(distiller, [(x, 2 * x)], steps=200, lr=0.1, progress=False)
        >>> history[-1]["task"] < 1e-3 < history[0]["task"]
        True
    """
    if not lr > 0:
        raise ConfigError(f"fit: lr must be positive, got {lr}")
    if accumulate < 1:
        raise ConfigError(f"fit: accumulate must be at least 1, got {accumulate}")
    if ema is not None and not 0 < ema < 1:
        raise ConfigError(f"fit: ema must be in (0, 1), got {ema}")
    if isinstance(run, str | Path):
        run = Run(Path(run))
    with ExitStack() as stack:
        engine = engine or stack.enter_context(Engine())
        if ema is not None and engine.sharded:
            raise ConfigError("fit: ema needs every process to hold the student; use ddp, not fsdp")
        loop = _Loop(
            distiller=distiller,
            batches=batches,
            plan=Plan(steps, seconds, stages),
            clock=clock,
            default=Stage(share=1.0, lr=lr, schedule=schedule or constant()),
            optimizer=optimizer,
            accumulate=accumulate,
            clip=clip,
            ema=ema,
            validation=validation,
            run=run,
            engine=engine,
            seed=seed,
        )
        stack.callback(loop.close)
        return loop.train(stack.enter_context(_showing(progress, engine)))


class _Loop:
    """The state of a run, and the verbs that change it."""

    def __init__(
        self,
        *,
        distiller: Distiller,
        batches: Any,
        plan: Plan,
        clock: Callable[[], float],
        default: Stage,
        optimizer: MakeOptimizer,
        accumulate: int,
        clip: float | None,
        ema: float | None,
        validation: Validation | None,
        run: Run | None,
        engine: Engine,
        seed: int,
    ) -> None:
        self.distiller = distiller.to(engine.device)
        self.batches = batches
        self.plan = plan
        self.now = clock
        self.default = default
        self.make_optimizer = optimizer
        self.accumulate = accumulate
        self.clip = clip
        self.validation = validation
        self.run = run
        self.engine = engine
        self.shard = Shard(seed, engine.rank, engine.world)
        self.own_objective = distiller.objective
        self.own_grads = {n: p.requires_grad for n, p in distiller.named_parameters()}
        self.average = (
            None
            if ema is None
            else AveragedModel(distiller.student, multi_avg_fn=get_ema_multi_avg_fn(ema))
        )

        self.module: nn.Module = distiller
        self.step = 0
        self.elapsed = 0.0
        self.stage = -1
        self.stage_start = 0
        self.best: dict[str, Any] | None = None
        self.best_score: float | None = None
        self.waited = 0
        self.saved_at = 0.0
        self.history = self._resume()

    # --- the loop -------------------------------------------------------------------------------

    def train(self, show: Show) -> list[Row]:
        """Run to the end of the budget, or until validation says stop."""
        self.distiller.train()
        source = stream(self.batches, self.step * self.accumulate, self.shard)
        with _signals(watch=self.run is not None) as received:
            self.began = self.now() - self.elapsed
            while not self._done():
                row, stop = self._step(source, received)
                self.step += 1
                if self.validation is not None and self._validation_due():
                    row.update(self._validate(self.validation))
                self.history.append(row)
                show.update(row, self.plan.fraction(self.step, self.elapsed))
                if self._checkpoint_due(stop):
                    self._save()
                if stop:
                    raise Interrupted(
                        f"fit: stopped by signal {stop} after step {self.step}; a checkpoint is in "
                        f"{self.run.folder if self.run else ''}: the same command continues",
                        exit_code=128 + stop,
                    )
        self._finish()
        return self.history.rows

    def _done(self) -> bool:
        number, self.progress = self.plan.locate(self.step, self.elapsed)
        if number == len(self.plan.stages) or self._exhausted():
            return True
        if number != self.stage:
            self._enter(number, self.step)
        return False

    def _step(self, source: Iterator[Any], received: list[int]) -> tuple[Row, int]:
        """One step of the optimizer; returns its row, and the signal that came, if any."""
        engine, local = self.engine, self.step - self.stage_start
        self.distiller.progress = self.plan.fraction(self.step, self.elapsed)
        self._follow_terms(local)
        factor = (self.current.schedule or constant())(self.progress)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        seed_all("step", self.shard.seed, self.step, self.shard.rank)

        sums: list[float] = []
        for micro in range(self.accumulate):
            batch = engine.place(next(source))
            with engine.accumulating(self.module, last=micro + 1 == self.accumulate):
                with engine.autocast():
                    losses: Losses = self.module(batch, local)
                sums = self._collect(losses, sums, received, micro)
                engine.backward(losses.total / self.accumulate)
        norm = None if self.clip is None else engine.clip(self.trained, self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update_parameters(self.distiller.student)

        loss, stop, elapsed, *terms = [value / self.accumulate for value in sums]
        self.elapsed = elapsed
        row = {"step": float(self.step), "loss": loss}
        if len(self.plan.stages) > 1:
            row["stage"] = float(self.stage)
        row.update(zip(losses.terms, terms, strict=True))
        row["lr"] = self.optimizer.param_groups[0]["lr"]
        if norm is not None:
            row["grad_norm"] = norm
        row["seconds"] = elapsed
        # The signal's number survives the mean over processes and micro-batches as "not zero".
        return row, (max(received) if received else signal.SIGTERM) if stop else 0

    def _collect(
        self, losses: Losses, sums: list[float], received: list[int], micro: int
    ) -> list[float]:
        """Add up loss, signal, time and terms, averaged over the processes, before the backward.

        Every process sees the same numbers, so all of them stop together.
        """
        wide = torch.float32 if self.engine.device.type == "mps" else torch.float64
        state = [float(bool(received)), self.now() - self.began]
        values = torch.stack([v.detach().to(wide) for v in (losses.total, *losses.terms.values())])
        known = torch.tensor(state, dtype=wide, device=values.device)
        numbers = self.engine.mean(torch.cat([values[:1], known, values[1:]])).tolist()
        if not all(map(_is_finite, [numbers[0], *numbers[3:]])):
            raise NonFiniteError(self._describe(losses, micro))
        return [a + b for a, b in zip(sums or [0.0] * len(numbers), numbers, strict=True)]

    def _describe(self, losses: Losses, micro: int) -> str:
        values = {name: float(value) for name, value in losses.terms.items()}
        guilty = [name for name, value in values.items() if not _is_finite(value)]
        shown = ", ".join(f"{name}={value:.6g}" for name, value in values.items())
        where = ""
        if isinstance(self.batches, Batches):
            ids = self.batches.indices(self.step * self.accumulate + micro, self.shard)
            where = f"; samples {ids[:16]}{' ...' if len(ids) > 16 else ''}"
        return (
            f"fit: the loss is {float(losses.total.detach()):.6g} at step {self.step}, from "
            f"{', '.join(guilty) or 'another process or the weighted sum'} ({shown}){where}; "
            "check these inputs, lower the learning rate, or clip the gradient"
        )

    # --- stages ---------------------------------------------------------------------------------

    def _enter(self, number: int, start: int) -> None:
        """Begin stage ``number``: its objective, its parameters, a new optimizer."""
        given, default = self.plan.stages[number], self.default
        if self.stage >= 0:
            self.engine.release()
        self.stage, self.stage_start = number, start
        self.current = Stage(
            share=1.0,
            trainable=given.trainable,
            lr=given.lr or default.lr,
            schedule=given.schedule or default.schedule,
        )
        self.distiller.objective = given.objective or self.own_objective
        self.distiller.to(self.engine.device).train()
        for name, parameter in self.distiller.named_parameters():
            parameter.requires_grad_(self.own_grads.get(name, True) and given.trains(name))
        self.active: frozenset[str] | None = None
        self.module = self.engine.wrap(self.distiller)
        named = [(n, p) for n, p in self.distiller.named_parameters() if p.requires_grad]
        if not named:
            raise ConfigError(
                f"fit: stage {number} has nothing to train: no parameter of the distiller matches "
                f"{given.trainable}; names look like "
                f"{next((n for n, _ in self.distiller.named_parameters()), 'student.weight')!r}"
            )
        optimizer = self.make_optimizer(named, lr=self.current.lr)
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        self.trained = [parameter for _, parameter in named]
        self.optimizer = self.engine.prepare_optimizer(optimizer)

    def _follow_terms(self, local: int) -> None:
        """Several processes: criteria without weight take no part in the exchange of gradients."""
        if self.engine.world == 1:
            return
        objective = self.distiller.objective
        active = frozenset(objective.at(local))
        if active == self.active:
            return
        given = self.plan.stages[self.stage]
        for name, parameter in self.distiller.named_parameters():
            parameter.requires_grad_(self.own_grads.get(name, True) and given.trains(name))
        for name in objective.names:
            criterion = objective.module(name)
            if criterion is not None and name not in active:
                criterion.requires_grad_(False)
        if self.active is not None or active != frozenset(objective.names):
            self.module = self.engine.wrap(self.distiller)
        self.active = active

    # --- validation -----------------------------------------------------------------------------

    def _validation_due(self) -> bool:
        assert self.validation is not None
        ends = self.plan.locate(self.step, self.elapsed)[0] == len(self.plan.stages)
        return ends or self.step % self.validation.every == 0

    def _validate(self, validation: Validation) -> Row:
        """Score the student, and keep its weights if they are the best so far."""
        student = self.distiller.student if self.average is None else self.average.module
        student.eval()
        with torch.no_grad():
            result = validation.score(student)
        student.train()
        self.distiller.train()
        if isinstance(result, int | float):
            result = {validation.key or "score": float(result)}
        scores = {name: float(value) for name, value in self.engine.agree(dict(result)).items()}
        key = validation.key or next(iter(scores))
        if key not in scores:
            raise ConfigError(f"Validation: key {key!r} is not among {', '.join(scores)}")
        if validation.improves(scores[key], self.best_score):
            self.best_score, self.waited = scores[key], 0
            self.best = self.engine.state_of(student)
        else:
            self.waited += 1
        return scores

    def _exhausted(self) -> bool:
        patience = self.validation.patience if self.validation else None
        return patience is not None and self.waited >= patience

    def _finish(self) -> None:
        """Leave the student with the weights that count, and the run folder complete."""
        student = self.distiller.student
        if self.run is not None and self.step:
            self._save()
        if self.best is not None:
            self.engine.put_state(student, self.best)
        elif self.average is not None:
            self.engine.put_state(student, self.engine.state_of(self.average.module))
        if self.run is None:
            return
        weights = self.engine.state_of(student)
        if self.engine.main:
            from safetensors.torch import save_file

            # One file that anybody can load; clones, since safetensors refuses tied weights.
            whole = {name: value.clone().contiguous() for name, value in weights.items()}
            with atomic(self.run.folder / "student.safetensors") as temporary:
                save_file(whole, temporary)
            if self.history.rows:
                plot_curves(self.history.rows, self.run.folder / "curves.png")

    # --- checkpoints ----------------------------------------------------------------------------

    def _checkpoint_due(self, stop: int) -> bool:
        if self.run is None:
            return False
        by_time = self.elapsed - self.saved_at > 60 * self.run.minutes
        by_step = self.run.every is not None and self.step % self.run.every == 0
        return bool(stop) or by_time or by_step

    def _signature(self) -> dict[str, Any]:
        """What must be the same for a run to be continued."""
        data: Any = "function of the step"
        if isinstance(self.batches, Batches):
            data = [len(self.batches.dataset), self.batches.batch_size * self.shard.world]
        elif isinstance(self.batches, Sequence):
            data = len(self.batches)
        return {
            "seed": self.shard.seed,
            "data (items, global batch)": data,
            "accumulate": self.accumulate,
            "stages": len(self.plan.stages),
            "terms": list(self.own_objective.names),
            "student": [[n, list(p.shape)] for n, p in self.distiller.student.named_parameters()],
        }

    def _save(self) -> None:
        assert self.run is not None
        engine = self.engine
        state = {
            "signature": self.signature,
            "step": self.step,
            "elapsed": self.elapsed,
            "stage": self.stage,
            "stage_start": self.stage_start,
            "rows": len(self.history.rows),
            "distiller": engine.state_of(self.distiller),
            "optimizer": engine.state_of_optimizer(self.distiller, self.optimizer),
            "average": None if self.average is None else self.average.state_dict(),
            "best": self.best,
            "best_score": self.best_score,
            "waited": self.waited,
        }
        if engine.main:
            self.history.sync()
            checkpoint.save(self.run.checkpoints, self.step, state, self.run.keep)
        engine.barrier()
        self.saved_at = self.elapsed

    def _resume(self) -> History:
        """Continue from the newest whole checkpoint, if there is one."""
        self.signature = self._signature()
        on_disk = self.run if self.engine.main else None
        path = self.engine.agree(on_disk and checkpoint.newest(on_disk.checkpoints))
        if path is None:
            return History(on_disk)
        state = checkpoint.load(path)
        for name, value in self.signature.items():
            if state["signature"].get(name) != value:
                raise CheckpointError(
                    f"fit: {path.parent.parent} holds a run with another {name} "
                    f"({_short(state['signature'].get(name))}, now {_short(value)}); choose "
                    "another folder, or restore the option"
                )
        self.step, self.elapsed = state["step"], state["elapsed"]
        self.saved_at = self.elapsed
        self._enter(state["stage"], state["stage_start"])
        self.engine.put_state(self.distiller, state["distiller"])
        self.engine.put_state_of_optimizer(self.distiller, self.optimizer, state["optimizer"])
        if self.average is not None and state["average"] is not None:
            self.average.load_state_dict(state["average"])
        self.best, self.best_score = state["best"], state["best_score"]
        self.waited = state["waited"]
        return History(on_disk, state["rows"])

    def close(self) -> None:
        """Give the distiller back as it came, apart from its weights."""
        self.history.close()
        self.distiller.objective = self.own_objective
        for name, parameter in self.distiller.named_parameters():
            parameter.requires_grad_(self.own_grads.get(name, parameter.requires_grad))
        self.module = self.distiller
        self.distiller.eval()
        self.engine.release()


@contextmanager
def _showing(progress: Any, engine: Engine) -> Iterator[Show]:
    show = Show(progress if engine.main else False)
    try:
        yield show
    finally:
        show.close()


@contextmanager
def _signals(watch: bool) -> Iterator[list[int]]:
    """Collect SIGTERM and SIGINT instead of dying of them, so that the step can be finished."""
    received: list[int] = []
    if not watch or threading.current_thread() is not threading.main_thread():
        yield received
        return
    kinds = (signal.SIGTERM, signal.SIGINT)
    before = {k: signal.signal(k, lambda number, _: received.append(number)) for k in kinds}
    try:
        yield received
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


def _is_finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) < 80 else text[:77] + "..."
