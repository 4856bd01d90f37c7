"""Configurations of the commands; importing them is cheap."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any, Literal

from potstill.core import ConfigError, Training, nearest

__all__ = [
    "PRESETS", "CondenseConfig", "EvaluateConfig", "FollowConfig", "MatchConfig", "RecoverConfig",
    "SelectConfig",
]  # fmt: skip

Method = Literal["dm", "datadam", "datm", "mtt", "sre2l", "cda"]
Augment = tuple[Literal["color", "crop", "cutout", "flip", "scale", "rotate"], ...]
EVERYTHING: Augment = ("color", "crop", "cutout", "flip", "scale", "rotate")


@dataclass(frozen=True)
class MatchConfig:
    """Options of dm and datadam.

    Attributes:
        real: Real images of each class and step.
        power: Exponent of DataDAM's attention maps; the authors' code has 1, their table 4.
        mmd: Weight of DataDAM's term on features.
        scale: Factor of both of DataDAM's terms, as in the authors' code.
        momentum: Momentum of the images.
    """

    real: int = 256
    power: float = 4.0
    mmd: float = 0.01
    scale: float = 100.0
    momentum: float = 0.5


@dataclass(frozen=True)
class FollowConfig:
    """Options of datm and mtt.

    Attributes:
        experts: Networks to train on all images.
        epochs: Epochs of each.
        expert_lr: Their learning rate.
        expert_batch: Images of their steps.
        flat: Sharpness-aware training of the experts, as the authors have it.
        first: Earliest epoch to start from.
        last: Epoch before which all starts lie at the end.
        opening: Epoch before which all starts lie at first; last by default.
        growth: Steps until the window has grown.
        span: Epochs from a start to its target.
        steps: Steps on the synthetic images in that time.
        batch: Images of such a step.
        rate: Learning rate of these steps at the start; it is learned.
        rate_lr: Learning rate of the learning rate.
        label_lr: Learning rate of the soft labels.
        threshold: Distance above which a step changes nothing.
        unroll: Whole gradient, or that of TESLA in constant memory.
    """

    experts: int = 100
    epochs: int = 100
    expert_lr: float = 0.01
    expert_batch: int = 256
    flat: bool = True
    first: int = 0
    last: int = 4
    opening: int | None = None
    growth: int = 0
    span: int = 2
    steps: int = 80
    batch: int = 256
    rate: float = 0.01
    rate_lr: float = 1e-5
    label_lr: float = 2.0
    threshold: float = 1.0
    unroll: Literal["exact", "tesla"] = "exact"


@dataclass(frozen=True)
class RecoverConfig:
    """Options of sre2l and cda.

    Attributes:
        teacher: Network with batch norm that is trained on all images.
        teacher_steps: Steps of its training.
        teacher_lr: Its learning rate.
        strength: Weight of the distance between batch statistics.
        curriculum: How the smallest crop shrinks; by default cosine in cda, none in sre2l.
        milestone: Share of the budget after which crops may be small.
        roll: Largest move of a view in pixels.
        temperature: Temperature of the labels that the teacher gives to every view.
    """

    teacher: str = "convnet-3-128-batch"
    teacher_steps: int = 4000
    teacher_lr: float = 0.05
    strength: float = 0.05
    curriculum: Literal["cosine", "linear", "step", "none", "whole"] | None = None
    milestone: float = 1.0
    roll: int = 4
    temperature: float = 20.0


@dataclass(frozen=True)
class CondenseConfig:
    """Condense images in class folders to a few synthetic ones.

    Attributes:
        data: Folder or .zip file with a folder for each class.
        method: Method of synthesis.
        ipc: Images per class.
        out: Folder of the run.
        size: Side of the square to which images are resized and cropped.
        network: Network whose features or weights are matched.
        augment: Operations of the augmentation.
        draws: Random sets of the same size to compare with.
        match: Options of dm and datadam.
        follow: Options of datm and mtt.
        recover: Options of sre2l and cda.
        training: Budget, learning rate, device and seed.

    Raises:
        ConfigError: A number below 1.
    """

    data: Path | None = None
    method: Method = "dm"
    ipc: int = 10
    _: KW_ONLY
    out: Path = Path("runs/condense")
    size: int | None = None
    network: str = "convnet-3-128-instance"
    augment: Augment = EVERYTHING
    draws: int = 5
    match: MatchConfig = field(default_factory=MatchConfig)
    follow: FollowConfig = field(default_factory=FollowConfig)
    recover: RecoverConfig = field(default_factory=RecoverConfig)
    training: Training = field(default_factory=Training)

    def __post_init__(self) -> None:
        numbers = {
            "ipc": self.ipc, "draws": self.draws, "match.real": self.match.real,
            "follow.experts": self.follow.experts, "follow.epochs": self.follow.epochs,
            "recover.teacher_steps": self.recover.teacher_steps,
        }  # fmt: skip
        for name, value in numbers.items():
            if value < 1:
                raise ConfigError(f"CondenseConfig: {name} must be at least 1, got {value}")
        if self.training.accumulate > 1 or self.training.ema:
            raise ConfigError(
                "CondenseConfig: accumulate and ema must be left out: a step of synthesis is one "
                "batch, and images are not averaged"
            )


@dataclass(frozen=True)
class SelectConfig:
    """Choose real images to keep.

    Attributes:
        ratio: Share of each class to keep; or
        ipc: images per class.
        method: Rule of selection.
        features: Features that images are compared by: pixels, or a model of timm.
        size: Side of the square to which images are resized and cropped.
        draws: Random sets of the same size to compare with.
        seed: Seed of what is random.
    """

    ratio: float | None = None
    ipc: int | None = None
    method: Literal["graphcut", "herding", "kcenter", "random"] = "graphcut"
    features: str = "pixels"
    size: int | None = None
    draws: int = 5
    seed: int = 0


@dataclass(frozen=True)
class EvaluateConfig:
    """Train fresh networks on a condensed set, beside random images of the same size.

    Attributes:
        condensed: Folder of the condensed set.
        train: Images that it was condensed from.
        test: Images that nothing was trained on.
        out: Folder of the run.
        networks: Networks: convnet-DEPTH-WIDTH-NORM, or names of timm.
        repeats: Fresh networks of each name.
        draws: Random sets to train on.
        steps: Steps of every training on a set of that size.
        full_steps: Steps of training on all images.
        augment: Operations of the augmentation.
        margins: Also train without augmentation, for ARS.
        size: Side of the square to which images are resized and cropped.
        training: Batch, learning rate where the set has none, device and seed.
    """

    condensed: Path
    train: Path
    test: Path
    _: KW_ONLY
    out: Path = Path("runs/evaluate")
    networks: tuple[str, ...] = ("convnet-3-128-instance",)
    repeats: int = 5
    draws: int = 5
    steps: int = 1000
    full_steps: int = 5000
    augment: Augment = EVERYTHING
    margins: bool = True
    size: int | None = None
    training: Training = field(default_factory=lambda: Training(batch=256, lr=0.01))


def _datm(ipc: int, follow: dict[str, Any], lr: float) -> dict[str, Any]:
    """The authors' table for CIFAR-10; N and M are 80 and 2 unless said."""
    return {
        "method": "datm", "ipc": ipc, "follow": {"steps": 80, "span": 2, **follow},
        "training": {"steps": 10_000, "lr": lr},
    }  # fmt: skip


PRESETS: dict[str, dict[str, Any]] = {
    # Zhao and Bilen, WACV 2023, and their code.
    "dm-cifar10": {"method": "dm", "ipc": 10, "training": {"steps": 20_000, "lr": 1.0}},
    # Sajedi et al., ICCV 2023: their table. Their code has batch norm, power 1, 64 real images and
    # 20,000 steps.
    "datadam-cifar10": {"method": "datadam", "ipc": 10, "training": {"steps": 8000, "lr": 1.0}},
    "datadam-cifar10-code": {
        "method": "datadam", "ipc": 10, "network": "convnet-3-128-batch",
        "match": {"power": 1.0, "real": 64}, "training": {"steps": 20_000, "lr": 1.0},
    },
    # Guo et al., ICLR 2024, and their code.
    "datm-cifar10-1": _datm(
        1, {"last": 4, "batch": 10, "label_lr": 5.0, "rate_lr": 1e-7, "threshold": 1.1}, 100.0
    ),
    "datm-cifar10-10": _datm(
        10, {"opening": 10, "last": 20, "growth": 1000, "batch": 100}, 100.0
    ),
    "datm-cifar10-50": _datm(
        50, {"opening": 20, "last": 40, "growth": 2000, "batch": 500}, 1000.0
    ),
    "datm-cifar10-500": _datm(
        500, {"first": 40, "last": 60, "steps": 40, "batch": 1000, "label_lr": 10.0}, 50.0
    ),
    "datm-cifar10-1000": _datm(
        1000, {"first": 40, "last": 60, "steps": 100, "batch": 1000, "label_lr": 10.0}, 50.0
    ),
    # Yin, Xing and Shen, NeurIPS 2023: whole images, no crops.
    "sre2l-cifar100": {
        "method": "sre2l", "ipc": 50, "recover": {"curriculum": "whole", "strength": 0.01},
        "training": {"steps": 1000, "lr": 0.25},
    },
    # Yin and Shen, TMLR 2024: Tiny-ImageNet. The code's default milestone of 0 is SRe2L.
    "cda-tiny-imagenet": {
        "method": "cda", "ipc": 50, "recover": {"strength": 0.05},
        "training": {"steps": 4000, "lr": 0.4},
    },
    "cda-imagenet": {
        "method": "cda", "ipc": 50, "recover": {"strength": 0.01},
        "training": {"steps": 4000, "lr": 0.25},
    },
}  # fmt: skip


def preset(name: str) -> CondenseConfig:
    """Published options by name.

    Raises:
        ConfigError: An unknown name.

    Example:
        >>> preset("datm-cifar10-1").follow.batch
        10
    """
    from potstill.core.command import build

    if name not in PRESETS:
        raise ConfigError(f"preset: unknown preset {name!r}; {nearest(name, PRESETS)}")
    return build(CondenseConfig, PRESETS[name], source=f"the preset {name}")
