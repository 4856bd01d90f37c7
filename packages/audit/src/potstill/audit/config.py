"""Configurations of the commands; importing them is cheap."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Literal

from potstill.core import ConfigError, Training

__all__ = ["BackdoorConfig", "InspectConfig", "NetworkConfig", "PrivacyConfig"]


@dataclass(frozen=True)
class NetworkConfig:
    """Networks of a bench.

    Attributes:
        kind: Linear layers on all pixels, or convolutions.
        teacher: Widths of the teacher's layers.
        student: Widths of the student's layers.
    """

    kind: Literal["mlp", "cnn"] = "mlp"
    teacher: tuple[int, ...] = (96, 96)
    student: tuple[int, ...] = (24, 24)


@dataclass(frozen=True)
class InspectConfig:
    """Look for a backdoor and a bias in a teacher, with clean images of your own.

    Attributes:
        teacher: Folder of a saved `Network`, or a name such as timm:resnet18.
        data: Folder or .zip file with a folder of clean images for each class.
        weights: File of weights (.safetensors) for a teacher by name.
        controls: Folders of clean networks of the same architecture.
        out: Folder of the page.
        size: Side of the square to which images are resized and cropped.
        count: Images for the inversion.
        check: Exit with code 1 where something is found.
        limit: Anomaly index from which a class counts as found.
        network: Widths of the student that learns your own labels.
        training: Options of its training, and the seed.
    """

    teacher: str = ""
    data: Path | None = None
    _: KW_ONLY
    weights: Path | None = None
    controls: tuple[Path, ...] = ()
    out: Path = Path("runs/audit/inspect")
    size: int | None = None
    count: int = 40
    check: bool = False
    limit: float = 2.0
    network: NetworkConfig = field(default_factory=NetworkConfig)
    training: Training = field(default_factory=lambda: Training(steps=300, batch=64, lr=3e-3))

    def __post_init__(self) -> None:
        if not self.teacher or self.data is None:
            raise ConfigError(
                f"inspect: teacher and data must be named, got {self.teacher!r} and {self.data}"
            )


@dataclass(frozen=True)
class BackdoorConfig:
    """Measure which criteria pass a backdoor on, on images of your own.

    Attributes:
        data: Folder or .zip file with a folder of images for each class.
        out: Folder of the run.
        size: Side of the square to which images are resized and cropped.
        arms: Criteria by name; all of those that suit the networks when none is given.
        target: Class of the attack, by its number.
        rows: First row of the patch and the row after its last.
        columns: First column of the patch and the column after its last.
        value: Value of its pixels, in [0, 1].
        rates: Shares of the teacher's set that are poisoned.
        seeds: Number of seeds.
        check: Exit with code 1 where a student on clean inputs passes the limit.
        limit: Success above that of the clean teacher's student, in percent.
        network: Networks.
        training: Options of every training, and the first seed.
    """

    data: Path | None = None
    _: KW_ONLY
    out: Path = Path("runs/audit/backdoor")
    size: int | None = None
    arms: tuple[str, ...] = ("kd", "kd+labels", "top1", "hint")
    target: int = 0
    rows: tuple[int, int] = (6, 8)
    columns: tuple[int, int] = (6, 8)
    value: float = 1.0
    rates: tuple[float, ...] = (0.05,)
    seeds: int = 3
    check: bool = False
    limit: float = 25.0
    network: NetworkConfig = field(default_factory=NetworkConfig)
    training: Training = field(default_factory=lambda: Training(steps=300, batch=64, lr=3e-3))

    def __post_init__(self) -> None:
        if self.data is None or self.seeds < 1 or not self.rates:
            raise ConfigError(
                f"backdoor: data and rates must be named and seeds at least 1, got {self.data}, "
                f"{self.rates} and {self.seeds}"
            )


@dataclass(frozen=True)
class PrivacyConfig:
    """Measure what a teacher and its students tell about the teacher's data.

    Attributes:
        data: Folder or .zip file with a folder of images for each class.
        out: Folder of the run.
        size: Side of the square to which images are resized and cropped.
        arms: Criteria by name, each for one student.
        worlds: Number of worlds.
        canaries: Pool of mislabelled images, at least 20; 0 has none.
        insert: Canaries in each world.
        check: Exit with code 1 where a model passes a limit.
        exposure: Limit of the exposure above its floor, in bits.
        tpr: Limit of the share of members found at 1 % false alarms.
        network: Networks.
        training: Options of every training, and the first seed.
    """

    data: Path | None = None
    _: KW_ONLY
    out: Path = Path("runs/audit/privacy")
    size: int | None = None
    arms: tuple[str, ...] = ("kd", "kd+labels")
    worlds: int = 16
    canaries: int = 160
    insert: int = 16
    check: bool = False
    exposure: float = 1.0
    tpr: float = 0.1
    network: NetworkConfig = field(default_factory=lambda: NetworkConfig(student=(48,)))
    training: Training = field(default_factory=lambda: Training(steps=250, batch=64, lr=3e-3))

    def __post_init__(self) -> None:
        if self.data is None:
            raise ConfigError("privacy: data must be named, got nothing")
