"""The field's standard network, and any of timm's by name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from potstill.core import BackendError, ConfigError, Pretrained, nearest

__all__ = ["ConvNet", "make_network", "redraw"]

Norm = Literal["instance", "batch", "layer", "none"]
_NORMS = ("instance", "batch", "layer", "none")
_NAME = re.compile(r"convnet-(\d+)-(\d+)-(\w+)")


class ConvNet(
    nn.Module,
    Pretrained,
    paper="Zhao, Mopuri and Bilen, Dataset Condensation with Gradient Matching, ICLR 2021",
):
    """Blocks of [3x3 convolution, norm, ReLU, 2x2 average pooling], then one linear layer.

    Source: the ConvNet of Gidaris and Komodakis, CVPR 2018, as the literature of dataset
    distillation uses it; its usual form has three blocks of 128 channels and instance norm.

    Args:
        depth: Number of blocks.
        width: Channels of each.
        norm: Normalisation; there is no default, since figures depend on it.
        classes: Number of classes.
        channels: Channels of the images.
        size: Height and width of the images.

    Raises:
        ConfigError: A number below 1, an unknown norm, or images too small for the depth.

    Example:
        >>> import torch
        >>> net = ConvNet(2, 8, "instance", classes=10, channels=1, size=(8, 8))
        >>> net(torch.zeros(5, 1, 8, 8)).shape, net.embed(torch.zeros(5, 1, 8, 8)).shape
        (torch.Size([5, 10]), torch.Size([5, 32]))
    """

    def __init__(
        self,
        depth: int,
        width: int,
        norm: Norm,
        *,
        classes: int,
        channels: int = 3,
        size: tuple[int, int] = (32, 32),
    ) -> None:
        super().__init__()
        if norm not in _NORMS:
            raise ConfigError(f"ConvNet: unknown norm {norm!r}; {nearest(norm, _NORMS)}")
        if min(depth, width, classes, channels) < 1:
            raise ConfigError(
                "ConvNet: depth, width, classes and channels must be at least 1, got "
                f"{depth}, {width}, {classes} and {channels}"
            )
        if min(size) >> depth < 1:
            raise ConfigError(
                f"ConvNet: images must have sides of at least {1 << depth} pixels for {depth} "
                f"blocks, got {size[0]} x {size[1]}; use fewer blocks"
            )
        blocks, height, across = [], *size
        for number in range(depth):
            blocks.append(
                nn.Sequential(
                    nn.Conv2d(channels if number == 0 else width, width, 3, padding=1),
                    _norm(norm, width, height, across),
                    nn.ReLU(),
                )
            )
            height, across = height // 2, across // 2
        self.blocks = nn.ModuleList(blocks)
        self.classifier = nn.Linear(width * height * across, classes)

    def activations(
        self, x: Float[Tensor, "images channels height width"]
    ) -> tuple[list[Tensor], Float[Tensor, "images features"]]:
        """Outputs of the blocks before their pooling, and the features before the classifier."""
        found = []
        for block in self.blocks:
            x = block(x)
            found.append(x)
            x = halved(x)
        return found, x.flatten(1)

    def embed(
        self, x: Float[Tensor, "images channels height width"]
    ) -> Float[Tensor, "images features"]:
        """Features before the classifier."""
        return self.activations(x)[1]

    def forward(
        self, x: Float[Tensor, "images channels height width"]
    ) -> Float[Tensor, "images classes"]:
        """Logits."""
        logits: Tensor = self.classifier(self.embed(x))
        return logits


def halved(x: Tensor) -> Tensor:
    """2x2 average pooling; on a CPU by sums of slices, four to seven times as fast as torch's."""
    if x.device.type != "cpu":
        return F.avg_pool2d(x, 2)
    height, width = x.shape[-2] // 2 * 2, x.shape[-1] // 2 * 2
    rows = x[..., 0:height:2, :] + x[..., 1:height:2, :]
    return (rows[..., 0:width:2] + rows[..., 1:width:2]) * 0.25


class _Timm(nn.Module):
    """A network of timm with the methods of `ConvNet` that it can have."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    def embed(self, x: Tensor) -> Tensor:
        features: Tensor = self.model.forward_head(self.model.forward_features(x), pre_logits=True)
        return features

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        return logits


def make_network(name: str, classes: int, shape: Sequence[int]) -> nn.Module:
    """A fresh network by name.

    Args:
        name: ``convnet-DEPTH-WIDTH-NORM`` such as ``convnet-3-128-instance``, or a model of timm.
        classes: Number of classes.
        shape: Channels, height and width of the images.

    Returns:
        A network with logits as its output and a method ``embed``.

    Raises:
        ConfigError: An unknown name, or what `ConvNet` refuses.
        BackendError: A name of timm without timm.
    """
    channels, height, width = shape
    if name.startswith("convnet-"):
        if not (found := _NAME.fullmatch(name)):
            raise ConfigError(
                f"make_network: a ConvNet must be called convnet-DEPTH-WIDTH-NORM, got {name!r}; "
                "write convnet-3-128-instance, say"
            )
        depth, channels_inside, norm = int(found[1]), int(found[2]), found[3]
        return ConvNet(
            depth, channels_inside, norm,  # type: ignore[arg-type]
            classes=classes, channels=channels, size=(height, width),
        )  # fmt: skip
    try:
        import timm
    except ModuleNotFoundError as error:
        raise BackendError(
            f"make_network: {name!r} needs timm; pip install 'potstill-condense[timm]'"
        ) from error
    known = timm.list_models()
    if name not in known:
        raise ConfigError(
            f"make_network: unknown network {name!r}; {nearest(name, known)}, or "
            "convnet-3-128-instance"
        )
    options: dict[str, Any] = {"num_classes": classes, "in_chans": channels}
    try:
        return _Timm(timm.create_model(name, **options, img_size=(height, width)))
    except TypeError:  # convolutional networks take any size
        return _Timm(timm.create_model(name, **options))


def redraw(network: nn.Module) -> None:
    """Draw new initial weights from torch's global stream, in place."""
    for module in network.modules():
        if callable(reset := getattr(module, "reset_parameters", None)):
            reset()


def _norm(kind: str, width: int, height: int, across: int) -> nn.Module:
    if kind == "instance":
        return nn.GroupNorm(width, width)
    if kind == "batch":
        return nn.BatchNorm2d(width)
    return nn.GroupNorm(1, width) if kind == "layer" else nn.Identity()
