"""Configurations of the commands; importing them is cheap."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path

from potstill.core import ConfigError, Training

__all__ = ["Config"]


@dataclass(frozen=True)
class Config:
    """Distil a wide network into a narrow one.

    Attributes:
        out: Folder of the run.
        width: Hidden units of the student.
        training: Budget, optimizer, precision, device and seed.

    Raises:
        ConfigError: A width below 1.
    """

    _: KW_ONLY
    out: Path = Path("runs/NAME")
    width: int = 16
    training: Training = field(default_factory=lambda: Training(steps=300, lr=0.01))

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ConfigError(f"Config: width must be at least 1, got {self.width}")
