"""The staged objective: when terms count, norms, and the treatment of densities."""

import pytest
import torch

from potstill.core.errors import ConfigError, ShapeError
from potstill.nerf.distill.objective import Distance, FeatureGap, Progression, density_gap, staged


@pytest.mark.parametrize(
    ("progress", "names"),
    [
        (0.0, {"feature"}),
        (0.066, {"feature"}),
        (0.067, {"feature", "density", "color"}),
        (0.17, {"feature", "density", "color", "pixel"}),
        (1.0, {"feature", "density", "color", "pixel"}),
    ],
)
def test_terms_join_at_shares_of_the_budget(progress, names):
    assert set(staged(Progression(), lambda: progress).at(5)) == names


def test_the_feature_term_decays_by_the_step():
    weights = staged(Progression.paper(), lambda: 0.0)
    assert weights.at(0)["feature"] == pytest.approx(2e-3)
    assert weights.at(100)["feature"] == pytest.approx(2e-3 * 0.995**100)


def test_without_features_points_come_first():
    progression = Progression().without_features()
    assert set(staged(progression, lambda: 0.0).at(0)) == {"density", "color"}


def test_norms_are_those_of_the_definitions():
    a, b = torch.randn(7, 3, dtype=torch.float64), torch.randn(7, 3, dtype=torch.float64)
    expected = torch.linalg.norm(a - b)
    torch.testing.assert_close(Distance("paper")(a, b), expected)
    torch.testing.assert_close(Distance("normalized")(a, b), expected / 21**0.5)
    mask = torch.tensor([True] * 3 + [False] * 4)[:, None]
    expected = torch.linalg.norm((a - b)[:3])
    torch.testing.assert_close(Distance("paper")(a, b, mask), expected)


@pytest.mark.parametrize("norm", ["paper", "normalized"])
def test_the_gradient_of_a_norm_is_right(norm):
    a = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    b = torch.randn(5, 2, dtype=torch.float64)
    ours = torch.autograd.grad(Distance(norm)(a, b), a)[0]
    plain = torch.linalg.norm(a - b) / (10**0.5 if norm == "normalized" else 1)
    torch.testing.assert_close(ours, torch.autograd.grad(plain, a)[0])


def test_no_difference_and_no_points_have_no_gradient():
    for values in (torch.ones(3, 2), torch.ones(0, 2)):
        values.requires_grad_()
        loss = Distance()(values, values.detach())
        assert float(loss.detach()) < 1e-6
        assert torch.equal(torch.autograd.grad(loss, values)[0], torch.zeros_like(values))


def test_densities_out_of_bounds_count_only_where_the_teacher_is_inside():
    raw = torch.tensor([-9.0, -9.0, 9.0, 9.0, 1.0], requires_grad=True)
    target = torch.tensor([-8.0, 0.0, 8.0, 0.0, 2.0])
    s, t = density_gap(raw, target, (-2.0, 7.0))
    assert (s - t).tolist() == [0.0, -9.0, 0.0, 9.0, -1.0]
    slope = torch.autograd.grad((s - t).square().sum(), raw)[0]
    assert slope.tolist() == [0.0, -18.0, 0.0, 18.0, -2.0]  # PVD's clamp: no way back


def test_features_that_nobody_sees_are_free():
    gap = FeatureGap(Distance("paper"), (-2.0, 7.0))
    feature, target = torch.zeros(2, 4), torch.ones(2, 4)
    visible = torch.tensor([True, False])
    loss = gap(feature[:, 0], feature, target[:, 0], target, visible)
    assert float(loss) == pytest.approx(5**0.5)  # two densities and three features


def test_widths_that_differ_need_a_projector():
    feature, target, visible = torch.zeros(2, 4), torch.ones(2, 6), torch.ones(2, dtype=torch.bool)
    arguments = (feature[:, 0], feature, target[:, 0], target, visible)
    with pytest.raises(ShapeError, match="feature must be as wide as the teacher's 6, got 4"):
        FeatureGap(Distance(), (-2.0, 7.0))(*arguments)
    projected = FeatureGap(Distance(), (-2.0, 7.0), torch.nn.Linear(3, 5))
    assert torch.isfinite(projected(*arguments))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"feature_until": 0.3, "points_until": 0.2}, "must be shares in this order"),
        ({"density": -1.0}, "weights must not be negative"),
        ({"norm": "l2"}, "norm must be normalized or paper"),
        ({"clamp": (1.0, 1.0)}, "clamp must be a range"),
        ({"pixel": 0.0, "color": 0.0}, "without pixels"),
    ],
)
def test_progressions_that_cannot_be_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Progression(**options)
