"""How long and how to train: the options that mean the same in every domain."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from cyclopts import Parameter

from potstill.core.errors import ConfigError

if TYPE_CHECKING:  # configurations are read without torch
    from potstill.core.engine.plan import Run

__all__ = ["Training"]


def _short(name: str) -> Parameter:
    return Parameter(alias=f"--{name}")


@dataclass(frozen=True)
class Training:
    """Budget, optimizer, precision, device and seed of a job.

    Of several budgets, whichever ends first; one that is given takes the place of the default one.
    Each option has a short form: ``--training.lr`` is ``--lr``.

    Attributes:
        epochs: Budget in passes over the data; without any budget, that of the method.
        steps: Budget in steps of the optimizer.
        seconds: Budget in seconds.
        batch: Items per process and micro-batch.
        lr: Peak learning rate; that of the method by default.
        optimizer: Name of the optimizer.
        weight_decay: Weight decay of the optimizer; that of the method by default.
        warmup: Share of the budget in which the learning rate rises.
        final: Learning rate at the end, as a factor of the peak; 1 keeps it constant.
        clip: Largest total norm of the gradient; 0 does not clip.
        ema: Decay of a moving average of the student; 0 does not average.
        accumulate: Micro-batches per step.
        precision: Numeric precision of the forward pass; weights are always fp32.
        device: Device; auto is a GPU where there is one.
        parallel: Way in which several processes (torchrun) share the work.
        workers: Processes that load data; 0 loads in the main one.
        seed: Seed of weights, data order, augmentation and dropout.
        checkpoint_minutes: Time between checkpoints; the first is written within a minute.
        checkpoint_asynchronous: Write checkpoints while training goes on, from a copy in memory.
        tensorboard: Write event files too (extra ``potstill-core[tensorboard]``).
    """

    alternatives: ClassVar[tuple[str, ...]] = ("epochs", "steps", "seconds")

    epochs: Annotated[float | None, _short("epochs")] = None
    steps: Annotated[int | None, _short("steps")] = None
    seconds: Annotated[float | None, _short("seconds")] = None
    batch: Annotated[int, _short("batch")] = 32
    lr: Annotated[float | None, _short("lr")] = None
    optimizer: Annotated[str, _short("optimizer")] = "adam"
    weight_decay: Annotated[float | None, _short("weight-decay")] = None
    warmup: Annotated[float, _short("warmup")] = 0.0
    final: Annotated[float, _short("final")] = 1.0
    clip: Annotated[float, _short("clip")] = 0.0
    ema: Annotated[float, _short("ema")] = 0.0
    accumulate: Annotated[int, _short("accumulate")] = 1
    precision: Annotated[Literal["fp32", "bf16", "fp16"], _short("precision")] = "fp32"
    device: Annotated[Literal["auto", "cpu", "cuda", "mps"], _short("device")] = "auto"
    parallel: Annotated[Literal["ddp", "fsdp"], _short("parallel")] = "ddp"
    workers: Annotated[int, _short("workers")] = 0
    seed: Annotated[int, _short("seed")] = 0
    checkpoint_minutes: Annotated[float, _short("checkpoint-minutes")] = 5.0
    checkpoint_asynchronous: Annotated[bool, _short("checkpoint-asynchronous")] = False
    tensorboard: Annotated[bool, _short("tensorboard")] = False

    def run(self, folder: Path) -> Run:
        """The folder of a run, with these options of checkpoints and event files."""
        from potstill.core.engine.plan import Run

        return Run(
            folder, minutes=self.checkpoint_minutes, tensorboard=self.tensorboard,
            asynchronous=self.checkpoint_asynchronous,
        )  # fmt: skip

    def __post_init__(self) -> None:
        for name in (*self.alternatives, "lr"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"Training: {name} must be positive, got {value}")
        if not self.checkpoint_minutes > 0:
            raise ConfigError(
                f"Training: checkpoint_minutes must be positive, got {self.checkpoint_minutes}"
            )
        for name in ("batch", "accumulate"):
            if getattr(self, name) < 1:
                raise ConfigError(f"Training: {name} must be at least 1, got {getattr(self, name)}")
        for name in ("weight_decay", "clip", "workers", "final"):
            if (getattr(self, name) or 0) < 0:
                raise ConfigError(
                    f"Training: {name} must not be negative, got {getattr(self, name)}"
                )
        for name in ("warmup", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"Training: {name} must be in [0, 1), got {getattr(self, name)}")
