"""Any timm vision transformer, run on the visible patches only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Shaped
from timm.layers import HybridEmbed
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from potstill.core import ConfigError, Frozen, PotstillError, ShapeError, tap
from potstill.mae.models.masking import MaskPlan
from potstill.mae.models.patches import sincos_positions

__all__ = ["MaskedViT", "UnsupportedModelError", "as_masked", "block_tokens", "visible"]


class UnsupportedModelError(PotstillError, TypeError):
    """A model that is no plain sequence of patch tokens, such as Swin or ConvNeXt."""


class _Keep(nn.Module):
    """Stands in for timm's ``patch_drop`` and keeps the patches that it is told to keep."""

    def __init__(self, keep: Tensor, num_prefix_tokens: int, with_indices: bool) -> None:
        super().__init__()
        self.keep, self.num_prefix_tokens, self.with_indices = keep, num_prefix_tokens, with_indices

    def forward(self, x: Tensor) -> Any:
        prefix, patches = x.tensor_split((self.num_prefix_tokens,), dim=1)
        index = self.keep[:, :, None].expand(-1, -1, x.shape[2])
        kept = torch.cat((prefix, patches.gather(1, index)), dim=1)
        return (kept, self.keep) if self.with_indices else kept


@contextmanager
def visible(vit: nn.Module, keep: Tensor | None) -> Iterator[None]:
    """Let ``vit`` see only the patches ``keep`` inside the block, whichever method is called.

    timm drops patches in one place, after the position embedding; this puts the given indices
    there, so that blocks, prefix tokens and rotary tables are handled by timm's own code. Biases of
    relative positions (BEiT) are gathered too. The model is as before when the block is left.

    Args:
        vit: A timm ``VisionTransformer``, ``Eva`` or ``Beit``.
        keep: Indices of visible patches, int64 [B K]; None leaves the model alone.
    """
    if keep is None:
        yield
        return
    model: Any = vit
    chosen = _Keep(keep, model.num_prefix_tokens, isinstance(vit, Eva))
    with ExitStack() as stack:
        if isinstance(vit, Beit):
            stack.enter_context(_replaced(model, "pos_drop", nn.Sequential(model.pos_drop, chosen)))
            prefix = torch.arange(model.num_prefix_tokens, device=keep.device).expand(len(keep), -1)
            tokens = torch.cat((prefix, keep + model.num_prefix_tokens), dim=1)
            for module in model.modules():
                if getattr(module, "relative_position_bias_table", None) is not None:
                    method = "_get_rel_pos_bias" if hasattr(module, "qkv") else "forward"
                    bias = partial(_gathered, getattr(module, method), tokens)
                    stack.enter_context(_replaced(module, method, bias))
        else:
            stack.enter_context(_replaced(model, "patch_drop", chosen))
        yield


@contextmanager
def _replaced(module: nn.Module, name: str, value: Any) -> Iterator[None]:
    """An attribute that is another one for a while; a method is that of the class again."""
    there, own = name in module._modules or name in vars(module), getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, own) if there else delattr(module, name)


def _gathered(bias: Callable[[], Tensor], tokens: Tensor) -> Tensor:
    """Biases [heads N N] or [1 heads N N] of some tokens [B n] of each image: [B heads n n]."""
    table = bias()
    table = table[0] if table.ndim == 4 else table
    return table[:, tokens[:, :, None], tokens[:, None, :]].transpose(0, 1)


class MaskedViT(nn.Module):
    """A timm ViT, DeiT, BEiT or Eva-type model that computes its tokens for visible patches only.

    Class, distillation and register tokens are always there. Rotary tables are gathered by the
    same indices as the patches. The model itself is not changed: ``masked.vit`` stays a plain
    timm model.

    Args:
        vit: A timm ``VisionTransformer`` (also distilled DeiT, also with registers), ``Eva``
            (EVA-02, DINOv3, rotary ViTs) or ``Beit``.

    Raises:
        UnsupportedModelError: The model is of another family, or mixes patches before it embeds
            them.
        ConfigError: The model drops patches by itself, or its size is not whole patches.

    Example:
        >>> import timm
        >>> from potstill.mae import RandomMasking
        >>> vit = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2)
        >>> plan = RandomMasking(0.75)(2, (4, 4))
        >>> MaskedViT(vit)(torch.zeros(2, 3, 64, 64), plan).shape  # class token and 4 of 16
        torch.Size([2, 5, 192])
    """

    def __init__(self, vit: nn.Module) -> None:
        super().__init__()
        if not isinstance(vit, VisionTransformer | Eva | Beit):
            raise UnsupportedModelError(
                "MaskedViT: vit must be of a family with patch tokens of one size (timm "
                "VisionTransformer: vit_*, deit_*, deit3_*, dinov2; Eva: eva02_*, vit_*_rope_*, "
                f"vit_*_dinov3; Beit: beit*), got {type(vit).__name__}; choose such a model"
            )
        if isinstance(vit.patch_embed, HybridEmbed):
            raise UnsupportedModelError(
                "MaskedViT: vit must cut images into patches, got a hybrid whose patches come from "
                f"a {type(vit.patch_embed.backbone).__name__}: there they have already seen their "
                "neighbours, so that none is hidden; choose a model without such a stem"
            )
        rate = getattr(getattr(vit, "patch_drop", None), "prob", 0.0)
        if rate > 0:
            raise ConfigError(
                f"MaskedViT: vit must be made with patch_drop_rate=0, got {rate}; "
                "the masking says which patches are dropped"
            )
        size, patch = vit.patch_embed.img_size, vit.patch_embed.patch_size
        if size is None or size[0] % patch[0] or size[1] % patch[1]:
            raise ConfigError(
                f"MaskedViT: the image size {size} of vit must be divisible by its patch size "
                f"{patch}; give create_model a fitting img_size"
            )
        self.vit = vit
        # Models that pool by the mean keep their last norm in `fc_norm`, for use after pooling.
        # Here it serves each token, so that it is trained and the decoder's input is normalised.
        self._norm_after_pooling = isinstance(vit.norm, nn.Identity)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return tuple(self.vit.patch_embed.grid_size)

    @property
    def patch_size(self) -> tuple[int, int]:
        """Height and width of a patch in pixels."""
        return tuple(self.vit.patch_embed.patch_size)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images in pixels."""
        return tuple(self.vit.patch_embed.img_size)

    @property
    def in_chans(self) -> int:
        """Channels of the images."""
        return self.vit.patch_embed.proj.in_channels

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.vit.embed_dim

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.vit.blocks)

    @property
    def num_prefix_tokens(self) -> int:
        """Class, distillation and register tokens."""
        return self.vit.num_prefix_tokens

    @staticmethod
    def block(index: int) -> str:
        """Path of block ``index`` (0-based), to be tapped."""
        return f"vit.blocks.{index}"

    def forward(
        self, images: Shaped[Tensor, ...], plan: MaskPlan | None = None
    ) -> Float[Tensor, "batch tokens width"]:
        """Tokens after the last norm.

        Args:
            images: [B C H W] of the model's size, normalised; in any dtype, the model's is used.
            plan: The masking; without it the model sees all patches in order.

        Returns:
            [B prefix+K D]: prefix tokens, then patches in the order of ``plan.keep``.

        Raises:
            ShapeError: The images differ from the model's size or channels, or ``plan`` is of
                another batch or grid.
        """
        self._check(images, plan)
        images = images.to(self.vit.patch_embed.proj.weight.dtype)
        with visible(self.vit, None if plan is None else plan.keep):
            tokens = self.vit.forward_features(images)
        return self.vit.fc_norm(tokens) if self._norm_after_pooling else tokens

    def unreached(self, last: int | None = None) -> list[nn.Module]:
        """The modules that :meth:`forward` does not use: the head, and blocks behind a tap.

        Args:
            last: The last tapped block, when the forward ends there.
        """
        names = ["head", "head_dist", "attn_pool"]
        if last is not None or not self._norm_after_pooling:
            names.append("fc_norm")
        unused = [getattr(self.vit, name, None) for name in names]
        behind = [] if last is None else [*self.vit.blocks[last + 1 :], self.vit.norm]
        return [module for module in unused + behind if module is not None]

    def prune(self, last: int) -> MaskedViT:
        """Drop all blocks behind block ``last``, the norm and the head, to free their memory.

        Only for teachers: the model cannot classify any more. Returns self.
        """
        if not 0 <= last < self.depth:
            raise ConfigError(f"MaskedViT.prune: last must be in [0, {self.depth}), got {last}")
        self.vit.prune_intermediate_layers([last], prune_norm=True)
        self._norm_after_pooling = False
        return self

    def with_grid(self, grid: tuple[int, int]) -> MaskedViT:
        """Take images of so many patches; positions are interpolated by timm. Returns self."""
        rows, columns = self.patch_size
        self.vit.set_input_size(img_size=(grid[0] * rows, grid[1] * columns))
        return self

    def fix_positions(self) -> MaskedViT:
        """Put the sine-cosine table of He et al. (CVPR 2022) in place and stop training it.

        Models without an absolute position table (rotary only) are left alone. Returns self.
        """
        table = self.vit.pos_embed
        if table is not None:
            prefix = table.shape[1] - self.grid[0] * self.grid[1]
            with torch.no_grad():
                table.copy_(sincos_positions(self.grid, self.width, prefix))
            table.requires_grad_(False)
        return self

    def _check(self, images: Tensor, plan: MaskPlan | None) -> None:
        expected = (self.in_chans, *self.image_size)
        if images.ndim != 4 or tuple(images.shape[1:]) != expected:
            raise ShapeError(
                f"MaskedViT: images must be [B {' '.join(map(str, expected))}], got "
                f"{list(images.shape)}; resize them, or make the model with in_chans and img_size"
            )
        if plan is None:
            return
        length = plan.keep.shape[1] + plan.hidden.shape[1]
        if len(plan.keep) != len(images) or length != self.grid[0] * self.grid[1]:
            raise ShapeError(
                f"MaskedViT: plan must be for {len(images)} images of {self.grid[0]} x "
                f"{self.grid[1]} patches, got {len(plan.keep)} of {length}"
            )


def as_masked(vit: nn.Module) -> MaskedViT:
    """``vit`` itself where it is a `MaskedViT`, else one around it."""
    return vit if isinstance(vit, MaskedViT) else MaskedViT(vit)


def block_tokens(
    model: Any, blocks: Iterable[int], *inputs: Any, stop: bool = True
) -> tuple[Any, dict[int, Tensor]]:
    """Run a model, and read the tokens behind some blocks of its encoder.

    Args:
        model: A `MaskedViT`, a frozen one, or a `MaskedAutoencoder`.
        blocks: Indices of blocks, from 0.
        *inputs: Images and, where they are masked, the plan.
        stop: Run to the last of ``blocks`` and no further, and not at all where there are none.

    Returns:
        What the model returns, None where it was stopped; and tokens [B n D] by block.
    """
    inner = model.model if isinstance(model, Frozen) else model
    path = "" if isinstance(inner, MaskedViT) else "encoder."
    names = {block: path + MaskedViT.block(block) for block in blocks}
    if not names:
        return None if stop else model(*inputs), {}
    with tap(model, *names.values(), stop=stop) as readings:
        returned = model(*inputs)
    return returned, {block: readings[name].output for block, name in names.items()}
