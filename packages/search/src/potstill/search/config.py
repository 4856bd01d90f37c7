"""Configurations of the commands; importing them is cheap."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Literal

from potstill.core import ConfigError, Training
from potstill.search.budget import Budget

__all__ = ["ElasticConfig", "SuggestConfig"]


@dataclass(frozen=True)
class SuggestConfig:
    """Find the student for a teacher and a budget, by what is measured on this device.

    Attributes:
        space: File with the space of students: builder, choices, fixed.
        out: Folder of the run.
        teacher: Name of the teacher, such as timm:resnet18 or timm:local-dir:FOLDER.
        fresh: Give the teacher fresh weights, to try the command without a download.
        images: Folder or .zip file of training images, with a folder for each class.
        validation: The same for judging; by default a fifth of the images.
        size: Side to which images are resized and cropped; that of the files by default.
        budget: Bounds on what the student may cost.
        deployed: Images of a call whose cost counts.
        score: Score that makes the shortlist; elastic is the accuracy in a supernet.
        supernet: Folder of ``potstill search elastic``, for the score elastic.
        init: Weights with which scores look at untrained students.
        shortlist: Candidates that are distilled for half of the steps.
        candidates: Largest number of candidates.
        sampler: What proposes candidates of larger spaces: optuna (extra), or chance.
        views: Augmented views of each image; 1 does not augment.
        label_weight: Weight of the labels beside the teacher's logits, in [0, 1].
        temperature: Temperature of the distillation.
        training: Budget in steps, optimizer, precision, device and seed.

    Raises:
        ConfigError: An option out of range; a budget in epochs or seconds.
    """

    space: Path
    _: KW_ONLY
    out: Path = Path("runs/search")
    teacher: str
    fresh: bool = False
    images: Path
    validation: Path | None = None
    size: int | None = None
    budget: Budget = field(default_factory=Budget)
    deployed: int = 1
    score: Literal[
        "parameters", "macs", "elastic", "synflow", "naswot", "jacob_cov", "diswot",
        "diswot_relation", "diswot_semantic", "random",
    ] = "parameters"  # fmt: skip
    supernet: Path | None = None
    init: Literal["own", "kaiming", "normal"] = "own"
    shortlist: int = 8
    candidates: int = 5000
    sampler: Literal["optuna", "random"] = "optuna"
    views: int = 4
    label_weight: float = 0.1
    temperature: float = 4.0
    training: Training = field(
        default_factory=lambda: Training(steps=400, batch=64, lr=1e-3, final=0.0, warmup=0.05)
    )

    def __post_init__(self) -> None:
        for name, least in (("deployed", 1), ("shortlist", 2), ("candidates", 2), ("views", 1)):
            if getattr(self, name) < least:
                raise ConfigError(
                    f"SuggestConfig: {name} must be at least {least}, got {getattr(self, name)}"
                )
        if not 0 <= self.label_weight <= 1 or not self.temperature > 0:
            raise ConfigError(
                "SuggestConfig: label_weight must be in [0, 1] and temperature positive, got "
                f"{self.label_weight} and {self.temperature}"
            )
        if (self.score == "elastic") != (self.supernet is not None):
            raise ConfigError(
                "SuggestConfig: score elastic and supernet need each other, got score "
                f"{self.score} and supernet {self.supernet}"
            )
        if self.training.steps is None:
            raise ConfigError(
                "SuggestConfig: training must have a budget in steps, since rungs are shares of "
                "it, got epochs or seconds"
            )


@dataclass(frozen=True)
class ElasticConfig:
    """Train one set of weights for all students of a space.

    Attributes:
        space: File with the space of students: builder, choices, fixed.
        out: Folder of the run.
        teacher: Name of the teacher, such as timm:resnet18 or timm:local-dir:FOLDER.
        fresh: Give the teacher fresh weights, to try the command without a download.
        images: Folder or .zip file of training images, with a folder for each class.
        validation: The same for judging; by default a fifth of the images.
        size: Side to which images are resized and cropped; that of the files by default.
        random: Random students in each step, beside the largest and the smallest.
        delay: Share of the training in which the largest is alone.
        warmup: Share in which the weight of the others then rises.
        temperature: Temperature of the distillation.
        training: Budget, optimizer, precision, device and seed.
    """

    space: Path
    _: KW_ONLY
    out: Path = Path("runs/elastic")
    teacher: str
    fresh: bool = False
    images: Path
    validation: Path | None = None
    size: int | None = None
    random: int = 2
    delay: float = 0.0
    warmup: float = 0.0
    temperature: float = 4.0
    training: Training = field(
        default_factory=lambda: Training(steps=3000, batch=64, lr=1e-3, final=0.0, warmup=0.05)
    )
