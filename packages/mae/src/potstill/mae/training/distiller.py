"""Masked feature distillation: both models see the same few patches, the teacher up to its tap."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from potstill.core import ConfigError, Distiller, Losses, Objective, Weight
from potstill.core.adapters import Renormalized
from potstill.core.images import Statistics
from potstill.mae.models.autoencoder import MaskedAutoencoder
from potstill.mae.models.encoder import MaskedViT, as_masked, block_tokens
from potstill.mae.models.masking import Masking, RandomMasking
from potstill.mae.models.patches import patchify
from potstill.mae.training.criteria import FeatureDistance, PixelLoss, Projector, alignment
from potstill.mae.training.layers import Layers, layer_map

__all__ = ["MaskedToMasked", "Resized"]

_log = logging.getLogger(__name__)


class MaskedToMasked(Distiller):
    """Pre-training without labels: align features of visible patches, paint hidden ones.

    ``L = pixels + alpha * sum_l align/l``. The teacher runs to its last tapped block and no
    further. Without a decoder the student does the same. With weight 0 for all alignments the
    teacher does not run at all, which is the plain masked autoencoder.

    Source: Bai et al., Masked Autoencoders Enable Efficient Knowledge Distillers, CVPR 2023,
    section 3. The published loss has ``alpha = 1``, ``l2``-normalised features and an L1 mean.

    Args:
        student: Encoder and optional decoder.
        teacher: A timm vision transformer on the same patch grid, or a `MaskedViT` (which may be
            pruned behind its last tap, or run in bfloat16); None without alignment. Where its
            patches are of another size, images are resized for it: a teacher of patch 14 sees
            196 pixels where a student of patch 16 sees 224. `MaskedViT.with_grid` gives it the
            student's grid.
        masking: Masking of both models; 75 % at random by default.
        layers: Aligned blocks, as `layer_map` reads them; 3/4 of both depths by default.
        alpha: Weight of each alignment term; a number or a function of the step.
        distance: Distance of student and teacher features.
        projector: Map from the student's to the teacher's width.
        normalize_pixels: Paint patches of mean 0 and variance 1.
        statistics: Mean and standard deviation of the student's and of the teacher's input; where
            they differ, the teacher's images are normalised anew.

    Raises:
        ConfigError: Unequal patch grids or channels; nothing to learn from; a decoder with
            nothing to paint; blocks outside a model; widths that need a projector.

    Example:
        >>> import timm
        >>> make = lambda width: timm.create_model(
        ...     "vit_tiny_patch16_224", img_size=32, patch_size=8, depth=4, embed_dim=width)
        >>> student = MaskedAutoencoder(make(96), decoder={"depth": 1, "width": 64})
        >>> distiller = MaskedToMasked(student, make(192))
        >>> losses = distiller(torch.zeros(2, 3, 32, 32), step=0)
        >>> sorted(losses.terms)
        ['align/2', 'pixels']
    """

    student: MaskedAutoencoder

    def __init__(
        self,
        student: MaskedAutoencoder,
        teacher: nn.Module | None = None,
        *,
        masking: Masking | None = None,
        layers: Layers = 0.75,
        alpha: Weight = 1.0,
        distance: FeatureDistance | None = None,
        projector: Projector = "linear",
        normalize_pixels: bool = False,
        statistics: tuple[Statistics | None, Statistics | None] | None = None,
    ) -> None:
        teacher = None if teacher is None else as_masked(teacher)
        pairs = _pairs(student.encoder, teacher, layers)
        objective = _objective(
            student, teacher, pairs, alpha, distance, projector, normalize_pixels
        )
        super().__init__(student, objective, teacher)
        self.masking = _checked(masking or RandomMasking(), student)
        self.pairs = pairs
        self.skipped = _skipped(student.encoder, teacher)
        resized = nn.Identity() if teacher is None else Resized(teacher.image_size)
        self.teacher_input = Renormalized(resized, *(statistics or (None, None)))
        _freeze_unreached(student, pairs)

    def forward(self, batch: Any, step: int) -> Losses:
        """Losses of one batch.

        Args:
            batch: Images [B C H W], normalised for the student; or a tuple that starts with them
                (labels are not looked at).
            step: Current step, for the weights.
        """
        images = batch[0] if isinstance(batch, tuple | list) else batch
        plan = self.masking(len(images), self.student.encoder.grid, device=images.device)
        weights = self.objective.at(step)
        pairs = {name: pair for name, pair in self.pairs.items() if name in weights}
        blocks_s, blocks_t = ([pair[side] for pair in pairs.values()] for side in (0, 1))
        _, h_t = block_tokens(self.teacher, blocks_t, self.teacher_input(images), plan)
        painted, h_s = block_tokens(
            self.student, blocks_s, images, plan, stop="pixels" not in weights
        )
        tensors: dict[str, tuple[Any, ...]] = {
            name: (h_s[s][:, self.skipped[0] :], h_t[t][:, self.skipped[1] :])
            for name, (s, t) in pairs.items()
        }
        if "pixels" in weights:
            patches = patchify(images, self.student.encoder.patch_size)
            tensors["pixels"] = painted, patches, plan.hidden
        return self.objective(step, tensors)

    def export_student(self) -> Any:
        """The trained encoder as a plain timm model."""
        return self.student.export_student()


class Resized(nn.Module):
    """Images of the teacher's size, for patches of its own on the same grid, and of its dtype."""

    def __init__(self, size: tuple[int, int], dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.size, self.dtype = size, dtype

    def forward(self, images: Tensor) -> Tensor:
        """Images [B C H W] of that size."""
        if images.shape[-2:] != self.size:
            images = F.interpolate(images, self.size, mode="bicubic", antialias=True)
        return images if self.dtype == torch.float32 else images.to(self.dtype)


def _pairs(
    student: MaskedViT, teacher: MaskedViT | None, layers: Layers
) -> dict[str, tuple[int, int]]:
    """Aligned blocks by name: ``align/8``, ``align/8-17`` where block 8 has several."""
    if teacher is None:
        return {}
    if student.grid != teacher.grid:
        raise ConfigError(
            f"MaskedToMasked: teacher must have the student's patch grid {student.grid}, got "
            f"{teacher.grid} (patch {teacher.patch_size}, image {teacher.image_size}); both see "
            f"the same patches: MaskedViT(teacher).with_grid({student.grid})"
        )
    if student.in_chans != teacher.in_chans:
        raise ConfigError(
            f"MaskedToMasked: teacher must take images of {student.in_chans} channels like the "
            f"student, got {teacher.in_chans}; give create_model in_chans={student.in_chans}"
        )
    pairs = layer_map(layers, student.depth, teacher.depth)
    uses = Counter(s for s, _ in pairs)
    return {f"align/{s}" if uses[s] == 1 else f"align/{s}-{t}": (s, t) for s, t in pairs}


def _objective(
    student: MaskedAutoencoder,
    teacher: Any,
    pairs: Iterable[str],
    alpha: Weight,
    distance: FeatureDistance | None,
    projector: Projector,
    normalize_pixels: bool,
) -> Objective:
    terms: dict[str, tuple[Weight, Any]] = {}
    if student.decoder is not None:
        terms["pixels"] = (1.0, PixelLoss(normalize_pixels))
    for name in pairs:
        terms[name] = (
            alpha, alignment(student.encoder.width, teacher.width, distance, projector),
        )  # fmt: skip
    if not terms:
        raise ConfigError(
            "MaskedToMasked: a teacher or a decoder must be given, got neither; "
            "there is nothing to learn from"
        )
    return Objective(terms)


def _checked(masking: Masking, student: MaskedAutoencoder) -> Masking:
    """Draw once, so that an impossible ratio is refused now and not at the first step."""
    plan = masking(1, student.encoder.grid, generator=torch.Generator())
    if student.decoder is not None and plan.hidden.shape[1] == 0:
        raise ConfigError(
            f"MaskedToMasked: masking must hide at least one patch when there is a decoder, got "
            f"{masking!r}; raise its ratio, or make the student without decoder"
        )
    return masking


def _skipped(student: MaskedViT, teacher: MaskedViT | None) -> tuple[int, int]:
    """Leading tokens of both that are not compared: none, or all prefix tokens."""
    if teacher is None or teacher.num_prefix_tokens == student.num_prefix_tokens:
        return 0, 0
    _log.warning(
        "MaskedToMasked: student and teacher have different prefix tokens; "
        "only patch tokens are aligned"
    )
    return student.num_prefix_tokens, teacher.num_prefix_tokens


def _freeze_unreached(student: MaskedAutoencoder, pairs: dict[str, tuple[int, int]]) -> None:
    """Without decoder, parameters behind the last tap would wait for gradients in vain."""
    if student.decoder is None:
        for module in student.encoder.unreached(max(s for s, _ in pairs.values())):
            module.requires_grad_(False)
