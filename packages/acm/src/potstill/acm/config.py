"""Options of the commands: frozen dataclasses, the same as flags and as a file."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from potstill.core import ConfigError, Training

__all__ = ["BatchConfig", "ConvertConfig", "DistillConfig", "ImageConfig", "Phase", "TimeConfig"]


@dataclass(frozen=True)
class ConvertConfig:
    """Dense model, its size, and how it becomes adaptive.

    Attributes:
        model: Name for timm's create_model.
        pretrained: Start from timm's weights.
        checkpoint: File of other weights of the dense model, .safetensors.
        size: Side of the images in pixels; timm's by default.
        patch: Side of a patch in pixels; timm's by default.
        width: Embedding width; timm's by default.
        depth: Blocks; timm's by default.
        heads: Attention heads; timm's by default.
        classes: Number of classes.
        pool: Pooling before the head; timm's by default.
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
    classes: int = 1000
    pool: str | None = None
    targets: tuple[str, ...] = ("mlp",)
    learners: int = 4
    flops_factor: float = 1.0
    initial: str = "split"

    def options(self) -> dict[str, int | str]:
        """Arguments of timm's create_model besides the name."""
        given = {
            "img_size": self.size, "patch_size": self.patch, "embed_dim": self.width,
            "depth": self.depth, "num_heads": self.heads, "global_pool": self.pool,
            "num_classes": self.classes,
        }  # fmt: skip
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class ImageConfig:
    """Images, and how the model expects them.

    Attributes:
        data: Folder of class folders, or one inside a zip file: cifar10.zip/train.
        statistics: Mean and standard deviation for normalising: imagenet or cifar10.
    """

    data: Annotated[Path, Parameter(alias="--data")]
    statistics: Annotated[str, Parameter(alias="--statistics")] = "imagenet"

    def __post_init__(self) -> None:
        if self.statistics not in ("imagenet", "cifar10"):
            raise ConfigError(
                f"acm: statistics must be imagenet or cifar10, got {self.statistics!r}"
            )


@dataclass(frozen=True)
class BatchConfig(ImageConfig):
    """Images in batches, for verbs that do not train.

    Attributes:
        batch: Images per batch.
    """

    batch: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch < 1:
            raise ConfigError(f"acm: batch must be at least 1, got {self.batch}")


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
        images: Images with classes.
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
        if training.workers or training.parallel != "ddp":
            raise ConfigError(
                "distill: images are in memory and each process holds the whole model: workers "
                f"must be 0 and parallel ddp, got {training.workers} and {training.parallel}"
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
