from __future__ import annotations

import pytest
import torch

from potstill.core.errors import ConfigError, ShapeError
from potstill.mae import FeatureDistance, PixelLoss, alignment


def reference(h_s, h_t, kind, norm):
    """Token by token in float64."""
    total, count = 0.0, 0
    for s, t in zip(h_s.double().flatten(0, 1), h_t.double().flatten(0, 1), strict=True):
        if norm.startswith("l2"):
            factor = len(s) ** 0.5 if norm == "l2_sqrt_dim" else 1.0
            s, t = s / s.norm() * factor, t / t.norm() * factor
        elif norm == "layernorm":
            s, t = ((v - v.mean()) / (v.var(correction=0) + 1e-6).sqrt() for v in (s, t))
        d = (s - t).abs()
        if kind == "cosine":
            total += 1 - (s @ t) / (s.norm() * t.norm())
            count += 1
            continue
        if kind == "mse":
            d = d**2
        elif kind == "smooth_l1":
            d = torch.where(d < 1, d**2 / 2, d - 0.5)
        total += d.sum()
        count += len(d)
    return total / count


@pytest.mark.parametrize("norm", ["l2", "l2_sqrt_dim", "layernorm", "none"])
@pytest.mark.parametrize("kind", ["l1", "smooth_l1", "mse", "cosine"])
def test_distance_against_a_naive_reference(kind, norm):
    h_s, h_t = torch.randn(3, 5, 24) * 2, torch.randn(3, 5, 24) + 0.5
    distance = FeatureDistance(kind, norm)
    expected = reference(h_s, h_t, kind, norm).float()
    torch.testing.assert_close(distance(h_s, h_t), expected, rtol=1e-5, atol=1e-6)
    per_token = distance.per_token(h_s, h_t)
    assert per_token.shape == (3, 5)
    torch.testing.assert_close(per_token.mean(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("norm", ["l2", "l2_sqrt_dim", "layernorm", "none"])
@pytest.mark.parametrize("kind", ["smooth_l1", "mse", "cosine"])
def test_gradient(kind, norm):
    h_s = torch.randn(1, 2, 6, dtype=torch.float64, requires_grad=True)
    h_t = torch.randn(1, 2, 6, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: FeatureDistance(kind, norm)(s, h_t), h_s)


@pytest.mark.parametrize("norm", ["l2", "l2_sqrt_dim", "layernorm"])
def test_scale_of_a_token_does_not_matter(norm):
    h_s, h_t = torch.randn(2, 3, 16), torch.randn(2, 3, 16)
    distance = FeatureDistance("l1", norm)
    torch.testing.assert_close(distance(7 * h_s, h_t), distance(h_s, h_t), rtol=1e-4, atol=1e-6)


def test_sqrt_dim_makes_the_term_independent_of_the_width():
    def at(norm, width):
        return FeatureDistance("l1", norm)(torch.randn(4, 50, width), torch.randn(4, 50, width))

    assert at("l2", 768) < 0.5 * at("l2", 96)
    torch.testing.assert_close(at("l2_sqrt_dim", 768), at("l2_sqrt_dim", 96), rtol=0.05, atol=0)


@pytest.mark.parametrize("norm", ["l2", "l2_sqrt_dim", "layernorm"])
def test_half_precision_does_not_overflow(norm):
    """The squared sum of these tokens is beyond float16."""
    h_s = torch.full((1, 2, 768), 300.0, dtype=torch.float16)
    h_t = torch.linspace(-300, 300, 768, dtype=torch.float16).expand(1, 2, -1)
    value = FeatureDistance("l1", norm)(h_s, h_t)
    assert value.dtype == torch.float32
    assert bool(torch.isfinite(value))


def test_tokens_of_zeros_stay_finite():
    h_s = torch.zeros(1, 2, 8, requires_grad=True)
    FeatureDistance()(h_s, torch.randn(1, 2, 8)).backward()
    assert bool(torch.isfinite(h_s.grad).all())


def test_unequal_shapes_are_refused():
    with pytest.raises(ShapeError, match=r"h_t must be \[2, 5, 8\] like h_s, got \[2, 5, 9\]"):
        FeatureDistance()(torch.zeros(2, 5, 8), torch.zeros(2, 5, 9))


def test_unknown_options_are_refused():
    with pytest.raises(ConfigError, match=r"kind must be one of l1, .* did you mean 'l1'"):
        FeatureDistance("l11")
    with pytest.raises(ConfigError, match="norm must be one of l2"):
        FeatureDistance("l1", "batch")
    with pytest.raises(ConfigError, match="projector must be one of linear, mlp, none, got 'lin"):
        alignment(4, 4, projector="linnear")


@pytest.mark.parametrize("projector", ["linear", "mlp"])
def test_alignment_projects_to_the_teacher(projector):
    criterion = alignment(8, 12, FeatureDistance("mse", "none"), projector)
    h_s, h_t = torch.randn(2, 3, 8), torch.randn(2, 3, 12)
    expected = ((criterion.projector(h_s) - h_t) ** 2).mean()
    torch.testing.assert_close(criterion(h_s, h_t), expected)
    assert all(p.requires_grad for p in criterion.parameters())


def test_widths_that_need_a_projector_are_refused():
    with pytest.raises(ConfigError, match=r"got 'none' for 8 \(student\) and 12 \(teacher\)"):
        alignment(8, 12, projector="none")
    assert not list(alignment(8, 8, projector="none").parameters())


@pytest.mark.parametrize("normalize", [False, True])
def test_pixel_loss_against_the_published_formula(normalize):
    """``sum(mask * mean((p - y)^2)) / sum(mask)`` over all patches, in float64."""
    patches = torch.randn(2, 6, 12)
    hidden = torch.tensor([[3, 0, 5, 1], [2, 4, 1, 0]])
    predicted = torch.randn(2, 4, 12)
    mask = torch.zeros(2, 6, dtype=torch.float64).scatter_(1, hidden, 1.0)
    full = torch.zeros(2, 6, 12, dtype=torch.float64)
    full.scatter_(1, hidden[:, :, None].expand(-1, -1, 12), predicted.double())
    target = patches.double()
    if normalize:
        target = (target - target.mean(-1, True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    expected = (mask * ((full - target) ** 2).mean(-1)).sum() / mask.sum()
    loss = PixelLoss(normalize)(predicted, patches, hidden)
    torch.testing.assert_close(loss, expected.float(), rtol=1e-5, atol=1e-6)


def test_no_hidden_patch_is_refused():
    with pytest.raises(ShapeError, match=r"at least one patch must be hidden, got \[2, 0\] hidden"):
        PixelLoss()(torch.zeros(2, 0, 12), torch.zeros(2, 6, 12), torch.zeros(2, 0).long())
