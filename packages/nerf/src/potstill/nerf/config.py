"""What ``potstill nerf train`` can be told."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from potstill.core.errors import ConfigError

__all__ = ["FieldSize", "TrainConfig"]


@dataclass(frozen=True)
class FieldSize:
    """Size of the field; 0 is the default of the kind.

    Args:
        levels: Levels of hash.
        log2_rows: Rows of a level of hash, as a power of two.
        finest: Finest resolution of hash.
        depth: Hidden layers of mlp.
        width: Their width.
        resolution: Of vm, cp and grid.
    """

    levels: int = 0
    log2_rows: int = 0
    finest: int = 0
    depth: int = 0
    width: int = 0
    resolution: int = 0


@dataclass(frozen=True)
class TrainConfig:
    """Training of a field on posed images.

    Args:
        data: Folder of the scene, or "analytic".
        out: Folder of the run.
        kind: Of the field.
        size: Of the field.
        layout: Of the data; found out by default.
        downsample: Integer factor by which images are smaller; 0 is the layout's default.
        allow_missing: Leave out frames whose image is absent.
        rescale_intrinsics: Scale intrinsics that are for images of another size.
        steps: Budget in steps; 0 for none.
        seconds: Budget in seconds; 0 for none.
        lr: Learning rate; 0 is the kind's.
        samples: Samples a step.
        background: Behind transparent pixels; noise behind images without alpha by default.
        every: Steps between validations.
        occupancy: Cells an axis of the occupancy grid.
        backend: Of the encodings.
        device: Where to train.
        seed: Of everything random.
    """

    data: str = "analytic"
    out: Path = Path("runs/nerf")
    kind: Literal["hash", "mlp", "vm", "cp", "grid", "composite"] = "hash"
    size: FieldSize = field(default_factory=FieldSize)
    layout: str = "auto"
    downsample: int = 0
    allow_missing: bool = False
    rescale_intrinsics: bool = False
    steps: int = 1000
    seconds: float = 0.0
    lr: float = 0.0
    samples: int = 6144
    background: Literal["auto", "white", "black", "random"] = "auto"
    every: int = 250
    occupancy: int = 64
    backend: str = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 0 or self.seconds < 0 or not (self.steps or self.seconds):
            raise ConfigError(
                f"TrainConfig: steps or seconds must be positive, got {self.steps} and "
                f"{self.seconds}"
            )
        if self.samples < 1 or self.every < 0 or self.occupancy < 1 or self.lr < 0:
            raise ConfigError(
                "TrainConfig: samples and occupancy must be at least 1, every and lr at least 0, "
                f"got {self.samples}, {self.occupancy}, {self.every} and {self.lr}"
            )
