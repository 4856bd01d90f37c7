"""A player: the parameters that one turn of a stage trains, and how."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from potstill.core.engine.device import Engine
from potstill.core.engine.plan import MakeOptimizer, Stage, Turn, matches
from potstill.core.errors import ConfigError
from potstill.core.vocabulary.distiller import Distiller
from potstill.core.vocabulary.objective import Objective
from potstill.core.vocabulary.schedule import Schedule, constant

__all__ = ["Defaults", "Player", "players_of", "resting"]


@dataclass(frozen=True)
class Defaults:
    """What stages and turns do not say themselves.

    Args:
        objective: Terms.
        optimizer: Optimizer factory.
        lr: Learning rate.
        schedule: Factor of the learning rate.
        clip: Largest total norm of the gradient.
        trains: Test of a name: true where that parameter may train.
        resting: Modules that were in eval mode inside a part that was not: they stay so.
    """

    objective: Objective
    optimizer: MakeOptimizer
    lr: float
    schedule: Schedule | None
    clip: float | None
    trains: Callable[[str], bool]
    resting: Sequence[nn.Module] = ()

    def wake(self, distiller: Distiller) -> None:
        """Training mode, apart from what rests, such as the norms of a frozen part."""
        distiller.train()
        for module in self.resting:
            module.training = False


class Player:
    """A set of parameters with an optimizer, and a view of the distiller for several processes.

    Args:
        distiller: The distiller, on the device of the engine.
        engine: Device and processes.
        stage: The stage, with its number in messages.
        turn: The turn of the stage; None where it has only one player.
        defaults: Values that neither gives.
    """

    def __init__(
        self, distiller: Distiller, engine: Engine, stage: Stage, turn: Turn | None,
        defaults: Defaults, label: str,
    ) -> None:  # fmt: skip
        self.distiller, self.engine, self.stage, self.turn = distiller, engine, stage, turn
        self.name = turn.name if turn else ""
        self.prefix = f"{self.name}/" if turn else ""
        self.times, self.every = (turn.times, turn.every) if turn else (1, 1)
        self.objective = (turn and turn.objective) or stage.objective or defaults.objective
        self.schedule = (
            (turn and turn.schedule) or stage.schedule or defaults.schedule or constant()
        )
        self.clip = turn.clip if turn and turn.clip is not None else defaults.clip
        self.may_train = defaults.trains
        self.active: frozenset[str] | None = None

        self.take_turn()
        defaults.wake(distiller.to(engine.device))
        self.module: nn.Module = engine.wrap(distiller)
        named = [(n, p) for n, p in distiller.named_parameters() if p.requires_grad]
        if not named:
            raise ConfigError(
                f"fit: {label} has nothing to train: no parameter of the distiller matches "
                f"{turn.trainable if turn else stage.trainable}; names look like "
                f"{next((n for n, _ in distiller.named_parameters()), 'student.weight')!r}"
            )
        make = (turn and turn.optimizer) or defaults.optimizer
        optimizer = make(named, lr=(turn and turn.lr) or stage.lr or defaults.lr)
        closure = inspect.signature(optimizer.step).parameters.get("closure")
        if closure is not None and closure.default is inspect.Parameter.empty:
            raise ConfigError(
                f"fit: the optimizer must step without a closure, got {type(optimizer).__name__}, "
                "which evaluates the loss several times a step; use Adam, AdamW or SGD"
            )
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        self.trained = [parameter for _, parameter in named]
        self.optimizer = engine.prepare_optimizer(optimizer)

    def trains(self, name: str) -> bool:
        """Whether this player trains the parameter called ``name``."""
        mine = self.turn is None or matches(self.turn.trainable, name)
        return mine and self.may_train(name) and matches(self.stage.trainable, name)

    def take_turn(self) -> None:
        """Set the objective, the name of the turn, and which parameters are variables."""
        self.distiller.objective, self.distiller.turn = self.objective, self.name
        for name, parameter in self.distiller.named_parameters():
            parameter.requires_grad_(self.trains(name))
        self._rest(self.active)

    def prepare(self, local: int, progress: float) -> None:
        """Set the learning rate, and follow changes of the set of terms with weight."""
        self._follow_terms(local)
        factor = self.schedule(progress)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor

    def update(self) -> float | None:
        """One step of the optimizer; returns the norm of the gradient where it is clipped."""
        norm = None if self.clip is None else self.engine.clip(self.trained, self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return None if norm is None else float(norm)  # waits when all work of the step is given out

    def _follow_terms(self, local: int) -> None:
        """Several processes: criteria without weight take no part in the exchange of gradients."""
        if self.engine.world == 1:
            return
        active = frozenset(self.objective.at(local))
        if active == self.active:
            return
        before, self.active = self.active, active
        self.take_turn()
        if before is not None or active != frozenset(self.objective.names):
            self.module = self.engine.wrap(self.distiller, instead_of=self.module)

    def _rest(self, active: frozenset[str] | None) -> None:
        """Keep criteria without weight out of the exchange of gradients."""
        for name in self.objective.names if active is not None else ():
            criterion = self.objective.module(name)
            if criterion is not None and name not in active:  # type: ignore[operator]
                criterion.requires_grad_(False)


def resting(distiller: Distiller) -> list[nn.Module]:
    """Modules in eval mode inside a part of the distiller that is in training mode."""
    parts = [part for part in distiller.children() if part.training]
    return [module for part in parts for module in part.modules() if not module.training]


def players_of(
    distiller: Distiller, engine: Engine, stage: Stage, defaults: Defaults, number: int
) -> list[Player]:
    """The players of a stage, in the order of their turns."""
    label = f"stage {number}"
    return [
        Player(
            distiller, engine, stage, turn, defaults,
            f"{label}, turn {turn.name!r}" if turn else label,
        )
        for turn in stage.turns or (None,)
    ]  # fmt: skip
