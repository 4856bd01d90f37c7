"""`fit`: the only training loop of potstill."""

from __future__ import annotations

import signal
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.optim import Adam
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from potstill.core.engine.batches import Shard
from potstill.core.engine.callbacks import Callback, Callbacks, TensorBoard, followed
from potstill.core.engine.device import Engine
from potstill.core.engine.history import History, Row, Show, plot_curves
from potstill.core.engine.plan import MakeOptimizer, Plan, Run, Stage, Validation
from potstill.core.engine.player import Defaults, Player, players_of, resting
from potstill.core.engine.restore import Restore
from potstill.core.engine.scoring import scores
from potstill.core.engine.signals import Signals, Stop, drawing
from potstill.core.engine.signature import differences, signature
from potstill.core.engine.source import Source, as_source
from potstill.core.engine.update import Outcome, Update
from potstill.core.errors import (
    CheckpointError,
    ConfigError,
    Interrupted,
    NonFiniteError,
    PotstillError,
)
from potstill.core.files import atomic
from potstill.core.seed import kept_streams, seed_all, seed_step
from potstill.core.store import checkpoint
from potstill.core.store.lock import Lock
from potstill.core.vocabulary.distiller import Distiller
from potstill.core.vocabulary.objective import Losses
from potstill.core.vocabulary.schedule import Schedule

__all__ = ["fit"]

_AT_ONCE = 4096  # rows that travel between processes together


def fit(
    distiller: Distiller,
    batches: Any,
    *,
    steps: int | None = None,
    epochs: float | None = None,
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
    callbacks: Sequence[Callback] = (),
) -> Sequence[Row]:
    """Train the student of ``distiller`` and the modules in its objective.

    Before each step the global random streams are set from (seed, step, rank), and the data order
    is a pure function of (seed, step, rank), so an interrupted run goes on as if nothing had
    happened, and neither validation nor logging changes the result. When it is over the student
    has its best validated weights, else its moving average if there is one, else the last, and is
    in eval mode; everything else about distiller and teacher is as it was: device, trainable flags,
    objective.

    Args:
        distiller: Student, objective and teacher; moved to the engine's device.
        batches: `Batches`; a sequence of ready batches, cycled (full batch: ``[data]``); a function
            ``draw(step, rank, world)``; a ``DataLoader``; or another iterable of batches: see
            `potstill.core.engine.as_source`. With ``accumulate`` they count micro-batches.
        steps: Budget in steps of the optimizer.
        epochs: Budget in passes over the data, where an epoch is known.
        seconds: Budget in seconds of ``clock``; of several budgets, whichever ends first.
        clock: Tells the time that the budget and the rows count: the wall's, or for instance
            ``time.process_time`` for CPU-seconds, or a watch that stands still while one evaluates.
        lr: Learning rate, > 0.
        optimizer: Factory, called as ``optimizer([(name, parameter), ...], lr=lr)``.
        schedule: Factor of the learning rate as a function of progress in [0, 1].
        accumulate: Micro-batches per step. Their terms, like those of several processes, average
            as in one large batch: by the counts of criteria that mask or return a `Mean`, else by
            the rows of a term's first tensor. Terms that count different items, labels and edges
            say, cost a backward each in all micro-batches but the last.
        clip: Largest total norm of the gradient; the norm is logged as ``grad_norm``.
        ema: Decay of a moving average of the student, in (0, 1).
        stages: Intervals with their own objective, parameters and learning rate, or with several
            players in turns.
        validation: Choice of the best weights, and of an early stop.
        run: Folder for checkpoints, history and curves; a run found there is continued.
        engine: Device, precision and processes; ``Engine()`` by default.
        seed: Seeds data order, augmentation and dropout.
        progress: Live line: off, on, on with a label, or a function of (row, share done).
        callbacks: Observers of the run on the main process, such as trackers: see
            `potstill.core.engine.Callback`.

    Returns:
        One row a step, with ``run`` read back from its ``history.jsonl`` when it is asked for:
        ``step``, ``loss``, the unweighted terms by name, ``lr``, ``seconds``, validation scores,
        and ``stage`` and ``grad_norm`` where they apply; with turns, ``loss``, terms, ``lr`` and
        ``grad_norm`` of each as ``turn/loss`` and so on, means over its updates.

    Raises:
        ConfigError: No budget, or options that contradict each other.
        NonFiniteError: A loss is NaN or infinite; names step, terms and samples.
        CheckpointError: The folder holds another run: other data, student, teacher, terms, weights,
            optimizer, rates, stages, seed or precision. The message says what differs.
        Interrupted: SIGTERM or SIGINT came; a checkpoint has been written.

    Example:
        >>> import torch.nn.functional as F
        >>> from torch import nn
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
    with ExitStack() as stack:
        stack.enter_context(kept_streams())
        asleep = resting(distiller)
        restore = stack.enter_context(Restore(distiller))  # first: also where options are refused
        if not lr > 0:
            raise ConfigError(f"fit: lr must be positive, got {lr}")
        if accumulate < 1:
            raise ConfigError(f"fit: accumulate must be at least 1, got {accumulate}")
        if ema is not None and not 0 < ema < 1:
            raise ConfigError(f"fit: ema must be in (0, 1), got {ema}")
        if isinstance(run, str | Path):
            run = Run(Path(run))
        engine = engine or stack.enter_context(Engine())
        restore.moved = not engine.sharded
        if run is not None:
            claim(run.folder, engine, stack)
        if ema is not None and engine.sharded:
            raise ConfigError("fit: ema needs every process to hold the student; use ddp, not fsdp")
        if engine.sharded and any(stage.turns for stage in stages):
            raise ConfigError("fit: turns need a whole student in every process; use ddp, not fsdp")
        source = as_source(batches)
        if epochs is not None:
            steps = _steps(source, epochs, steps, stages, accumulate, engine.world)
        caveat = getattr(source, "caveat", "")
        if run is not None and caveat:
            warnings.warn(caveat, stacklevel=2)
        own = {n: p.requires_grad for n, p in distiller.named_parameters()}
        defaults = Defaults(
            distiller.objective, optimizer, lr, schedule, clip,
            lambda name: own.get(name, True), asleep,
        )  # fmt: skip
        loop = _Loop(
            distiller=distiller,
            source=source,
            plan=Plan(steps, seconds, stages),
            clock=clock,
            defaults=defaults,
            accumulate=accumulate,
            ema=ema,
            validation=validation,
            run=run,
            engine=engine,
            seed=seed,
        )
        stack.callback(loop.close)
        show = stack.enter_context(_showing(progress, engine))
        if run is not None and run.tensorboard:
            callbacks = [*callbacks, TensorBoard(run.folder / "tensorboard")]
        start = loop.step - bool(loop.unjudged)
        return loop.train(show, stack.enter_context(followed(callbacks, start, engine)))


def claim(folder: Path, engine: Engine, stack: ExitStack) -> None:
    """Lock the folder on the main process; all processes are refused together."""
    refused = None
    if engine.main:
        try:
            stack.enter_context(Lock(folder))
        except PotstillError as error:
            refused = error
    if refused := engine.agree(refused):
        raise refused


def _steps(
    source: Source, epochs: float, steps: int | None, stages: Sequence[Stage], accumulate: int,
    world: int,
) -> int:  # fmt: skip
    """Steps of the optimizer in ``epochs``, or ``steps`` where these are fewer."""
    if not epochs > 0:
        raise ConfigError(f"fit: epochs must be positive, got {epochs}")
    if any(stage.steps is not None for stage in stages):
        raise ConfigError("fit: epochs= needs stages with share=, got stages with steps=")
    per_epoch = source.steps_per_epoch(world)
    if per_epoch is None:
        raise ConfigError(
            f"fit: epochs={epochs:g} needs a source whose epoch is known, got one without a "
            "length; give steps= or seconds= instead"
        )
    taken = {sum(turn.times / turn.every for turn in s.turns) or 1.0 for s in stages} or {1.0}
    if len(taken) > 1:
        raise ConfigError("fit: epochs= needs stages that take equally many batches; give steps=")
    counted = max(int(epochs * per_epoch / (accumulate * taken.pop())), 1)
    return counted if steps is None else min(counted, steps)


class _Loop:
    """The state of a run, and the verbs that change it."""

    def __init__(
        self,
        *,
        distiller: Distiller,
        source: Source,
        plan: Plan,
        clock: Callable[[], float],
        defaults: Defaults,
        accumulate: int,
        ema: float | None,
        validation: Validation | None,
        run: Run | None,
        engine: Engine,
        seed: int,
    ) -> None:
        self.distiller = distiller
        self.source = source
        self.plan = plan
        self.now = clock
        self.defaults = defaults
        self.accumulate = accumulate
        self.validation = validation
        self.run = run
        self.engine = engine
        self.shard = Shard(seed, engine.rank, engine.world)
        distiller.progress = 0.0  # weights that follow it are compared as they are at the start
        self.signature = signature(
            distiller, source, plan, defaults, self.shard,
            {"accumulate": accumulate, "ema": ema, "precision": engine.precision},
        ) if run else {}  # fmt: skip
        distiller.to(engine.device)
        self.average = (
            None
            if ema is None
            else AveragedModel(distiller.student, multi_avg_fn=get_ema_multi_avg_fn(ema))
        )

        self.players: list[Player] = []
        self.unjudged: Row = {}
        self.step = 0
        self.taken = 0
        self.elapsed = 0.0
        self.stage = -1
        self.stage_start = 0
        self.best: dict[str, Any] | None = None
        self.best_score: float | None = None
        self.waited = 0
        self.saved_at = 0.0
        self.saved: tuple[int, bool] | None = None
        if run is not None:
            self.saver = checkpoint.Saver(run.checkpoints, run.keep, run.asynchronous)
        self.history = self._resume()

    # --- the loop -------------------------------------------------------------------------------

    def train(self, show: Show, callbacks: Callbacks) -> Sequence[Row]:
        """Run to the end of the budget, or until validation says stop."""
        self.defaults.wake(self.distiller)
        batches = self.source.stream(self.taken, self.shard)
        try:
            with Signals(watch=self.run is not None) as signals:
                self.began = self.now() - self.elapsed
                while self.unjudged or not self._done():
                    stop = 0
                    if not self.unjudged:
                        self.unjudged, stop = self._step(batches, signals.received)
                        self.step += 1
                    row = self._judge(signals)
                    self.history.append(row)
                    callbacks.row(row)
                    show.update(row, self.plan.fraction(self.step, self.elapsed))
                    if self._checkpoint_due(stop):
                        self._save()
                    if stop:
                        raise self._interrupted(stop)
                self._finish()  # still here: a signal must not end it before the last checkpoint
            if signals.received:
                raise self._interrupted(signals.received[0])
        finally:
            del batches  # a traceback would keep the workers of a loader
        return self.history.rows

    def _judge(self, signals: Signals) -> Row:
        """The row of the step that is over, with its validation where that is due."""
        row = self.unjudged
        if self.validation is not None and self._validation_due():
            row.update(self._validate(self.validation, signals))
        self.unjudged = {}
        return row

    def _interrupted(self, number: int) -> Interrupted:
        if self.run is not None:
            self.saver.wait()
        return Interrupted(
            f"fit: stopped by signal {number} after step {self.step}; a checkpoint is in "
            f"{self.run.folder if self.run else ''}: the same command continues",
            exit_code=128 + number,
        )

    def _done(self) -> bool:
        number, self.progress = self.plan.locate(self.step, self.elapsed)
        if number == len(self.plan.stages) or self._exhausted():
            return True
        if number != self.stage:
            self._enter(number, self.step)
        return False

    def _step(self, batches: Iterator[Any], received: list[int]) -> tuple[Row, int]:
        """One step: the turns of its players; returns its row, and the signal that came, if any."""
        local = self.step - self.stage_start
        self.distiller.progress = self.plan.fraction(self.step, self.elapsed)
        playing = [player for player in self.players if local % player.every == 0]
        for player in playing:
            player.prepare(local, self.progress)
        whole = getattr(self.source, "whole", False)  # all train on the same: they draw the same
        rank, world = (0, 1) if whole else (self.shard.rank, self.shard.world)
        seed_step(self.shard.seed, self.step, rank, world)

        row, stopped = {"step": float(self.step)}, False
        for player in playing:
            if len(self.players) > 1:
                player.take_turn()
            stopped |= self._play(player, batches, local, received, row)
        if self.average is not None:
            self.average.update_parameters(self.distiller.student)
        row["seconds"] = self.elapsed
        # The signal's number survives the mean over processes and micro-batches as "not zero".
        return row, (max(received) if received else signal.SIGTERM) if stopped else 0

    def _play(
        self, player: Player, batches: Iterator[Any], local: int, received: list[int], row: Row
    ) -> bool:
        """The updates of a player in a step, into its columns; says whether a signal came."""
        engine = self.engine
        outcomes: list[Outcome] = []
        norms: list[float] = []
        for _ in range(player.times):
            update, before = Update(player, self.accumulate), self.taken
            for micro in range(self.accumulate):
                with drawing():
                    batch = engine.place(next(batches))
                with engine.accumulating(player.module, micro + 1 == self.accumulate):
                    with engine.autocast():
                        losses: Losses = player.module(batch, local)
                    update.add(losses, [float(bool(received)), self.now() - self.began])
                self.taken += 1
            outcomes.append(outcome := update.finish())
            if outcome.broken is not None:
                player.optimizer.zero_grad(set_to_none=True)
                self.taken = before + outcome.broken
                raise NonFiniteError(self._describe(update.losses[outcome.broken]))
            if (norm := player.update()) is not None:
                norms.append(norm)

        def mean(values: Iterable[float]) -> float:
            return sum(values) / player.times

        stopped, self.elapsed = map(max, zip(*(o.state for o in outcomes), strict=True))
        row[f"{player.prefix}loss"] = mean(o.loss for o in outcomes)
        if len(self.plan.stages) > 1:
            row["stage"] = float(self.stage)
        for name in outcomes[0].terms:
            row[player.prefix + name] = mean(o.terms[name] for o in outcomes)
        row[f"{player.prefix}lr"] = player.optimizer.param_groups[0]["lr"]
        if norms:
            row[f"{player.prefix}grad_norm"] = mean(norms)
        return bool(stopped)

    def _describe(self, losses: Losses) -> str:
        values = {name: float(value) for name, value in losses.terms.items()}
        guilty = [name for name, value in values.items() if not _is_finite(value)]
        shown = ", ".join(f"{name}={value:.6g}" for name, value in values.items())
        where = ""
        if hasattr(self.source, "indices"):
            ids = self.source.indices(self.taken, self.shard)
            where = f"; samples {ids[:16]}{' ...' if len(ids) > 16 else ''}"
        rates = {f"{p.optimizer.param_groups[0]['lr']:.3g}" for p in self.players}
        return (
            f"fit: the loss is {float(losses.total.detach()):.6g} at step {self.step}, from "
            f"{', '.join(guilty) or 'another process or the weighted sum'} ({shown}){where}; "
            f"check these inputs, lower the learning rate ({', '.join(sorted(rates))}), or clip "
            "the gradient"
        )

    # --- stages ---------------------------------------------------------------------------------

    def _enter(self, number: int, start: int) -> None:
        """Begin stage ``number``: its objectives, its parameters, new optimizers."""
        if self.stage >= 0:
            self.players = []
            self.engine.release()
        self.stage, self.stage_start = number, start
        stage = self.plan.stages[number]
        self.players = players_of(self.distiller, self.engine, stage, self.defaults, number)

    # --- validation -----------------------------------------------------------------------------

    def _validation_due(self) -> bool:
        assert self.validation is not None
        ends = self.plan.locate(self.step, self.elapsed)[0] == len(self.plan.stages)
        return ends or self.step % self.validation.every == 0

    def _validate(self, validation: Validation, signals: Signals) -> Row:
        """Score the student, and keep its weights if they are the best so far."""
        student = self.distiller.student if self.average is None else self.average.module
        student.eval()
        seed_all("validation", self.shard.seed, self.step, self.shard.rank)
        try:
            # Several processes finish it together; one need not: the grace may be shorter.
            with torch.no_grad(), signals.raising(bool(self.run) and self.engine.world == 1):
                found = scores(validation, student, self.engine)
        except (Stop, Exception) as error:
            if self.run is None or not signals.received or self.engine.world > 1:
                raise
            self._save()  # with the unjudged row: the validation is done when the run is continued
            raise self._interrupted(max(signals.received)) from error
        student.train()
        self.defaults.wake(self.distiller)
        key = validation.key or next(iter(found))
        if key not in found:
            raise ConfigError(f"Validation: key {key!r} is not among {', '.join(found)}")
        if validation.improves(found[key], self.best_score):
            self.best_score, self.waited = found[key], 0
            self.best = self.engine.state_of(student)
        else:
            self.waited += 1
        return found

    def _exhausted(self) -> bool:
        patience = self.validation.patience if self.validation else None
        return patience is not None and self.waited >= patience

    def _finish(self) -> None:
        """Leave the student with the weights that count, and the run folder complete."""
        student = self.distiller.student
        if self.run is not None and self.step:
            self._save()
            self.saver.wait()
        if self.best is not None:
            self.engine.put_state(student, self.best)
        elif self.average is not None:
            self.engine.put_state(student, self.engine.state_of(self.average.module))
        if self.run is None:
            return
        weights = self.engine.state_of(student, copy=False)
        if self.engine.main:
            # One file that anybody can load, tied weights once, as `safetensors.torch.load_model`
            # reads them.
            tied = self.engine.tied(student)
            once = {n: v for n, v in weights.items() if n not in tied}
            with atomic(self.run.folder / "student.safetensors") as temporary:
                checkpoint.write_tensors(once, temporary, {"format": "pt", **tied})
            if self.run.curves and self.history.rows:
                plot_curves(self.history.rows, self.run.folder / "curves.png")

    # --- checkpoints ----------------------------------------------------------------------------

    def _checkpoint_due(self, stop: int) -> bool:
        if self.run is None:
            return False
        minutes = self.run.minutes if self.saved_at else min(self.run.minutes, 1.0)
        by_time = self.elapsed - self.saved_at > 60 * minutes
        by_step = self.run.every is not None and self.step % self.run.every == 0
        return bool(stop) or by_time or by_step

    def _save(self) -> None:
        """Write a checkpoint, of the tensors as they are: nothing is copied for it."""
        assert self.run is not None
        if self.saved == (self.step, bool(self.unjudged)):
            return
        engine, players = self.engine, self.players
        several = len(players) > 1  # else the objective is part of the distiller's state
        apart = engine.sharded and not self.run.asynchronous  # a thread cannot wait for the others
        shards, rest = engine.pieces(self.distiller, players[0].optimizer) if apart else ({}, {})
        state = {
            "signature": self.signature,
            "step": self.step,
            "taken": self.taken,
            "elapsed": self.elapsed,
            "stage": self.stage,
            "stage_start": self.stage_start,
            "rows": len(self.history.rows),
            "distiller": {} if apart else engine.state_of(self.distiller, copy=False),
            "objectives": [engine.state_of(p.objective, copy=False) for p in players if several],
            "optimizers": {
                p.name: engine.state_of_optimizer(self.distiller, p.optimizer)
                for p in players
                if not apart
            },
            "pieces": {"names": [*shards], "rest": rest, "scaler": engine.scaler}
            if apart
            else None,
            "source": engine.gather(self._state_of_source()),
            "average": None if self.average is None else self.average.state_dict(),
            "best": self.best,
            "best_score": self.best_score,
            "waited": self.waited,
            "unjudged": self.unjudged,
        }
        self.history.sync()
        if apart:
            self._write_together(state, shards)
        elif engine.main:
            self.saver.save(self.step, state)
        engine.barrier()
        self.saved_at, self.saved = self.elapsed, (self.step, bool(self.unjudged))

    def _write_together(self, state: dict[str, Any], shards: dict[str, Any]) -> None:
        """The checkpoint of sharded weights: each process writes its own part of it."""
        told = []

        def parts(folder: Path | None) -> None:
            told.append(at := self.engine.agree(folder))
            if at is not None:
                checkpoint.write_shards(shards, at)

        if not self.engine.main:
            parts(None)
            return
        try:
            self.saver.save(self.step, state, parts)
        finally:
            if not told:  # it failed before: the others wait
                parts(None)

    def _resume(self) -> History:
        """Continue from the newest whole checkpoint, if there is one."""
        on_disk = self.run if self.engine.main else None
        path = self.engine.agree(on_disk and checkpoint.newest(on_disk.checkpoints))
        if path is None:
            return History(on_disk) if on_disk or not self.run else History.elsewhere()
        assert self.run is not None
        state, anyway = checkpoint.load(path, checked=True), self.run.resume == "anyway"
        differing = differences(state["signature"], self.signature)
        if differing and not anyway:
            raise CheckpointError(
                f"fit: {path.parent.parent} holds a run with another "
                f"{'; another '.join(differing.values())}; choose another folder, restore the "
                'option, or continue deliberately with Run(folder, resume="anyway")'
            )
        if self.plan.steps is not None and state["step"] > self.plan.steps:
            raise CheckpointError(
                f"fit: {path.parent.parent} holds a run of {state['step']} steps already, got a "
                f"budget of {self.plan.steps}; choose another folder, or give at least as many"
            )
        self.step, self.taken, self.elapsed = state["step"], state["taken"], state["elapsed"]
        self.saved_at = self.elapsed
        self._enter(state["stage"], state["stage_start"])
        other = any(name.startswith("optimizer") for name in differing)
        if other:
            warnings.warn("fit: another optimizer begins without moments", stacklevel=3)
        if pieces := state.get("pieces"):
            self.engine.put_pieces(
                self.distiller, None if other else self.players[0].optimizer, pieces["names"],
                pieces["rest"], partial(checkpoint.read_shards, folder=path),
            )  # fmt: skip
            self.engine.scaler = pieces["scaler"]
        else:
            self.engine.put_state(self.distiller, state["distiller"])
            for player, objective in zip(self.players, state["objectives"], strict=False):
                self.engine.put_state(player.objective, objective)
            for player in () if other else self.players:
                self._resume_optimizer(player, state["optimizers"][player.name])
        if self.average is not None and state["average"] is not None:
            self.average.load_state_dict(state["average"])
        if state["source"] and hasattr(self.source, "load_state_dict"):
            self.source.load_state_dict(state["source"][self.engine.rank])
        self.best, self.best_score = state["best"], state["best_score"]
        self.waited, self.unjudged = state["waited"], state.get("unjudged", {})
        self.saved = (self.step, bool(self.unjudged))
        return self._history(on_disk, state["rows"])

    def _history(self, on_disk: Run | None, rows: int) -> History:
        """The rows so far, in every process: a finished run returns them everywhere."""
        history = History(on_disk, rows) if on_disk else History.elsewhere()
        for start in range(0, rows if self.engine.world > 1 else 0, _AT_ONCE):
            for row in self.engine.agree(history.rows[start : start + _AT_ONCE]):
                if not on_disk:
                    history.append(row)
        return history

    def _resume_optimizer(self, player: Player, state: dict[str, Any]) -> None:
        """The moments of the checkpoint, with the options of now: they are equal, or deliberate."""
        options = [{**group} for group in player.optimizer.param_groups]
        self.engine.put_state_of_optimizer(self.distiller, player.optimizer, state)
        for group, now in zip(player.optimizer.param_groups, options, strict=True):
            group.update({k: v for k, v in now.items() if k != "params"})

    def _state_of_source(self) -> dict[str, Any]:
        state: dict[str, Any] = getattr(self.source, "state_dict", dict)()
        return state

    def close(self) -> None:
        """Give the distiller back as it came, apart from its weights."""
        if self.run is not None:
            self.saver.close()
        self.history.close()
        self.players = []
        self.distiller.eval()
        self.engine.release()


@contextmanager
def _showing(progress: Any, engine: Engine) -> Iterator[Show]:
    show = Show(progress if engine.main else False)
    try:
        yield show
    finally:
        show.close()


def _is_finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")
