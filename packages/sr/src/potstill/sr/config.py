"""Configurations of the commands; importing them is cheap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from potstill.core import ConfigError

__all__ = ["StudentConfig", "TrainConfig"]


@dataclass(frozen=True)
class StudentConfig:
    """The shape of a student.

    Attributes:
        scale: Factor of enlargement.
        channels: Width, a multiple of 4.
        blocks: Depth.
        global_skip: Add the bicubic enlargement to the output; "none" is the published network.
    """

    scale: Literal[2, 3, 4] = 2
    channels: int = 32
    blocks: int = 4
    global_skip: Literal["bicubic", "none"] = "bicubic"

    def __post_init__(self) -> None:
        if self.channels < 4 or self.channels % 4:
            raise ConfigError(
                f"StudentConfig: channels must be a multiple of 4, got {self.channels}; try 32"
            )
        if self.blocks < 1:
            raise ConfigError(f"StudentConfig: blocks must be at least 1, got {self.blocks}")


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Attributes:
        steps: Optimizer steps.
        batch: Patches a step.
        patch: Side of the low-resolution patches, pixels.
        learning_rate: Peak of the cosine.
        warmup: Share of the steps with a rising rate.
        clip: Largest gradient norm; 0 does not clip.
        ema: Decay of the averaged weights; 0 does not average.
        precision: Arithmetic of the forward pass; weights are always fp32.
        task: Weight of L1 to the photograph.
        output: Weight of L1 to the teacher's output.
        affinity: Weight of FAKD's spatial affinity at up to three pairs of blocks.
        wavelet: Weight of the L1 of high frequencies to the teacher's output.
        contrastive: Weight of CSD's contrastive ratio.
        validate_every: Steps between scores of held-out images.
        seed: Seed of weights, patches and orientations.
        device: "auto", "cpu", "cuda" or "mps".
    """

    steps: int = 10_000
    batch: int = 32
    patch: int = 16
    learning_rate: float = 4e-3
    warmup: float = 0.02
    clip: float = 0.1
    ema: float = 0.999
    precision: Literal["fp32", "bf16"] = "fp32"
    task: float = 1.0
    output: float = 0.0
    affinity: float = 0.0
    wavelet: float = 0.0
    contrastive: float = 0.0
    validate_every: int = 1000
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "patch", "validate_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"TrainConfig: {name} must be at least 1")
        for name in ("clip", "ema", "task", "output", "affinity", "wavelet", "contrastive"):
            if getattr(self, name) < 0:
                raise ConfigError(
                    f"TrainConfig: {name} must not be negative, got {getattr(self, name)}"
                )
        if self.learning_rate <= 0:
            raise ConfigError(
                f"TrainConfig: learning_rate must be positive, got {self.learning_rate}"
            )
