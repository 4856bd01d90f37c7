"""Builders of this package: any timm model, and residual networks for small images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from potstill.core import ConfigError
from potstill.search.space import Space

__all__ = ["SmallResNet", "resnet", "timm_model", "vit"]


def timm_model(model: str, **options: Any) -> nn.Module:
    """``timm.create_model(model, **options)``: the builder ``timm``.

    The options stay with the model, so that `save_student` can write it as a folder for timm.

    Args:
        model: Name of the architecture, such as ``vit_tiny_patch16_224``.
        **options: Arguments of the architecture: ``depth``, ``embed_dim``, ``num_classes``.

    Raises:
        ConfigError: timm has no such architecture.
    """
    import timm

    if not timm.is_model(model):
        raise ConfigError(f"timm_model: timm has no architecture {model!r}; timm.list_models()")
    made: nn.Module = timm.create_model(model, **options)
    kept = {name: value for name, value in options.items() if name != "num_classes"}
    object.__setattr__(made, "potstill_options", kept)
    return made


def vit(
    classes: int,
    *,
    size: int = 224,
    patch: int = 16,
    depth: Sequence[int] = (3, 6, 9),
    dim: Sequence[int] = (96, 144, 192),
    heads: Sequence[int] = (3,),
    mlp: Sequence[float] = (2, 4),
    model: str = "vit_tiny_patch16_224",
    **fixed: Any,
) -> Space:
    """Vision transformers of timm, by depth, width, heads and ratio of the MLP.

    Args:
        classes: Outputs.
        size: Side of the images in pixels.
        patch: Side of a patch in pixels.
        depth: Numbers of blocks.
        dim: Widths; combinations in which the heads do not divide the width are left out.
        heads: Numbers of attention heads.
        mlp: Hidden units of an MLP as a multiple of the width.
        model: timm's name of the architecture.
        **fixed: More arguments for timm.

    Example:
        >>> space = vit(10, size=32, patch=8, depth=(1, 2), dim=(16, 24), heads=(2, 3), mlp=(2,))
        >>> len(list(space))  # 3 heads divide 24, not 16
        6
    """
    choices = {"depth": depth, "embed_dim": dim, "num_heads": heads, "mlp_ratio": mlp}
    fixed = {"model": model, "num_classes": classes, "img_size": size, "patch_size": patch, **fixed}
    return Space(timm_model, choices, fixed, valid=_divides, name="timm")


def _divides(embed_dim: int, num_heads: int, **_: Any) -> bool:
    return embed_dim % num_heads == 0


def resnet(
    classes: int,
    *,
    depth: Sequence[Sequence[int]] = ((1, 1, 1), (2, 2, 2), (3, 3, 3)),
    width: Sequence[int] = (8, 16, 32),
    **fixed: Any,
) -> Space:
    """Residual networks for small images, by blocks of the stages and by width.

    Args:
        classes: Outputs.
        depth: Blocks of each stage.
        width: Channels of the first stage.
        **fixed: More arguments of `SmallResNet`.
    """
    choices = {"depth": depth, "width": width}
    return Space(SmallResNet, choices, {"num_classes": classes, **fixed}, name="resnet")


class _Block(nn.Module):
    def __init__(self, into: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(into, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.act1, self.act2 = nn.ReLU(), nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or into != out:
            conv = nn.Conv2d(into, out, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x)))))
        return self.act2(y + self.shortcut(x))


class SmallResNet(nn.Module):
    """A residual network for small images, with the interface of timm's models.

    Source: He et al., CVPR 2016, section 4.2, with a projection where shapes change. The builder
    ``resnet``. Channels double from stage to stage, and the sides halve.

    Args:
        depth: Blocks of each stage.
        width: Channels of the first stage.
        num_classes: Outputs.
        in_chans: Channels of the images.

    Raises:
        ConfigError: A stage without blocks.

    Example:
        >>> import torch
        >>> SmallResNet((1, 1, 1), 8, num_classes=10)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self, depth: Sequence[int], width: int = 16, num_classes: int = 10, in_chans: int = 3
    ) -> None:
        super().__init__()
        if not depth or min(depth) < 1:
            raise ConfigError(f"SmallResNet: depth must be blocks of each stage, got {depth}")
        self.conv1 = nn.Conv2d(in_chans, width, 3, 1, 1, bias=False)
        self.bn1, self.act1 = nn.BatchNorm2d(width), nn.ReLU()
        stages, into = [], width
        for number, blocks in enumerate(depth):
            out = width * 2**number
            first = _Block(into, out, 1 if number == 0 else 2)
            stages.append(nn.Sequential(first, *(_Block(out, out, 1) for _ in range(blocks - 1))))
            into = out
        self.stages, self.num_features = nn.Sequential(*stages), into
        self.fc = nn.Linear(into, num_classes)

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.fc

    def forward_features(
        self, x: Float[Tensor, "batch channels h w"]
    ) -> Float[Tensor, "batch features H W"]:
        """Maps before pooling."""
        maps: Tensor = self.stages(self.act1(self.bn1(self.conv1(x))))
        return maps

    def forward(self, x: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch classes"]:
        """Logits."""
        logits: Tensor = self.fc(self.forward_features(x).mean((2, 3)))
        return logits


def options_of(model: nn.Module) -> Mapping[str, Any]:
    """Arguments of timm that the builder ``timm`` gave a model."""
    found: Mapping[str, Any] = getattr(model, "potstill_options", {})
    return found
