"""Options of the commands: frozen dataclasses, the same as flags and as a file."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from potstill.core import ConfigError, Training

__all__ = [
    "Augment", "BatchConfig", "ConvertConfig", "DistillConfig", "ImageConfig", "Phase",
    "TimeConfig",
]  # fmt: skip

Channels = tuple[float, ...]


@dataclass(frozen=True)
class ConvertConfig:
    """Dense model, its size, and how it becomes adaptive.

    Attributes:
        model: Name for timm's create_model.
        pretrained: Start from timm's weights.
        checkpoint: File of other weights of the dense model, .safetensors or .pth; a .json of the
            same name may hold its ``kwargs``, ``classes``, ``mean`` and ``std``.
        size: Side of the images in pixels; timm's by default.
        patch: Side of a patch in pixels; timm's by default.
        width: Embedding width; timm's by default.
        depth: Blocks; timm's by default.
        heads: Attention heads; timm's by default.
        classes: Number of classes; the checkpoint's or timm's by default.
        pool: Pooling before the head; timm's by default.
        mean: Mean of each channel that the model expects; the checkpoint's or timm's by default.
        std: Standard deviation of each channel, likewise.
        targets: Maps that become adaptive: mlp, qkvo, qkvo_shared.
        learners: Learners of each module.
        flops_factor: Cost of all learners relative to the dense module.
        initial: Weights of the learners: split (from the dense ones) or random.
    """

    model: str = "vit_small_patch16_224"
    pretrained: bool = False
    checkpoint: Path | None = None
    size: int | None = None
    patch: int | None = None
    width: int | None = None
    depth: int | None = None
    heads: int | None = None
    classes: int | None = None
    pool: str | None = None
    targets: tuple[str, ...] = ("mlp",)
    learners: int = 4
    flops_factor: float = 1.0
    initial: str = "split"
    mean: Channels = ()
    std: Channels = ()

    def __post_init__(self) -> None:
        _check_channels(self.mean, self.std)

    def options(self) -> dict[str, Any]:
        """Arguments of timm's create_model besides the name."""
        statistics = {"mean": list(self.mean), "std": list(self.std)} if self.mean else None
        given = {
            "img_size": self.size, "patch_size": self.patch, "embed_dim": self.width,
            "depth": self.depth, "num_heads": self.heads, "global_pool": self.pool,
            "num_classes": self.classes, "pretrained_cfg_overlay": statistics,
        }  # fmt: skip
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class ImageConfig:
    """Images, and how the model expects them.

    Attributes:
        data: Folder of class folders, or one inside a zip file: cifar10.zip/train.
        statistics: Mean and standard deviation for normalising: those of the model (model),
            imagenet or cifar10.
        mean: Mean of each channel of values in [0, 1], instead.
        std: Standard deviation of each channel, instead.
    """

    data: Annotated[Path, Parameter(alias="--data")]
    statistics: Annotated[str, Parameter(alias="--statistics")] = "model"
    mean: Annotated[Channels, Parameter(alias="--mean")] = ()
    std: Annotated[Channels, Parameter(alias="--std")] = ()

    def __post_init__(self) -> None:
        if self.statistics not in ("model", "imagenet", "cifar10"):
            raise ConfigError(
                f"acm: statistics must be model, imagenet or cifar10, got {self.statistics!r}; "
                "--mean and --std take any numbers"
            )
        _check_channels(self.mean, self.std)


@dataclass(frozen=True)
class BatchConfig(ImageConfig):
    """Images in batches, for verbs that do not train.

    Attributes:
        batch: Images per batch.
        workers: Processes that decode images; 0 decodes in the main one.
    """

    batch: int = 128
    workers: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("batch", 1), ("workers", 0)):
            if getattr(self, name) < least:
                raise ConfigError(
                    f"acm: {name} must be at least {least}, got {getattr(self, name)}"
                )


def _check_channels(mean: Channels, std: Channels) -> None:
    if len(mean) != len(std) or any(value <= 0 for value in std):
        raise ConfigError(
            f"acm: mean and std must be one number per channel, std positive, got {mean} and {std}"
        )


@dataclass(frozen=True)
class Augment:
    """Augmentation of training images; all but the first are timm's.

    Attributes:
        shift: Largest shift in pixels over a black border, where whole images are used.
        scale: Least and largest share of an image that a crop takes; 1 1 uses whole images, 0.08 1
            is usual for training from scratch.
        ratio: Least and largest width by height of such a crop.
        hflip: Chance of mirroring left and right.
        color_jitter: Strength of changes of brightness, contrast and saturation.
        auto_augment: Policy by timm's name, e.g. rand-m9-mstd0.5-inc1; empty for none.
        erase: Chance of erasing a rectangle.
        mixup: Strength of mixup in phase 3.
        cutmix: Strength of cutmix in phase 3.
    """

    shift: int = 4
    scale: tuple[float, float] = (1.0, 1.0)
    ratio: tuple[float, float] = (0.75, 1.3333333333333333)
    hflip: float = 0.5
    color_jitter: float = 0.0
    auto_augment: str = ""
    erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        for name in ("scale", "ratio"):
            low, high = getattr(self, name)
            if not 0 < low <= high or (name == "scale" and high > 1):
                raise ConfigError(
                    f"Augment: {name} must be two rising numbers above 0, shares at most 1, got "
                    f"{low} and {high}"
                )
        for name in ("shift", "hflip", "color_jitter", "erase", "mixup", "cutmix"):
            if getattr(self, name) < 0:
                raise ConfigError(
                    f"Augment: {name} must not be negative, got {getattr(self, name)}"
                )

    @property
    def mixes(self) -> bool:
        """Whether images of a batch are mixed."""
        return self.mixup > 0 or self.cutmix > 0


@dataclass(frozen=True)
class Phase:
    """Length and learning rate of a phase.

    Attributes:
        epochs: Passes over the images; 0 leaves the phase out.
        lr: Peak learning rate.
    """

    epochs: float
    lr: float

    def __post_init__(self) -> None:
        if self.epochs < 0 or not self.lr > 0:
            raise ConfigError(
                f"Phase: epochs must not be negative and lr must be positive, got {self.epochs} "
                f"and {self.lr}"
            )


@dataclass(frozen=True)
class DistillConfig:
    """Run the three phases; an interrupted run continues with the same command.

    Attributes:
        model: Folder written by convert.
        out: Folder of the run; the result is in its folder model.
        images: Images; phase 3 needs one folder per class.
        augment: Augmentation, of all phases.
        distill: Phase 1, the learners.
        gate: Phase 2, the gates.
        finetune: Phase 3, all of it.
        budget: Mean share of the learners' cost.
        budget_weight: Weight of the budget's term in phase 3 (published: 0.1, with long training).
        threshold: Remaining error that counts as no help, for the labels of phase 2.
        smoothing: Label smoothing of phase 3.
        training: Options of all phases; lengths and learning rates are their own.
    """

    model: Path
    out: Annotated[Path, Parameter(alias="-o")]
    _: KW_ONLY
    images: ImageConfig
    augment: Augment = Augment()
    distill: Phase = Phase(3, 1e-3)
    gate: Phase = Phase(1, 1e-2)
    finetune: Phase = Phase(3, 5e-4)
    budget: float = 0.5
    budget_weight: float = 1.0
    threshold: float = 0.8
    smoothing: float = 0.1
    training: Training = Training(batch=128, optimizer="adamw", final=1e-3, clip=1.0)

    def __post_init__(self) -> None:
        if not 0 < self.budget <= 1:
            raise ConfigError(f"distill: budget must be in (0, 1], got {self.budget}")
        training = self.training
        for name in ("epochs", "steps", "seconds", "lr"):
            if getattr(training, name) is not None:
                raise ConfigError(
                    f"distill: training.{name} must be left out, got {getattr(training, name)}; "
                    "each phase has its own: --distill.epochs and --distill.lr, --gate.epochs, "
                    "..."
                )
        if training.parallel != "ddp":
            raise ConfigError(
                "distill: each process holds the whole model: training.parallel must be ddp, got "
                f"{training.parallel}"
            )
        if self.augment.mixes and training.batch % 2:
            raise ConfigError(
                f"distill: training.batch must be even where images are mixed, got {training.batch}"
            )


@dataclass(frozen=True)
class TimeConfig:
    """Model, batch and budgets that are timed.

    Attributes:
        model: Name for timm's create_model.
        batch: Images per batch.
        budgets: Mean budgets.
        learners: Learners of each module.
        whole: Time the whole model, not its first MLP.
        backend: auto, sorted_prefix, torch, gathered, grouped_mm or triton.
        device: auto, cpu, cuda or mps.
        bf16: Time in bfloat16.
    """

    model: str = "vit_small_patch16_224"
    batch: int = 8
    budgets: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    learners: int = 4
    whole: bool = False
    backend: str = "auto"
    device: str = "auto"
    bf16: bool = False
