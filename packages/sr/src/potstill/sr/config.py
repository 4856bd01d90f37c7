"""Configurations of the commands; importing them is cheap."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from potstill.core import ConfigError, Training

__all__ = [
    "TRAINING",
    "Alpha",
    "Backend",
    "DistillConfig",
    "Mode",
    "Precision",
    "Scale",
    "StudentConfig",
    "Terms",
    "Tile",
    "TrainConfig",
    "UpscaleConfig",
]

Alpha = Literal["bicubic", "lanczos", "network"]
Backend = Literal["torch", "onnx", "openvino"]
Mode = Literal["none", "exact", "recompute", "gates", "independent"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Scale = Literal[2, 3, 4]
Tile = int | Literal["auto", "none"]

TRAINING = Training(steps=10_000, lr=4e-3, warmup=0.02, final=0.0, clip=0.1, ema=0.999)
"""Options of training by default; ``replace(TRAINING, steps=500)`` changes some."""


def _short(name: str) -> Parameter:
    return Parameter(alias=f"--{name}")


@dataclass(frozen=True)
class StudentConfig:
    """The shape of a student.

    Attributes:
        scale: Factor of enlargement.
        channels: Width, a multiple of 4.
        blocks: Depth.
        global_skip: Bicubic enlargement that is added to the output; "none" as published.
    """

    scale: Annotated[Scale, _short("scale")] = 2
    channels: Annotated[int, _short("channels")] = 32
    blocks: Annotated[int, _short("blocks")] = 4
    global_skip: Annotated[Literal["bicubic", "none"], _short("global-skip")] = "bicubic"

    def __post_init__(self) -> None:
        if self.channels < 4 or self.channels % 4:
            raise ConfigError(
                f"StudentConfig: channels must be a multiple of 4, got {self.channels}; try 32"
            )
        if self.blocks < 1:
            raise ConfigError(f"StudentConfig: blocks must be at least 1, got {self.blocks}")


@dataclass(frozen=True)
class Terms:
    """Weights of the terms of the objective; all but ``task`` need a teacher.

    Attributes:
        task: Weight of L1 to the photograph.
        output: Weight of L1 to the teacher's output.
        affinity: Weight of FAKD's spatial affinity at up to three pairs of blocks.
        wavelet: Weight of the L1 of high frequencies to the teacher's output.
        contrastive: Weight of CSD's contrastive ratio.
    """

    task: Annotated[float, _short("task")] = 1.0
    output: Annotated[float, _short("output")] = 0.0
    affinity: Annotated[float, _short("affinity")] = 0.0
    wavelet: Annotated[float, _short("wavelet")] = 0.0
    contrastive: Annotated[float, _short("contrastive")] = 0.0

    def __post_init__(self) -> None:
        for name, weight in vars(self).items():
            if weight < 0:
                raise ConfigError(f"Terms: {name} must not be negative, got {weight}")


@dataclass(frozen=True)
class TrainConfig:
    """Train an upscaler on a folder of photographs (any images, or DIV2K's layout).

    Attributes:
        photographs: Folder of images; low-resolution patches are made by MATLAB's bicubic.
        out: Folder of the run; an interrupted one is continued.
        student: Shape of the network.
        patch: Side of the low-resolution patches, pixels.
        init: Weights to start from; all tensors that fit are copied, so x3 can start from x2.
        validate: Folder or set whose PSNR keeps the best weights; never your test set.
        validate_every: Steps between scores of held-out images.
        teacher: Weight file or name of a larger network of the same factor.
        terms: Weights of the terms.
        training: Budget, optimizer, device and seed.
    """

    photographs: Path
    _: KW_ONLY
    out: Annotated[Path, Parameter(alias="-o")]
    student: StudentConfig = StudentConfig()
    patch: int = 16
    init: str | None = None
    validate: str | None = None
    validate_every: int = 1000
    teacher: str | None = None
    terms: Terms = Terms()
    training: Training = TRAINING

    def __post_init__(self) -> None:
        for name in ("patch", "validate_every"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"{type(self).__name__}: {name} must be at least 1, got {getattr(self, name)}"
                )
        if self.training.workers:
            raise ConfigError(
                f"{type(self).__name__}: training.workers must be 0, got {self.training.workers}; "
                "patches are cut in the main process"
            )


@dataclass(frozen=True)
class DistillConfig(TrainConfig):
    """Train a student on photographs and on what a larger teacher makes of them.

    Terms: --output (teacher's image), --affinity (FAKD), --wavelet (high frequencies),
    --contrastive (CSD).

    Attributes:
        teacher: Weight file or name of a larger network of the same factor.
        terms: Weights of the terms.
    """

    _: KW_ONLY
    teacher: str = field()
    terms: Terms = Terms(task=0.5, output=0.5)


@dataclass(frozen=True)
class UpscaleConfig:
    """Enlarge files, folders and patterns; one bad file does not stop the others.

    Attributes:
        inputs: Image files, folders, or patterns such as "photos/*.jpg".
        out: Folder, or a file when there is one input.
        recursive: Search folders below too; the output mirrors their tree.
        suffix: Text after the name of each output; "_x{scale}" and "{model}" are filled in.
        scale: Factor; 2 when no model is named.
        model: Weight file, or the name of weights that come with the package.
        target: Final size WxH; a side of 0 follows from the other. The network is used as often as
            it takes.
        tile: Side of the tiles in pixels, "auto" or "none".
        tile_mode: Way in which tiles share statistics.
        memory_limit: Memory in MiB that may be used on top of the input.
        backend: Inference backend.
        precision: Numeric precision; auto is bf16 where the device has instructions for it.
        device: auto, cpu, cuda or mps.
        compile: Compile the network first.
        self_ensemble: Average over eight orientations: slower, slightly better.
        alpha: Enlargement of transparency.
        keep_hidden: Enlarge the colour under clear pixels as it is, else it is filled from the
            pixels that are seen.
        format: Format of the output; by default that of the input, PNG where it cannot be written
            without loss.
        quality: Quality of JPEG and WebP, 1 to 100; by default 95, and a WebP without loss stays
            without loss.
        megapixels: Most pixels of an input, in millions.
        overwrite: Replace existing files.
        skip_existing: Leave inputs out whose output is there: an interrupted batch goes on.
        json: Print one JSON object for each file instead of a table.
    """

    inputs: tuple[str, ...]
    _: KW_ONLY
    out: Annotated[Path, Parameter(alias="-o")]
    recursive: bool = False
    suffix: str = ""
    scale: Scale | None = None
    model: str | None = None
    target: str | None = None
    tile: Tile = "auto"
    tile_mode: Literal["auto"] | Mode = "auto"
    memory_limit: float | None = None
    backend: Backend = "torch"
    precision: Precision = "fp32"
    device: str = "auto"
    compile: bool = False
    self_ensemble: bool = False
    alpha: Alpha = "bicubic"
    keep_hidden: bool = False
    format: Literal["png", "tiff", "webp", "jpg", "gif", "bmp"] | None = None
    quality: int | None = None
    megapixels: float = 1000.0
    overwrite: bool = False
    skip_existing: bool = False
    json: bool = False
