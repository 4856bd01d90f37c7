"""Options of the commands: frozen dataclasses, the same as flags and as recipe files."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from potstill.core import ConfigError, Training, nearest

__all__ = [
    "Align",
    "Data",
    "Decoder",
    "Encoder",
    "Finetune",
    "Mask",
    "Pretrain",
    "Probe",
    "Teacher",
    "recipe",
    "recipes",
]


@dataclass(frozen=True)
class Encoder:
    """A timm vision transformer. Zero and empty mean: as the name says.

    Attributes:
        name: Name of any timm ViT, DeiT or Eva-type model; where neither it nor what is loaded
            says more, vit_small_patch16_224.
        image_size: Side of the images in pixels.
        height: Height of images that are not square; ``image_size`` is their width.
        patch_size: Side of a patch in pixels.
        width: Channels of a token.
        depth: Number of blocks.
        heads: Attention heads.
        channels: Channels of the images: 1 is grey, 4 has opacity.
        pool: Tokens that the classifier reads.
        mean: Mean per channel of its images in [0, 1].
        std: Standard deviation per channel of its images.
    """

    name: str = ""
    image_size: int = 0
    patch_size: int = 0
    width: int = 0
    depth: int = 0
    heads: int = 0
    pool: Literal["", "token", "avg"] = ""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    height: int = 0
    channels: int = 0

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or any(value <= 0 for value in self.std):
            raise ConfigError(
                f"Encoder: mean and std must be one number per channel, std positive, got "
                f"{self.mean} and {self.std}"
            )
        sizes = ("image_size", "height", "patch_size", "width", "depth", "heads", "channels")
        for name in sizes:
            if getattr(self, name) < 0:
                raise ConfigError(f"Encoder: {name} must be at least 0, got {getattr(self, name)}")
        if self.height and not self.image_size:
            raise ConfigError(
                f"Encoder: height needs image_size, the width, got {self.height} only"
            )

    def options(self) -> dict[str, int | str | tuple[int, int]]:
        """Arguments of ``timm.create_model``, without what is left to the name."""
        timm_names: dict[str, int | str | tuple[int, int]] = {
            "img_size": (self.height, self.image_size) if self.height else self.image_size,
            "patch_size": self.patch_size,
            "embed_dim": self.width,
            "depth": self.depth,
            "num_heads": self.heads,
            "in_chans": self.channels,
            "global_pool": self.pool,
        }
        return {name: value for name, value in timm_names.items() if value}


@dataclass(frozen=True)
class Decoder:
    """The decoder of hidden patches.

    Attributes:
        depth: Number of blocks; 0 leaves the decoder out (alignment only).
        width: Channels inside.
        heads: Attention heads; 0 is a head per 32 channels.
        share: Share of the hidden patches that is decoded.
    """

    depth: int = 2
    width: int = 512
    heads: int = 0
    share: float = 1.0

    def options(self) -> dict[str, int | float] | None:
        """Arguments of ``PatchDecoder``; None without a decoder."""
        return {**vars(self)} if self.depth else None


@dataclass(frozen=True)
class Teacher:
    """The teacher.

    Attributes:
        source: A timm model with pre-trained weights (``vit_base_patch16_224.mae``), the folder of
            a run, or a checkpoint file; empty for plain masked autoencoding.
        encoder: Architecture of a checkpoint file that does not say it itself.
        bf16: Run the teacher in bfloat16.
        prune: Free the blocks behind the last tap; in `finetune` all of them are needed.
    """

    source: str = ""
    encoder: Encoder = Encoder()
    bf16: bool = False
    prune: bool = True


@dataclass(frozen=True)
class Align:
    """The alignment of features.

    Attributes:
        layers: Aligned depths as shares; ``round(share * depth) - 1`` in both models.
        pairs: Block indices ``student:teacher`` instead of shares.
        weight: Weight of each term.
        distance: Distance of student and teacher features.
        norm: Normalisation of both before they are compared; ``l2`` is the published one, whose
            term is a tenth of the loss.
        projector: Map from the student's width to the teacher's.
    """

    layers: tuple[float, ...] = (0.75,)
    pairs: tuple[str, ...] = ()
    weight: float = 1.0
    distance: Literal["l1", "smooth_l1", "mse", "cosine"] = "l1"
    norm: Literal["l2", "l2_sqrt_dim", "layernorm", "none"] = "l2_sqrt_dim"
    projector: Literal["linear", "mlp", "none"] = "linear"

    def __post_init__(self) -> None:
        self.blocks()

    def blocks(self) -> list[float | tuple[int, int]]:
        """Aligned blocks as ``layer_map`` reads them."""
        try:
            pairs = [(int(s), int(t)) for s, t in (pair.split(":") for pair in self.pairs)]
        except ValueError:
            raise ConfigError(
                f"Align: pairs must look like 8:17 (student:teacher), got {self.pairs}"
            ) from None
        return list(pairs or self.layers)


@dataclass(frozen=True)
class Mask:
    """The masking.

    Attributes:
        kind: ``random`` patches, ``block``s, or a regular ``grid``.
        ratio: Share of hidden patches.
        side: Patches on the side of a block.
    """

    kind: Literal["random", "block", "grid"] = "random"
    ratio: float = 0.75
    side: int = 2

    def __post_init__(self) -> None:
        if not 0 <= self.ratio < 1:
            raise ConfigError(f"Mask: ratio must be in [0, 1), got {self.ratio}")


@dataclass(frozen=True)
class Data:
    """Images: any folder or zip file.

    Attributes:
        train: Training images. Pre-training needs no classes, and any tree of images will do.
            Relative paths that do not exist are looked up below the data root.
        test: Images that are held out, in class folders.
        validation: Images in class folders that choose the best weights of `finetune`, judged after
            each epoch; without them the last weights stay.
        resident: Keep all images in memory as they are and only shift and flip them: for small
            images of one size, where decoding would cost more than a step.
    """

    train: str = ""
    test: str = ""
    resident: bool = False
    validation: str = ""


@dataclass(frozen=True)
class Pretrain:
    """Pre-train a student on images without labels, with a teacher or without.

    Attributes:
        out: Folder of the run; a run that is there is continued.
        student: The student.
        init: Weights that the student begins with: a timm model, the folder of a run or a
            checkpoint; it keeps its learned positions. Empty for fresh weights, fixed positions.
        decoder: Its decoder.
        teacher: The teacher.
        align: Alignment of features.
        mask: Hidden patches.
        data: Images; no labels needed.
        normalize_pixels: Paint patches of mean 0 and variance 1.
        training: Budget, optimizer, precision, device and seed; vectors have no weight decay.
        lr_per_256: Peak learning rate per 256 images of the global batch, where ``training.lr``
            names none.
    """

    out: Path
    _: KW_ONLY
    student: Encoder = Encoder()
    init: Annotated[str, Parameter(alias="--student.init")] = ""
    decoder: Decoder = Decoder()
    teacher: Teacher = Teacher()
    align: Align = Align()
    mask: Mask = Mask()
    data: Data = Data()
    normalize_pixels: bool = False
    training: Training = Training(
        epochs=100, batch=128, optimizer="adamw", weight_decay=0.05, warmup=0.2, final=0.0
    )
    lr_per_256: float = 1.5e-4


@dataclass(frozen=True)
class Finetune:
    """Train a classifier from a pre-trained encoder, or from scratch.

    Attributes:
        out: Folder of the run; a run that is there is continued.
        init: Folder of a pre-training run or a checkpoint; empty for scratch.
        encoder: Architecture, when ``init`` does not say it.
        teacher: A classifier of the same classes whose logits are learned too, e.g. the folder of
            an earlier `finetune` of a larger model.
        kd: Weight of the teacher's logits; the labels have the rest.
        temperature: Temperature of the teacher's logits.
        data: Images in class folders.
        pool: Mean of the patch tokens, or the class token.
        drop_path: Rate of stochastic depth at the last block.
        mixup: Strength of mixup.
        cutmix: Strength of cutmix.
        smoothing: Label smoothing.
        erase: Chance of erasing a rectangle.
        augment: ``strong`` is RandAugment with crops from 8 %.
        training: Budget, optimizer, precision, device and seed; vectors have no weight decay.
        lr_per_256: Peak learning rate per 256 images of the global batch, where ``training.lr``
            names none.
        layer_decay: Factor of the learning rate per block towards the input.
    """

    out: Path
    _: KW_ONLY
    init: str = ""
    encoder: Encoder = Encoder()
    teacher: Teacher = Teacher()
    kd: float = 0.5
    temperature: float = 2.0
    data: Data = Data()
    pool: Literal["avg", "token"] = "avg"
    drop_path: float = 0.15
    mixup: float = 0.8
    cutmix: float = 1.0
    smoothing: float = 0.1
    erase: float = 0.25
    augment: Literal["strong", "light"] = "strong"
    training: Training = Training(
        epochs=100, batch=128, optimizer="adamw", weight_decay=0.05, warmup=0.2, final=5e-4
    )
    lr_per_256: float = 5e-4
    layer_decay: float = 0.75

    def __post_init__(self) -> None:
        if not (0 <= self.kd <= 1 and self.temperature > 0):
            raise ConfigError(
                f"Finetune: kd must be in [0, 1] and temperature positive, got {self.kd} and "
                f"{self.temperature}"
            )


@dataclass(frozen=True)
class Probe:
    """Nearest-neighbour and linear accuracy of frozen features.

    Attributes:
        init: Folder of a run, a checkpoint, or a timm model with pre-trained weights.
        encoder: Architecture, when ``init`` does not say it.
        data: Images in class folders.
        neighbors: Number of neighbours that vote.
        epochs: Passes of the linear classifier over the features.
        batch: Images at a time.
        device: Device; auto is a GPU where there is one.
        seed: Seed of the linear classifier.
    """

    init: str
    _: KW_ONLY
    encoder: Encoder = Encoder()
    data: Data = Data()
    neighbors: int = 20
    epochs: int = 50
    batch: Annotated[int, Parameter(alias="--batch-size")] = 128
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.neighbors < 1:
            raise ConfigError(f"Probe: neighbors must be at least 1, got {self.neighbors}")


def recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = resources.files("potstill.mae") / "recipes"
    return sorted(
        f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml")
    )


def recipe(name: str) -> Path:
    """Path of a recipe, for ``--config``: ``potstill mae pretrain --config $(...)``.

    Raises:
        ConfigError: There is no such recipe.
    """
    if name not in recipes():
        raise ConfigError(f"recipe: unknown recipe {name!r}; {nearest(name, recipes())}")
    return Path(str(resources.files("potstill.mae") / "recipes" / f"{name}.yaml"))
