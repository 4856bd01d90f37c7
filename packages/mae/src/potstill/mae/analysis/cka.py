"""Linear CKA: how alike two representations are, up to rotation and scale."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from potstill.core import ConfigError, ShapeError
from potstill.mae.models.encoder import MaskedViT, block_tokens

__all__ = ["block_similarity", "linear_cka"]


def linear_cka(
    x: Float[Tensor, "examples width_x"], y: Float[Tensor, "others width_y"]
) -> Float[Tensor, ""]:
    """Linear CKA of two sets of features of the same n examples, in [0, 1].

    ``|Y' X|_F^2 / (|X' X|_F |Y' Y|_F)`` with centred columns.

    Source: Kornblith et al., Similarity of Neural Network Representations Revisited, ICML 2019,
    section 3.

    Args:
        x: Features [n Dx].
        y: Features [n Dy].

    Raises:
        ShapeError: Different numbers of examples, or fewer than two.
    """
    if len(x) != len(y) or len(x) < 2:
        raise ShapeError(
            f"linear_cka: x and y must have the same n > 1 rows, got {len(x)}, {len(y)}"
        )
    x, y = (v.double() - v.double().mean(dim=0) for v in (x, y))
    return ((y.T @ x).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm())).float()


def block_similarity(
    student: MaskedViT, teacher: MaskedViT, batches: Iterable[Tensor], at_least: int = 1000
) -> Float[Tensor, "student_blocks teacher_blocks"]:
    """CKA of each student block with each teacher block, over patch tokens of whole images.

    Estimated batch by batch without bias, so that memory does not grow with the data.

    Source: Nguyen et al., Do Wide and Deep Networks Learn the Same Things?, ICLR 2021, Eqs. (2)
    and (3): minibatch CKA with the unbiased HSIC of Song et al., 2012.

    Args:
        student: The student's encoder.
        teacher: The teacher's encoder, on the same grid.
        batches: Normalised images [B C H W] each; two or more images a batch.
        at_least: Number of tokens that are needed for a trustworthy picture.

    Returns:
        [student blocks, teacher blocks].

    Raises:
        ConfigError: The batches hold fewer tokens.
    """
    cross = torch.zeros(student.depth, teacher.depth, dtype=torch.float64)
    own_s = torch.zeros(student.depth, dtype=torch.float64)
    own_t = torch.zeros(teacher.depth, dtype=torch.float64)
    tokens = 0
    for images in batches:
        k_s, k_t = (_centered_grams(model, images) for model in (student, teacher))
        tokens += k_s.shape[1]
        cross += torch.einsum("sij,tij->st", k_s, k_t).cpu()
        own_s += k_s.square().sum(dim=(1, 2)).cpu()
        own_t += k_t.square().sum(dim=(1, 2)).cpu()
    if tokens < at_least:
        raise ConfigError(
            f"block_similarity: batches must hold at least {at_least} tokens, got {tokens}; "
            "give more images"
        )
    return (cross / (own_s[:, None] * own_t[None]).sqrt()).float().clamp(0, 1)


@torch.no_grad()
def _centered_grams(model: MaskedViT, images: Tensor) -> Tensor:
    """U-centred Gram matrices of the tokens after each block: float64 [blocks n n].

    With them the unbiased HSIC is a plain inner product (Szekely and Rizzo, 2014).
    """
    was_training = model.training
    images = images.to(next(model.parameters()).device)
    _, tokens = block_tokens(model.eval(), range(model.depth), images)
    model.train(was_training)
    grams = []
    for after in tokens.values():
        patches = after[:, model.num_prefix_tokens :].flatten(0, 1).double()
        grams.append(_u_centered(patches @ patches.T))
    return torch.stack(grams)


def _u_centered(gram: Tensor) -> Tensor:
    n = len(gram)
    off = gram - torch.diag(gram.diagonal())
    rows = off.sum(dim=1)
    centered = off - (rows[:, None] + rows[None]) / (n - 2) + rows.sum() / ((n - 1) * (n - 2))
    return centered - torch.diag(centered.diagonal())
