"""Masked feature distillation: both models see the same few patches, the teacher up to its tap."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from potstill.core import ConfigError, Distiller, Losses, Objective, Weight, tap
from potstill.core.adapters import Renormalized
from potstill.core.images import Statistics
from potstill.mae.autoencoder import MaskedAutoencoder
from potstill.mae.criteria import FeatureDistance, PixelLoss, Projector, alignment
from potstill.mae.encoder import MaskedViT
from potstill.mae.layers import Layers, layer_map
from potstill.mae.masking import Masking, RandomMasking
from potstill.mae.patches import patchify

__all__ = ["MaskedToMasked"]

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
        teacher: A timm vision transformer on the same patch grid; None without alignment.
        masking: What is hidden; 75 % at random by default.
        layers: Aligned blocks, as :func:`layer_map` reads them; 3/4 of both depths by default.
        alpha: Weight of each alignment term; a number or a function of the step.
        distance: How features are compared.
        projector: From the student's to the teacher's width.
        normalize_pixels: Paint patches of mean 0 and variance 1.
        statistics: Mean and standard deviation of the student's and of the teacher's input; where
            they differ, the teacher's images are normalised anew.
        teacher_dtype: The teacher runs in this dtype, such as ``torch.bfloat16``.
        prune_teacher: Free the teacher's blocks behind the last tap. Changes the teacher given.

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
        teacher_dtype: torch.dtype | None = None,
        prune_teacher: bool = False,
    ) -> None:
        masking = masking or RandomMasking()
        _check_masking(student, masking)
        masked_teacher = None if teacher is None else _masked(teacher)
        terms: dict[str, tuple[Weight, Any]] = {}
        pairs: list[tuple[int, int]] = []
        if student.decoder is not None:
            terms["pixels"] = (1.0, PixelLoss(normalize_pixels))
        if masked_teacher is not None:
            _check_pair(student.encoder, masked_teacher)
            pairs = layer_map(layers, student.encoder.depth, masked_teacher.depth)
            widths = student.encoder.width, masked_teacher.width
            for s, t in pairs:
                name = _term(s, t, pairs)
                terms[name] = (alpha, alignment(*widths, distance, projector))
        if not terms:
            raise ConfigError(
                "MaskedToMasked: a teacher or a decoder must be given, got neither; "
                "there is nothing to learn from"
            )
        if masked_teacher is not None and prune_teacher:
            masked_teacher.prune(max(t for _, t in pairs))
        if masked_teacher is not None and teacher_dtype is not None:
            masked_teacher.to(teacher_dtype)
        super().__init__(student, Objective(terms), masked_teacher)
        if "pixels" not in terms:  # parameters behind the tap would wait for gradients in vain
            for module in student.encoder.unreached(max(s for s, _ in pairs)):
                module.requires_grad_(False)
        self.masking = masking
        self.pairs = {_term(s, t, pairs): (s, t) for s, t in pairs}
        self._patches_only = masked_teacher is not None and (
            masked_teacher.num_prefix_tokens != student.encoder.num_prefix_tokens
        )
        if self._patches_only:
            _log.warning(
                "MaskedToMasked: student and teacher have different prefix tokens; "
                "only patch tokens are aligned"
            )
        self.renormalized = Renormalized(nn.Identity(), *(statistics or (None, None)))

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
        tensors: dict[str, tuple[Any, ...]] = {}
        h_t = self._teacher_features(images, plan, [t for _, t in pairs.values()])
        with _taps(self.student, "encoder.", [s for s, _ in pairs.values()], weights) as h_s:
            predicted = self.student(images, plan)
        if "pixels" in weights:
            patches = patchify(images, self.student.encoder.patch_size)
            tensors["pixels"] = (predicted, patches, plan.hidden)
        for name, (s, t) in pairs.items():
            student_tokens = h_s[f"encoder.{MaskedViT.block(s)}"].output
            tensors[name] = (self._comparable(student_tokens, self.student.encoder), h_t[t])
        return self.objective(step, tensors)

    def export_student(self) -> Any:
        """The trained encoder as a plain timm model."""
        return self.student.export_student()

    def teacher_input(self, images: Tensor) -> Tensor:
        """The images normalised as the teacher wants them, in its dtype."""
        images = self.renormalized(images)
        return images.to(next(self.teacher.model.parameters()).dtype) if self.teacher else images

    def _teacher_features(self, images: Tensor, plan: Any, blocks: list[int]) -> dict[int, Tensor]:
        if not blocks:
            return {}
        names = {t: MaskedViT.block(t) for t in blocks}
        with tap(self.teacher, *set(names.values()), stop=True) as readings:  # type: ignore[arg-type]
            self.teacher(self.teacher_input(images), plan)  # type: ignore[misc]
        model = self.teacher.model  # type: ignore[union-attr]
        return {t: self._comparable(readings[name].output, model) for t, name in names.items()}

    def _comparable(self, tokens: Tensor, model: MaskedViT) -> Tensor:
        return tokens[:, model.num_prefix_tokens :] if self._patches_only else tokens


def _taps(
    student: nn.Module, prefix: str, blocks: list[int], weights: dict[str, float]
) -> AbstractContextManager[Any]:
    """Taps on the student; it need not run behind the last one when nothing is painted."""
    if not blocks:
        return nullcontext()
    names = dict.fromkeys(prefix + MaskedViT.block(index) for index in blocks)
    return tap(student, *names, stop="pixels" not in weights)


def _term(s: int, t: int, pairs: list[tuple[int, int]]) -> str:
    """``align/8``; with the teacher's block where one student block has several."""
    alone = sum(other == s for other, _ in pairs) == 1
    return f"align/{s}" if alone else f"align/{s}-{t}"


def _masked(teacher: nn.Module) -> MaskedViT:
    return teacher if isinstance(teacher, MaskedViT) else MaskedViT(teacher)


def _check_masking(student: MaskedAutoencoder, masking: Masking) -> None:
    """Draw once, so that an impossible ratio is refused now and not at the first step."""
    plan = masking(1, student.encoder.grid, generator=torch.Generator())
    if student.decoder is not None and plan.hidden.shape[1] == 0:
        raise ConfigError(
            f"MaskedToMasked: masking must hide at least one patch when there is a decoder, got "
            f"{masking!r}; raise its ratio, or make the student without decoder"
        )


def _check_pair(student: MaskedViT, teacher: MaskedViT) -> None:
    if student.grid != teacher.grid:
        raise ConfigError(
            f"MaskedToMasked: teacher must have the student's patch grid {student.grid}, got "
            f"{teacher.grid} (patch {teacher.patch_size}, image "
            f"{tuple(teacher.vit.patch_embed.img_size)}); both see the same patches"
        )
    ours, theirs = student.vit.patch_embed.img_size, teacher.vit.patch_embed.img_size
    if tuple(ours) != tuple(theirs) or student.in_chans != teacher.in_chans:
        raise ConfigError(
            f"MaskedToMasked: teacher must take images of {student.in_chans} channels and size "
            f"{tuple(ours)} like the student, got {teacher.in_chans} and {tuple(theirs)}"
        )
