"""What ``potstill nerf train`` can be told."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from potstill.core import ConfigError

__all__ = ["ConvertConfig", "FieldSize", "TrainConfig"]


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
        distortion: Weight of the distortion loss, against fog.
        variation: Weight of the total variation of vm, cp and grid.
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
    distortion: float = 0.0
    variation: float = 0.0
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
        if self.distortion < 0 or self.variation < 0:
            raise ConfigError(
                "TrainConfig: distortion and variation must be at least 0, got "
                f"{self.distortion} and {self.variation}"
            )


@dataclass(frozen=True)
class ConvertConfig:
    """Conversion of a trained field into another kind, without images.

    Args:
        out: Folder of the conversion.
        kind: Of the student.
        size: Of the student.
        prior: JSON file of a pose prior; prior.json of the teacher's run by default.
        data: Folder of the scene, to judge the student by its images; not needed.
        downsample: Integer factor by which those images are smaller.
        steps: Budget in steps; 0 for none.
        seconds: Budget in seconds; 0 for none.
        clock: Whether seconds are the wall's or of the CPU.
        lr: Learning rate; 0 is the kind's.
        samples: Samples a step.
        feature_until: Share of the budget in which only features count.
        points_until: Share from which on pixels count.
        norm: Of the losses.
        pools: Whether hard poses and rays come back.
        inherit: Begin with the teacher's block 2 where that fits.
        hand_over: Share of the budget that is then spent on the images of ``data``.
        erase: Box that the student shall not have: its low and its high corner.
        keep: Box that is all that the student shall have.
        every: Steps between judgements.
        backend: Of the encodings.
        device: Where to convert.
        seed: Of everything random.
    """

    out: Path = Path("runs/convert")
    kind: Literal["hash", "mlp", "vm", "cp", "grid", "composite"] = "vm"
    size: FieldSize = field(default_factory=FieldSize)
    prior: str = ""
    data: str = ""
    downsample: int = 0
    steps: int = 1000
    seconds: float = 0.0
    clock: Literal["wall", "cpu"] = "wall"
    lr: float = 0.0
    samples: int = 6144
    feature_until: float = 1 / 15
    points_until: float = 1 / 6
    norm: Literal["normalized", "paper"] = "normalized"
    pools: bool = False
    inherit: bool = True
    hand_over: float = 0.0
    erase: tuple[float, ...] = ()
    keep: tuple[float, ...] = ()
    every: int = 100
    backend: str = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 0 or self.seconds < 0 or not (self.steps or self.seconds):
            raise ConfigError(
                f"ConvertConfig: steps or seconds must be positive, got {self.steps} and "
                f"{self.seconds}"
            )
        if self.samples < 1 or self.every < 0 or self.lr < 0:
            raise ConfigError(
                "ConvertConfig: samples must be at least 1, every and lr at least 0, got "
                f"{self.samples}, {self.every} and {self.lr}"
            )
        if not 0 <= self.hand_over < 1 or (self.hand_over and not self.data):
            raise ConfigError(
                "ConvertConfig: hand_over must be a share in [0, 1), with data whose images it "
                f"learns from, got {self.hand_over} and data {self.data!r}"
            )
        for name in ("erase", "keep"):
            if len(getattr(self, name)) not in (0, 6):
                raise ConfigError(
                    f"ConvertConfig: {name} must be six numbers, the low and the high corner, got "
                    f"{len(getattr(self, name))}"
                )
        if self.erase and self.keep:
            raise ConfigError("ConvertConfig: erase or keep a box, got both; convert twice")
