"""Options of the commands: frozen dataclasses, the same as flags and as a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from potstill.core import ConfigError

__all__ = ["Convert", "Phases", "Reading", "Timing"]


@dataclass(frozen=True)
class Convert:
    """What to make adaptive, and how.

    Attributes:
        model: Name for timm's create_model.
        pretrained: Start from timm's weights.
        checkpoint: Weights of the dense model instead, a .safetensors file.
        size: Side of the images in pixels; timm's by default.
        patch: Side of a patch in pixels; timm's by default.
        width: Embedding width; timm's by default.
        depth: Blocks; timm's by default.
        heads: Attention heads; timm's by default.
        classes: Number of classes.
        pool: Pooling before the head; timm's by default.
        targets: mlp, qkvo, qkvo_shared.
        learners: Learners of each module.
        flops_factor: Cost of all learners relative to the dense module.
        initial: split, from the dense weights, or random.
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
        """What timm's create_model gets besides the name."""
        given = {
            "img_size": self.size,
            "patch_size": self.patch,
            "embed_dim": self.width,
            "depth": self.depth,
            "num_heads": self.heads,
            "global_pool": self.pool,
            "num_classes": self.classes,
        }
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class Reading:
    """Which images, and how the model expects them.

    Attributes:
        data: A folder of class folders, or one inside a zip file: cifar10.zip/train.
        statistics: imagenet or cifar10: what images are normalised with.
        batch: Images a batch.
    """

    data: Path
    statistics: str = "imagenet"
    batch: int = 128

    def __post_init__(self) -> None:
        if self.statistics not in ("imagenet", "cifar10"):
            raise ConfigError(
                f"acm: statistics must be imagenet or cifar10, got {self.statistics!r}"
            )
        if self.batch < 1:
            raise ConfigError(f"acm: batch must be at least 1, got {self.batch}")


@dataclass(frozen=True)
class Phases:
    """How long each phase lasts, and what it aims at.

    Attributes:
        budget: Mean share of the learners' cost.
        distill: Epochs of phase 1; 0 leaves it out.
        gate: Epochs of phase 2; 0 leaves it out.
        finetune: Epochs of phase 3; 0 leaves it out.
        distill_lr: Learning rate of phase 1.
        gate_lr: Learning rate of phase 2.
        finetune_lr: Learning rate of phase 3.
        budget_weight: Weight of the budget's term in phase 3 (published: 0.1, with long training).
        threshold: Remaining error that counts as no help, for the labels of phase 2.
        smoothing: Label smoothing of phase 3.
        precision: fp32, bf16 or fp16.
        seed: Seeds data order, augmentation and gates.
    """

    budget: float = 0.5
    distill: int = 3
    gate: int = 1
    finetune: int = 3
    distill_lr: float = 1e-3
    gate_lr: float = 1e-2
    finetune_lr: float = 5e-4
    budget_weight: float = 1.0
    threshold: float = 0.8
    smoothing: float = 0.1
    precision: str = "fp32"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.budget <= 1:
            raise ConfigError(f"acm: budget must be in (0, 1], got {self.budget}")
        if min(self.distill, self.gate, self.finetune) < 0:
            raise ConfigError("acm: epochs must not be negative")


@dataclass(frozen=True)
class Timing:
    """What is timed.

    Attributes:
        model: Name for timm's create_model.
        batch: Images a batch.
        budgets: Mean budgets.
        learners: Learners of each module.
        whole: Time the whole model, not its first MLP.
        backend: auto, sorted_prefix, torch, gathered, grouped_mm or triton.
        device: auto, cpu or cuda.
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
