"""What student and teacher are compared by: features of visible patches, pixels of hidden ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from potstill.core import ConfigError, ShapeError, nearest
from potstill.core.criteria import Projected, mlp
from potstill.mae.models.patches import normalize_patches

__all__ = ["Distance", "FeatureDistance", "FeatureNorm", "PixelLoss", "Projector", "alignment"]

FeatureNorm = Literal["l2", "l2_sqrt_dim", "layernorm", "none"]
Distance = Literal["l1", "smooth_l1", "mse", "cosine"]
Projector = Literal["linear", "mlp", "none"]

_EPS = 1e-6  # a token shorter than this counts as zero

_NORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "l2": lambda h: F.normalize(h, dim=-1, eps=_EPS),
    "l2_sqrt_dim": lambda h: F.normalize(h, dim=-1, eps=_EPS) * h.shape[-1] ** 0.5,
    "layernorm": lambda h: F.layer_norm(h, h.shape[-1:], eps=_EPS),
    "none": lambda h: h,
}
_PER_TOKEN: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": lambda s, t: (s - t).abs().mean(dim=-1),
    "smooth_l1": lambda s, t: F.smooth_l1_loss(s, t, reduction="none").mean(dim=-1),
    "mse": lambda s, t: (s - t).square().mean(dim=-1),
    "cosine": lambda s, t: 1 - F.cosine_similarity(s, t, dim=-1, eps=_EPS),
}


class FeatureDistance:
    """Mean distance of two feature maps of one shape, in float32 whatever comes in.

    ``L = mean d(norm(h_s), norm(h_t))``, the mean over all elements (``cosine``: over tokens).
    With ``l2`` each token has unit length, so that its elements are about ``1 / sqrt(D)`` and the
    term is small; ``l2_sqrt_dim`` multiplies both sides by ``sqrt(D)``, which makes the term
    independent of the width: our measurements have it, so it is the default. ``layernorm`` is per
    token, without affine parameters.

    Source: Bai et al., Masked Autoencoders Enable Efficient Knowledge Distillers, CVPR 2023,
    section 3; ``l1`` with ``l2`` norm is the form of the public code.

    Args:
        kind: ``l1``, ``smooth_l1``, ``mse`` or ``cosine``.
        norm: ``l2``, ``l2_sqrt_dim``, ``layernorm`` or ``none``.

    Raises:
        ConfigError: Unknown kind or norm.

    Example:
        >>> import torch
        >>> FeatureDistance("l1", "none")(torch.zeros(2, 5, 8), torch.ones(2, 5, 8))
        tensor(1.)
    """

    def __init__(self, kind: Distance = "l1", norm: FeatureNorm = "l2_sqrt_dim") -> None:
        for name, value, known in (("kind", kind, Distance), ("norm", norm, FeatureNorm)):
            if value not in get_args(known):
                raise ConfigError(
                    f"FeatureDistance: {name} must be one of {', '.join(get_args(known))}, got "
                    f"{value!r}; {nearest(str(value), get_args(known))}"
                )
        self.kind, self.norm = kind, norm

    def __call__(
        self, h_s: Float[Tensor, "*tokens width"], h_t: Float[Tensor, ...]
    ) -> Float[Tensor, ""]:
        """Compare student and teacher features, [B n D] each.

        Raises:
            ShapeError: They differ in shape.
        """
        return self.per_token(h_s, h_t).mean()

    def per_token(
        self, h_s: Float[Tensor, "*tokens width"], h_t: Float[Tensor, ...]
    ) -> Float[Tensor, "*tokens"]:
        """The same distance, one value per token: [B n D] twice to [B n]."""
        if h_s.shape != h_t.shape:
            raise ShapeError(
                f"FeatureDistance: h_t must be {list(h_s.shape)} like h_s, got "
                f"{list(h_t.shape)}; use a projector, and the same masking for both"
            )
        norm = _NORMS[self.norm]
        return _PER_TOKEN[self.kind](norm(_at_least_float32(h_s)), norm(_at_least_float32(h_t)))


def alignment(
    width_s: int,
    width_t: int,
    distance: FeatureDistance | None = None,
    projector: Projector = "linear",
) -> Projected:
    """A criterion on student features [B n Ds] and teacher features [B n Dt].

    Source: Bai et al., Masked Autoencoders Enable Efficient Knowledge Distillers, CVPR 2023,
    section 3. ``L = mean d(norm(P(h_s)), norm(h_t))`` with the projector P and the distance d.

    Args:
        width_s: Channels of the student's tokens.
        width_t: Channels of the teacher's tokens.
        distance: Criterion that compares both; ``FeatureDistance()`` by default.
        projector: ``linear``, ``mlp`` (two layers with GELU, hidden width ``width_t``) or
            ``none``. It trains with the student and is left behind.

    Raises:
        ConfigError: No projector although the widths differ; an unknown projector.

    Example:
        >>> import torch
        >>> alignment(64, 96)(torch.randn(2, 5, 64), torch.randn(2, 5, 96)).shape
        torch.Size([])
    """
    if projector not in get_args(Projector):
        raise ConfigError(
            f"alignment: projector must be one of {', '.join(get_args(Projector))}, got "
            f"{projector!r}; {nearest(str(projector), get_args(Projector))}"
        )
    if projector == "none" and width_s != width_t:
        raise ConfigError(
            f"alignment: projector must be 'linear' or 'mlp' when widths differ, got 'none' "
            f"for {width_s} (student) and {width_t} (teacher)"
        )
    depth = {"linear": 1, "mlp": 2}
    project = (
        nn.Identity() if projector == "none" else mlp(width_s, width_t, depth=depth[projector])
    )
    return Projected(project, distance or FeatureDistance())


class PixelLoss:
    """Mean squared error over the decoded hidden patches, in float32.

    ``L = mean over hidden patches of mean_p (x_p - target_p)^2``, p the pixels of a patch.

    All images hide equally many patches, so that this is the published mean over hidden patches
    of the mean over their pixels.

    Source: He et al., CVPR 2022, section 3.

    Args:
        normalize: Compare with patches of mean 0 and variance 1 instead of raw pixels.
    """

    def __init__(self, normalize: bool = False) -> None:
        self.normalize = normalize

    def __call__(
        self,
        predicted: Float[Tensor, "batch decoded values"],
        patches: Float[Tensor, "batch patches values"],
        hidden: Int[Tensor, "batch hidden"],
    ) -> Float[Tensor, ""]:
        """Compare.

        Args:
            predicted: [B m P] for the first m hidden patches.
            patches: True patches [B L P].
            hidden: Indices of hidden patches, int64 [B L-K].

        Raises:
            ShapeError: There is no hidden patch; the mean would be NaN.
        """
        if predicted.shape[1] < 1 or hidden.shape[1] < 1:
            raise ShapeError(
                f"PixelLoss: at least one patch must be hidden, got {list(hidden.shape)} hidden; "
                "raise the masking ratio, or leave the decoder out"
            )
        index = hidden[:, : predicted.shape[1], None].expand(-1, -1, patches.shape[2])
        target = _at_least_float32(patches.gather(1, index))
        target = normalize_patches(target) if self.normalize else target
        return F.mse_loss(_at_least_float32(predicted), target)


def _at_least_float32(x: Tensor) -> Tensor:
    """Half precision to float32: squared sums of a token overflow float16."""
    return x if x.dtype.itemsize >= 4 else x.float()
