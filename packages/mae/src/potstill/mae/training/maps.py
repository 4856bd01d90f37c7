"""Masked distillation into models without patch tokens: ConvNeXt, ResNet, Swin."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from potstill.core import ConfigError, Distiller, Losses, Objective, Weight
from potstill.core.adapters import Renormalized
from potstill.core.images import Statistics
from potstill.mae.models.encoder import as_masked, block_tokens
from potstill.mae.models.masking import Masking, RandomMasking
from potstill.mae.training.criteria import FeatureDistance, Projector, alignment
from potstill.mae.training.distiller import Resized
from potstill.mae.training.layers import layer_map

__all__ = ["MapToMasked"]


class MapToMasked(Distiller):
    """Pre-training without labels of any model with a feature map, where the teacher looks.

    ``L = mean over visible patches of d(norm(P(map)), norm(h_t))``: the student sees whole images,
    its last map is interpolated to the teacher's patch grid, and the two are compared at the
    patches that the teacher sees. So the teacher is as cheap as in `MaskedToMasked`; the student
    is not.

    Source: the term is that of Bai et al., Masked Autoencoders Enable Efficient Knowledge
    Distillers, CVPR 2023, section 3; maps on a shared grid are our own.

    Args:
        student: A timm model whose ``forward_features`` returns a map, NCHW, or NHWC where its
            ``output_fmt`` says so.
        teacher: A timm vision transformer, or a `MaskedViT`; images are resized to its size.
        masking: Masking of the teacher; 75 % at random by default.
        layer: Share of the teacher's depth, or the index of a block.
        alpha: Weight of the term; a number or a function of the step.
        distance: Distance of student and teacher features.
        projector: Map from the student's to the teacher's width.
        statistics: Mean and standard deviation of the student's and of the teacher's input.

    Raises:
        ConfigError: A student with patch tokens, or without a map; a block outside the teacher.

    Example:
        >>> import timm, torch
        >>> teacher = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=4)
        >>> distiller = MapToMasked(timm.create_model("resnet10t"), teacher)
        >>> sorted(distiller(torch.zeros(2, 3, 64, 64), step=0).terms)
        ['align']
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        masking: Masking | None = None,
        layer: float | int = 0.75,
        alpha: Weight = 1.0,
        distance: FeatureDistance | None = None,
        projector: Projector = "linear",
        statistics: tuple[Statistics | None, Statistics | None] | None = None,
    ) -> None:
        model: Any = student
        if not hasattr(student, "forward_features") or hasattr(student, "num_prefix_tokens"):
            raise ConfigError(
                "MapToMasked: student must be a timm model with a feature map, got "
                f"{type(student).__name__}; MaskedToMasked is for vision transformers"
            )
        masked = as_masked(teacher)
        ((_, self.block),) = layer_map(layer, masked.depth, masked.depth)
        criterion = alignment(model.num_features, masked.width, distance, projector)
        super().__init__(student, Objective(align=(alpha, criterion)), masked)
        self.masking = masking or RandomMasking()
        self.grid, self.prefix = masked.grid, masked.num_prefix_tokens
        self.last = getattr(student, "output_fmt", "NCHW") == "NHWC"
        resized = Resized(masked.image_size)
        self.teacher_input = Renormalized(resized, *(statistics or (None, None)))
        for name in ("head", "fc", "classifier"):  # no gradient would come to it
            head = getattr(student, name, None)
            if isinstance(head, nn.Module):
                head.requires_grad_(False)

    def forward(self, batch: Any, step: int) -> Losses:
        """Loss of a batch: images [B C H W], or a tuple that starts with them."""
        images = batch[0] if isinstance(batch, tuple | list) else batch
        plan = self.masking(len(images), self.grid, device=images.device)
        _, h_t = block_tokens(self.teacher, [self.block], self.teacher_input(images), plan)
        student: Any = self.student
        tokens = self.on_grid(student.forward_features(images))
        index = plan.keep[:, :, None].expand(-1, -1, tokens.shape[2])
        pair = tokens.gather(1, index), h_t[self.block][:, self.prefix :]
        return self.objective(step, align=pair)

    def on_grid(self, features: Tensor) -> Tensor:
        """A map [B C h w] (or [B h w C]) as tokens of the teacher's patches [B L C]."""
        features = features.movedim(-1, 1) if self.last else features
        resampled = F.interpolate(features, self.grid, mode="bilinear", antialias=True)
        return resampled.flatten(2).transpose(1, 2)

    def export_student(self) -> Any:
        """A copy of the student, all of it trainable."""
        return copy.deepcopy(self.student).requires_grad_(True)
