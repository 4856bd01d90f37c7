"""Criteria on relations between the items of a batch, or the tokens of an item.

What is compared is how items relate, not the items, so widths may differ: no projector is needed.
All take features [N ...], flattened to [N D].
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from potstill.core.criteria.logit import kl_rows
from potstill.core.criteria.pairs import pair
from potstill.core.criteria.rows import positive
from potstill.core.errors import ConfigError, ShapeError

__all__ = ["cc", "cckd", "cka", "cka_similarity", "pkt", "queue_relation", "sp", "token_relation"]

Student = Float[Tensor, "batch *features_s"]
Teacher = Float[Tensor, "batch *features_t"]


def items(
    name: str, f_s: Tensor, f_t: Tensor, *, rows: int, teacher_grad: bool
) -> tuple[Tensor, Tensor]:
    """A checked pair of batches flattened to [N D]."""
    f_s, f_t = pair(name, f_s, f_t, same=None, rows=rows, teacher_grad=teacher_grad)
    if len(f_s) != len(f_t):
        raise ShapeError(f"{name}: f_t must have {len(f_s)} items like f_s, got {len(f_t)}")
    return f_s.flatten(1), f_t.flatten(1)


def sp(f_s: Student, f_t: Teacher, *, teacher_grad: bool = False) -> Float[Tensor, ""]:
    """Similarity-preserving distillation: which items of the batch are alike.

    Source: Tung and Mori, ICCV 2019. ``L = ||R(G_s) - R(G_t)||_F^2 / N^2``,
    ``G = F F'`` and R divides each row by its l2 norm (torchdistill 1.1.5: by its l1 norm).

    Args:
        f_s: Features of the student, [N ...].
        f_t: Features of the teacher, [N ...].
        teacher_grad: Let gradients flow into ``f_t``.

    Raises:
        ShapeError: Other batches, or fewer than 2 items.
    """
    f_s, f_t = items("sp", f_s, f_t, rows=2, teacher_grad=teacher_grad)
    gap = F.normalize(f_s @ f_s.mT) - F.normalize(f_t @ f_t.mT)
    return gap.square().mean()


def pkt(
    f_s: Student, f_t: Teacher, *, eps: float = 1e-7, teacher_grad: bool = False
) -> Float[Tensor, ""]:
    """Probabilistic knowledge transfer: KL of each item's similarities to the batch.

    Source: Passalis and Tefas, ECCV 2018, with the cosine kernel ``(cos + 1) / 2``, rows divided
    by their sum. ``L = mean_ij t_ij log((t_ij + eps) / (s_ij + eps))``, the mean over N^2.

    Args:
        f_s: Features of the student, [N ...].
        f_t: Features of the teacher, [N ...].
        eps: In the logarithm, and beside the norms.
        teacher_grad: Let gradients flow into ``f_t``.

    Raises:
        ShapeError: Other batches, or fewer than 2 items.
    """
    f_s, f_t = items("pkt", f_s, f_t, rows=2, teacher_grad=teacher_grad)

    def neighbours(f: Tensor) -> Tensor:
        f = f / (torch.linalg.vector_norm(f, dim=1, keepdim=True) + eps)
        similarity = (f @ f.mT + 1) / 2
        return similarity / similarity.sum(1, keepdim=True)

    s, t = neighbours(f_s), neighbours(f_t)
    return (t * ((t + eps) / (s + eps)).log()).mean()


def cc(f_s: Student, f_t: Student, *, teacher_grad: bool = False) -> Float[Tensor, ""]:
    """Correlation congruence as its usual code has it: differences of consecutive items.

    Source: after Peng et al., ICCV 2019, in RepDistiller's form:
    ``L = mean_i sum_d |f_s - f_t|_{i,d} |f_s - f_t|_{i+1,d}``. The paper's form is `cckd`.

    Args:
        f_s: Features of the student, [N ...].
        f_t: Features of the teacher, same shape.
        teacher_grad: Let gradients flow into ``f_t``.

    Raises:
        ShapeError: Shapes that differ, or fewer than 2 items.
    """
    f_s, f_t = pair("cc", f_s, f_t, rows=2, teacher_grad=teacher_grad)
    gap = (f_s - f_t).abs().flatten(1)
    return (gap[:-1] * gap[1:]).sum(1).mean()


def cckd(
    f_s: Student,
    f_t: Teacher,
    *,
    gamma: float = 0.4,
    order: int = 2,
    normalize: bool = False,
    teacher_grad: bool = False,
) -> Float[Tensor, ""]:
    """Correlation congruence with the Gaussian kernel, expanded to a polynomial.

    Source: Peng et al., Correlation Congruence for Knowledge Distillation, ICCV 2019, in
    torchdistill's form: ``k(x, y) = exp(-2 gamma) sum_{p=0}^{order} (2 gamma)^p (x . y)^p / p!``,
    ``L = ||K_s - K_t||_F / N^2``. That is the Gaussian kernel of unit vectors: ``normalize=True``
    makes them such; torchdistill, and so our default, does not.

    Args:
        f_s: Features of the student, [N ...].
        f_t: Features of the teacher, [N ...].
        gamma: Inverse width of the kernel.
        order: Order of the expansion.
        normalize: L2-normalize items first.
        teacher_grad: Let gradients flow into ``f_t``.

    Raises:
        ShapeError: Other batches, or fewer than 2 items.
    """
    f_s, f_t = items("cckd", f_s, f_t, rows=2, teacher_grad=teacher_grad)

    def kernel(f: Tensor) -> Tensor:
        f = F.normalize(f) if normalize else f
        x = 2 * gamma * (f @ f.mT)
        term = torch.ones_like(x)
        total = term
        for p in range(1, order + 1):
            term = term * x / p
            total = total + term
        return total * torch.exp(x.new_tensor(-2 * gamma))

    return torch.linalg.vector_norm(kernel(f_s) - kernel(f_t)) / len(f_s) ** 2


def cka_similarity(
    f_s: Student, f_t: Teacher, *, debiased: bool = False, teacher_grad: bool = False
) -> Float[Tensor, ""]:
    """Linear centred kernel alignment, 1 for features equal up to rotation and scale.

    Source: Kornblith et al., ICML 2019: ``s = <K_s, K_t> / (|K_s| |K_t|)`` of centred
    Gram matrices, computed on D x D covariances instead where that is less work. ``debiased`` uses
    the unbiased HSIC of Song et al., JMLR 13, 2012; it may be negative.

    Args:
        f_s: Features of the student, [N ...].
        f_t: Features of the teacher, [N ...].
        debiased: Correct for small batches; needs 4 items.
        teacher_grad: Let gradients flow into ``f_t``.

    Returns:
        A scalar; constant features have similarity 0, with a finite gradient.

    Raises:
        ShapeError: Other batches, or too few items.
    """
    rows = 4 if debiased else 2
    f_s, f_t = items("cka", f_s, f_t, rows=rows, teacher_grad=teacher_grad)
    f_s, f_t = (_unit_scale(f - f.mean(0)) for f in (f_s, f_t))
    if debiased:
        k_s, k_t = (_u_centred(f @ f.mT) for f in (f_s, f_t))
    elif f_s.shape[1] * f_t.shape[1] < len(f_s) ** 2:
        cross = (f_s.mT @ f_t).square().sum()
        return cross * _inverse_root((f_s.mT @ f_s).square().sum() * (f_t.mT @ f_t).square().sum())
    else:
        k_s, k_t = f_s @ f_s.mT, f_t @ f_t.mT
    return (k_s * k_t).sum() * _inverse_root(k_s.square().sum() * k_t.square().sum())


def _unit_scale(f: Tensor) -> Tensor:
    """Divide by the largest entry: CKA does not see it, and fourth powers stay in range."""
    return f / f.abs().amax().detach().clamp_min(1e-12)


def _inverse_root(x: Tensor) -> Tensor:
    return x.clamp_min(1e-24 if x.dtype == torch.float32 else 1e-48).rsqrt()


def _u_centred(k: Tensor) -> Tensor:
    """U-centring: off-diagonal entries whose rows sum to 0, so that their mean is unbiased."""
    n = len(k)
    k = k - torch.diag(k.diagonal())
    means = k.sum(0) / (n - 2)
    means = means - means.sum() / (2 * (n - 1))
    k = k - means.unsqueeze(0) - means.unsqueeze(1)
    return k - torch.diag(k.diagonal())


def cka(
    f_s: Student, f_t: Teacher, *, debiased: bool = False, teacher_grad: bool = False
) -> Float[Tensor, ""]:
    """Zero for features equal up to rotation and scale.

    Source: the similarity is Kornblith et al., ICML 2019. ``L = 1 - cka_similarity(f_s, f_t)``.
    Arguments as there.

    Example:
        >>> f = torch.tensor([[0.0, 1.0], [2.0, 0.0], [1.0, 1.0]])
        >>> bool(cka(f, 3 * f.flip(1)).abs() < 1e-6)
        True
    """
    return 1 - cka_similarity(f_s, f_t, debiased=debiased, teacher_grad=teacher_grad)


def token_relation(
    f_s: Float[Tensor, "batch tokens features_s"],
    f_t: Float[Tensor, "batch tokens features_t"],
    *,
    T: float = 0.07,
    kind: Literal["kl", "mse"] = "kl",
    normalize: bool = True,
    teacher_grad: bool = False,
) -> Float[Tensor, ""]:
    """How the tokens of one item relate to each other.

    Source: after Wang et al., MiniLM, NeurIPS 2020, section 3. ``kind="kl"``:
    ``L = mean KL(softmax(f_t f_t' / T) || softmax(f_s f_s' / T))`` over tokens, no ``T ** 2``;
    ``"mse"``: mean squared difference of ``f f'``. Pass queries, keys or values for
    attention relations.

    Args:
        f_s: Tokens of the student, [B L D].
        f_t: Tokens of the teacher, [B L D'].
        T: Temperature > 0 of the softmax.
        kind: Criterion that compares the relations.
        normalize: L2-normalize tokens first.
        teacher_grad: Let gradients flow into ``f_t``.

    Raises:
        ShapeError: Not tokens of the same items.
        ConfigError: T is not positive, or an unknown kind.
    """
    positive("token_relation", "T", T)
    if kind not in ("kl", "mse"):
        raise ConfigError(f"token_relation: kind must be kl or mse, got {kind!r}")
    f_s, f_t = pair("token_relation", f_s, f_t, same=slice(0, 2), ndim=3, teacher_grad=teacher_grad)
    if normalize:
        f_s, f_t = F.normalize(f_s, dim=-1), F.normalize(f_t, dim=-1)
    r_s, r_t = f_s @ f_s.mT, f_t @ f_t.mT
    if kind == "mse":
        return (r_s - r_t).square().mean()
    return kl_rows(torch.log_softmax(r_t / T, -1), torch.log_softmax(r_s / T, -1)).mean()


def queue_relation(
    f_s: Float[Tensor, "batch features"],
    f_t: Float[Tensor, "batch features"],
    queue: Float[Tensor, "length features"],
    *,
    T: float = 0.07,
    teacher_grad: bool = False,
) -> Float[Tensor, ""]:
    """Similarities to a queue of the teacher's earlier features, as soft pseudo-classes.

    Source: after Fang et al., SEED, ICLR 2021. Mean over items of
    ``KL(softmax(t . queue / T) || softmax(s . queue / T))``, s and t l2-normalized, no ``T ** 2``.

    Args:
        f_s: Features of the student (projected to the teacher's width), [N D].
        f_t: Features of the teacher, [N D].
        queue: Features to compare with, [K D], as the caller keeps them (normalized or not).
        T: Temperature > 0.
        teacher_grad: Let gradients flow into ``f_t``.

    Raises:
        ShapeError: Shapes that do not fit.
        ConfigError: T is not positive.
    """
    positive("queue_relation", "T", T)
    f_s, f_t = pair("queue_relation", f_s, f_t, ndim=2, teacher_grad=teacher_grad)
    if queue.ndim != 2 or queue.shape[1] != f_s.shape[1] or not len(queue):
        raise ShapeError(
            f"queue_relation: queue must be [K {f_s.shape[1]}], got {list(queue.shape)}"
        )
    queue = queue.detach().to(f_s.dtype)
    log_q, log_p = (torch.log_softmax(F.normalize(f) @ queue.mT / T, -1) for f in (f_s, f_t))
    return kl_rows(log_p, log_q).mean()
