"""Networks of any kind, called in one way, and small ones for points."""

from __future__ import annotations

import inspect
import math
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from potstill.core import BackendError, ConfigError, Pretrained

__all__ = ["PointNet", "call_network", "diffusers", "is_diffusers"]


def diffusers(caller: str) -> Any:
    """The package, imported when it is needed: that takes seconds.

    Raises:
        BackendError: It is not installed.
    """
    try:
        import diffusers as package
    except ImportError as error:
        raise BackendError(
            f"{caller} needs diffusers, which is not installed: "
            'pip install "potstill-flow[diffusers]"'
        ) from error
    return package


def is_diffusers(model: Any) -> bool:
    """Whether a network is one of diffusers."""
    return type(model).__module__.startswith("diffusers.")


def call_network(model: Any, x: Tensor, time: Tensor, condition: Tensor | None) -> Tensor:
    """Call a network of diffusers, or any ``model(x, time, condition)``.

    Networks of diffusers get labels as ``class_labels``, or states as ``encoder_hidden_states``;
    of twice the channels, which is how a learned variance comes, the first half is taken.

    Args:
        model: The network.
        x: Noised items on the network's own path, [items ...].
        time: The network's own time of each, [items].
        condition: Labels or states of each, or None.

    Returns:
        What the network predicts, shaped as ``x``.

    Raises:
        ConfigError: The network gives another shape.
    """
    if is_diffusers(model):
        known = inspect.signature(model.forward).parameters
        name = "class_labels"
        if "encoder_hidden_states" in known and not (
            condition is not None and not condition.is_floating_point()
        ):
            name = "encoder_hidden_states"
        if condition is None and (classes := model.config.get("num_embeds_ada_norm")):
            condition = torch.full((len(x),), classes, device=x.device)  # DiT's row for "no class"
        found = model(x, timestep=time, **{name: condition}).sample
        found = found[:, : x.shape[1]]
    else:
        found = model(x, time, condition)
    if not isinstance(found, Tensor) or found.shape != x.shape:
        got = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ConfigError(
            f"call_network: {type(model).__name__} must predict {list(x.shape)}, like its input, "
            f"got {got}"
        )
    return found


class PointNet(nn.Module, Pretrained):
    """A small network for points: an MLP on position, time and class.

    Args:
        size: Numbers of a point.
        width: Hidden units.
        depth: Hidden layers.
        classes: Number of classes; with one more row for "no class". 0 for none.
        frequencies: Octaves of the time's sines and cosines.

    Example:
        >>> PointNet(2)(torch.zeros(5, 2), torch.zeros(5)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self, size: int = 2, width: int = 96, depth: int = 3, classes: int = 0, frequencies: int = 4
    ) -> None:
        super().__init__()
        self.classes = classes
        self.register_buffer(
            "octaves", math.pi * 2.0 ** torch.arange(frequencies), persistent=False
        )
        self.labels = nn.Embedding(classes + 1, width) if classes else None
        sizes = [size + 1 + 2 * frequencies, *[width] * depth]
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.out = nn.Linear(width, size)

    def forward(
        self, x: Float[Tensor, "points size"], time: Tensor, condition: Tensor | None = None
    ) -> Float[Tensor, "points size"]:
        """Predict from points, their times in [0, 1], and their classes."""
        octaves: Any = self.octaves
        angles = time[:, None] * octaves
        h = torch.cat([x, time[:, None], angles.sin(), angles.cos()], 1)
        for number, layer in enumerate(self.hidden):
            h = layer(h)
            if number == 0 and self.labels is not None:
                none = torch.full((len(x),), self.classes, device=x.device)
                h = h + self.labels(none if condition is None else condition)
            h = nn.functional.silu(h)
        found: Tensor = self.out(h)
        return found


def make_network(
    kind: str,
    shape: tuple[int, ...],
    classes: int = 0,
    *,
    widths: tuple[int, ...] = (32, 64),
    depth: int = 1,
    patch: int = 2,
) -> nn.Module:
    """A new network for items of a shape; classes get one more label, for "no class".

    Args:
        kind: ``unet`` or ``dit`` (of diffusers, for square images), or ``points``.
        shape: Shape of an item.
        classes: Number of classes.
        widths: Channels of each level of a UNet; width of a DiT (a multiple of 16) or an MLP.
        depth: Layers of each level, blocks, or layers.
        patch: Side of a DiT's patch.

    Raises:
        ConfigError: Items that the network cannot take.
        BackendError: diffusers is not installed.
    """
    if kind == "points":
        if len(shape) != 1:
            raise ConfigError(f"make_network: points must be [size], got items of {list(shape)}")
        return PointNet(shape[0], widths[0], max(depth, 2), classes)
    if len(shape) != 3 or shape[1] != shape[2]:
        raise ConfigError(
            f"make_network: {kind} must have square images [channels side side], got items of "
            f"{list(shape)}"
        )
    halvings = len(widths) - 1 if kind == "unet" else 0
    least = 2**halvings if kind == "unet" else patch
    if shape[1] % least:
        raise ConfigError(
            f"make_network: the side of the images must be a multiple of {least} for {kind}, got "
            f"{shape[1]}; resize with --size, or change widths or patch"
        )
    library = diffusers("make_network")
    if kind == "unet":
        groups = math.gcd(*widths, 32)
        model: nn.Module = library.UNet2DModel(
            sample_size=shape[1], in_channels=shape[0], out_channels=shape[0],
            block_out_channels=widths, layers_per_block=depth, norm_num_groups=groups,
            down_block_types=("DownBlock2D",) * len(widths),
            up_block_types=("UpBlock2D",) * len(widths), add_attention=False,
            num_class_embeds=classes + 1 if classes else None,
        )  # fmt: skip
        return model
    dit: nn.Module = library.DiTTransformer2DModel(
        num_attention_heads=max(widths[0] // 16, 1), attention_head_dim=16, in_channels=shape[0],
        num_layers=depth, patch_size=patch, sample_size=shape[1],
        num_embeds_ada_norm=max(classes, 1), norm_num_groups=1,
    )  # fmt: skip
    return without_label_dropout(dit)


def without_label_dropout(model: nn.Module) -> nn.Module:
    """Switch off the dropping of labels that DiT does by itself while it trains."""
    for module in model.modules():
        if hasattr(module, "dropout_prob"):
            module.dropout_prob = 0.0  # type: ignore[assignment]
    return model
