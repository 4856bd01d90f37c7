import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.core.errors import ConfigError, ShapeError
from potstill.core.measure.metrics import accuracy, ece, psnr, ssim


def naive_ece(logits, labels, bins):
    """Guo et al. 2017, Eq. 3, bin by bin."""
    p = torch.softmax(logits.double(), 1)
    confidence, guess = p.max(1)
    total = 0.0
    for b in range(bins):
        inside = (confidence > b / bins) & (confidence <= (b + 1) / bins)
        if inside.any():
            hit = (guess == labels)[inside].double().mean()
            total += inside.double().mean() * abs(hit - confidence[inside].mean())
    return float(total)


def naive_ssim(x, y, data_range):
    """Wang et al. 2004, window by window, two-pass moments in float64; [H, W] arrays."""
    g = np.exp(-((np.arange(11) - 5.0) ** 2) / (2 * 1.5**2))
    w = np.outer(g, g) / np.outer(g, g).sum()
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    values = []
    for i in range(x.shape[0] - 10):
        for j in range(x.shape[1] - 10):
            a, b = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
            ma, mb = (w * a).sum(), (w * b).sum()
            va, vb = (w * (a - ma) ** 2).sum(), (w * (b - mb) ** 2).sum()
            cov = (w * (a - ma) * (b - mb)).sum()
            values.append(
                (2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
            )
    return float(np.mean(values))


def image_pair(shape, seed=0, noise=0.1):
    rng = torch.Generator().manual_seed(seed)
    x = torch.rand(shape, generator=rng, dtype=torch.float64)
    return x, (x + noise * torch.randn(shape, generator=rng, dtype=torch.float64)).clamp(0, 1)


def test_accuracy_by_hand():
    logits = torch.tensor([[3.0, 2, 1], [1, 3, 2], [1, 2, 3], [3, 1, 2]])
    labels = torch.tensor([0, 2, 0, 1])
    assert [accuracy(logits, labels, k) for k in (1, 2, 3)] == [0.25, 0.5, 1.0]
    assert accuracy(logits.half(), labels.int()) == 0.25


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_ece_equals_the_naive_sum(bins):
    rng = torch.Generator().manual_seed(bins)
    logits = 3 * torch.randn(500, 7, generator=rng)
    labels = torch.randint(7, (500,), generator=rng)
    assert ece(logits, labels, bins) == pytest.approx(naive_ece(logits, labels, bins), abs=1e-12)


def test_ece_bins_are_closed_above():
    """Confidence exactly 0.5 belongs to (0, 0.5]; with the wrong side the bins would merge."""
    logits = torch.tensor([[0.0, 0.0], [0.0, math.log(3)]])  # confidence 0.5 and 0.75
    labels = torch.tensor([0, 0])  # right (argmax of a tie is 0), wrong
    assert ece(logits, labels, 2) == pytest.approx((0.5 + 0.75) / 2)


@given(st.integers(0, 2**31), st.integers(2, 6))
@settings(deadline=None, max_examples=30, derandomize=True)
def test_classification_does_not_see_a_shift_of_the_logits(seed, classes):
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(20, classes, generator=rng, dtype=torch.float64)
    labels = torch.randint(classes, (20,), generator=rng)
    assert accuracy(logits + 3, labels) == accuracy(logits, labels)
    assert ece(logits + 3, labels) == pytest.approx(ece(logits, labels), abs=1e-9)
    assert 0 <= ece(logits, labels) <= 1


GOOD, LABELS = torch.zeros(4, 3), torch.zeros(4, dtype=torch.long)


@pytest.mark.parametrize("metric", [accuracy, ece])
@pytest.mark.parametrize(
    ("logits", "labels", "error", "message"),
    [
        (torch.zeros(4), LABELS, ShapeError, r"\[samples, classes\], got \[4\]"),
        (GOOD.long(), LABELS, ShapeError, "torch.int64"),
        (GOOD, LABELS[:3], ShapeError, r"labels must be 4 class indices, got \[3\]"),
        (GOOD, GOOD, ShapeError, "argmax of one-hot"),
        (GOOD[:0], LABELS[:0], ShapeError, "must hold samples"),
        (GOOD, LABELS + 3, ConfigError, "labels must be from 0 to 2, got 3 to 3"),
        (GOOD, LABELS - 100, ConfigError, "leave ignored samples out"),
        (GOOD * math.nan, LABELS, ConfigError, "must not be NaN, got 12 NaN"),
    ],
)
def test_classification_refuses_bad_input(metric, logits, labels, error, message):
    with pytest.raises(error, match=message):
        metric(logits, labels)


def test_classification_refuses_bad_options():
    with pytest.raises(ConfigError, match="k must be from 1 to the 3 classes, got 4"):
        accuracy(GOOD, LABELS, 4)
    with pytest.raises(ConfigError, match="bins must be at least 1"):
        ece(GOOD, LABELS, 0)


def test_psnr_by_hand():
    x = torch.zeros(2, 3, 4, 4)
    y = torch.stack([torch.full((3, 4, 4), 0.1), torch.full((3, 4, 4), 0.01)])
    torch.testing.assert_close(psnr(x, y, reduction="none"), torch.tensor([20.0, 40.0]))
    torch.testing.assert_close(psnr(x, y), torch.tensor(30.0))  # the mean of decibels
    bytes_ = (y * 100).to(torch.uint8)  # 10 and 1
    expected = 20 * torch.tensor([25.5, 255.0]).log10()
    torch.testing.assert_close(psnr(x.byte(), bytes_, 255, reduction="none"), expected)
    assert psnr(x, x) == math.inf
    assert psnr(x[0, 0, 0], y[0, 0, 0]).shape == ()


@pytest.mark.parametrize(("shape", "data_range"), [((11, 11), 1), ((20, 17), 1), ((13, 24), 255)])
def test_ssim_equals_the_window_by_window_reference(shape, data_range):
    x, y = image_pair(shape)
    expected = naive_ssim(x.numpy() * data_range, y.numpy() * data_range, data_range)
    value = ssim(x * data_range, y * data_range, data_range)
    assert float(value) == pytest.approx(expected, abs=1e-12)
    single = ssim((x * data_range).float(), (y * data_range).float(), data_range)
    assert float(single) == pytest.approx(expected, abs=1e-6)


def test_ssim_in_single_precision_survives_a_flat_bright_image():
    """There float32 moments cancel: without the shifted origin the error is above 1e-4."""
    x, y = (0.98 + 0.002 * v for v in image_pair((64, 64)))
    exact = float(ssim(x, y))
    assert float(ssim(x.float(), y.float())) == pytest.approx(exact, abs=1e-6)
    assert float(ssim(x.float(), y.float(), dtype=torch.float64)) == pytest.approx(exact, abs=1e-6)


def test_ssim_of_a_batch_is_the_mean_over_images_and_channels():
    x, y = image_pair((2, 3, 16, 18))
    each = torch.stack([torch.stack([ssim(a, b) for a, b in zip(p, q, strict=True)]).mean()
                        for p, q in zip(x, y, strict=True)])  # fmt: skip
    # the origin differs between channels and images, so equality is up to rounding
    torch.testing.assert_close(ssim(x, y, reduction="none"), each)
    torch.testing.assert_close(ssim(x, y), each.mean())
    torch.testing.assert_close(ssim(x[0], y[0]), each[0])


@given(st.integers(0, 2**31), st.floats(0.01, 1.0))
@settings(deadline=None, max_examples=25, derandomize=True)
def test_image_metrics_are_symmetric_bounded_and_blind_to_flips(seed, noise):
    x, y = image_pair((1, 14, 15), seed, noise)
    for metric in (psnr, ssim):
        torch.testing.assert_close(metric(x, y), metric(y, x))
        torch.testing.assert_close(metric(x, y), metric(x.flip(-1), y.flip(-1)))
        torch.testing.assert_close(metric(x, y), metric(x.mT, y.mT))
        torch.testing.assert_close(metric(x, y), metric(x * 255, y * 255, 255))
    assert -1 <= float(ssim(x, y)) < float(ssim(x, x)) == pytest.approx(1)


def test_image_metrics_have_gradients():
    x, y = image_pair((2, 1, 12, 12))
    for metric in (psnr, ssim):
        assert torch.autograd.gradcheck(metric, (x.requires_grad_(), y.requires_grad_()))


def test_half_precision_is_computed_in_single():
    x, y = image_pair((3, 16, 16))
    for metric in (psnr, ssim):
        value = metric(x.half(), y.half())
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), metric(x, y), atol=1e-2, rtol=1e-3)


@pytest.mark.parametrize("metric", [psnr, ssim])
@pytest.mark.parametrize(
    ("x", "y", "options", "error", "message"),
    [
        (torch.zeros(3, 16, 16), torch.zeros(3, 16, 17), {}, ShapeError, r"\[3, 16, 16\] and"),
        (torch.zeros(0, 3, 16, 16), torch.zeros(0, 3, 16, 16), {}, ShapeError, "1 to 4 axes"),
        (torch.zeros(1, 1, 1, 16, 16), torch.zeros(1, 1, 1, 16, 16), {}, ShapeError, "4 axes"),
        (torch.zeros(16, 16), torch.zeros(16, 16), {"data_range": 0}, ConfigError, "positive"),
        (torch.zeros(16, 16).byte(), torch.zeros(16, 16), {}, ConfigError, "data_range=255"),
        (torch.zeros(16, 16), torch.zeros(16, 16), {"reduction": "sum"}, ConfigError, "'sum'"),
    ],
)
def test_image_metrics_refuse_bad_input(metric, x, y, options, error, message):
    with pytest.raises(error, match=message):
        metric(x, y, **options)


def test_ssim_needs_room_for_its_window():
    with pytest.raises(ShapeError, match=r"at least 11 x 11 pixels, got \[3, 10, 16\]"):
        ssim(torch.zeros(3, 10, 16), torch.zeros(3, 10, 16))
