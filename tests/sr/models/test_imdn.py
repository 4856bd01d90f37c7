"""The family against the naive network, and its sizes against the published ones."""

import pytest
import torch

from potstill.core.errors import ConfigError, ShapeError
from potstill.core.measure.counts import count_macs, count_parameters
from potstill.sr import IMDN, IMDN_AS, IMDN_RTC, IMDN_RTE
from potstill.sr.images.resize import imresize
from potstill.sr.models.blocks import BicubicSkip


@pytest.mark.parametrize(("scale", "count"), [(2, 694_404), (3, 703_059), (4, 715_176)])
def test_parameters_are_the_published_number(scale, count):
    assert count_parameters(IMDN(scale)) == count


def test_parameters_of_the_variants():
    assert count_parameters(IMDN_AS()) == 752_104
    assert count_parameters(IMDN_RTC()) == 20_190
    assert count_parameters(IMDN_RTE()) == 89_748
    assert count_parameters(IMDN(2, 32, 4, "bicubic")) == 122_620


@pytest.mark.parametrize(("scale", "macs"), [(2, 689_088), (3, 697_728), (4, 709_824)])
def test_macs_are_the_closed_form(scale, macs):
    # convolutions at a pixel, plus the attention's 6 x 512 multiply-adds for the whole image
    assert count_macs(IMDN(scale), torch.rand(1, 3, 16, 16)) == macs * 256 + 6 * 512


def test_bicubic_skip_is_matlabs_resize():
    x = torch.rand(1, 3, 9, 12, dtype=torch.float64)
    for scale in (2, 3, 4):
        ours = BicubicSkip(scale)(x.float())
        inner = (..., slice(2 * scale, -2 * scale), slice(2 * scale, -2 * scale))
        expected = imresize(x, scale).float()
        torch.testing.assert_close(ours[inner], expected[inner], rtol=0, atol=1e-6)


def test_zero_upsampler_leaves_bicubic():
    model = IMDN(2, 8, 1, "bicubic")
    torch.nn.init.zeros_(model.upsampler.weight)
    torch.nn.init.zeros_(model.upsampler.bias)
    x = torch.rand(1, 3, 6, 6)
    torch.testing.assert_close(model(x), BicubicSkip(2)(x))


def test_any_scale_rounds_up_to_multiples_of_four():
    model = IMDN_AS(channels=8, blocks=1)
    for size, expected in (((30, 30), (32, 32)), ((31, 33), (32, 36)), ((1, 1), (4, 4))):
        assert model(torch.rand(1, 3, *size)).shape[2:] == expected


def test_a_constant_image_has_a_finite_gradient(tiny):
    tiny.train()
    x = torch.full((1, 3, 8, 8), 0.5)
    tiny(x).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in tiny.parameters())


def test_one_pixel_reaches_every_output(tiny):
    x = torch.rand(1, 3, 60, 60).double()
    other = x.clone()
    other[..., 0, 0] += 0.5
    tiny.double()
    with torch.no_grad():
        assert (tiny(x) != tiny(other)).all()


def test_radius_is_the_receptive_field_once_gates_are_known():
    torch.manual_seed(0)
    model = IMDN(2, 16, 6).double().eval()
    gates = torch.rand(6, 16, dtype=torch.float64)
    assert model.radius == 27
    x = torch.rand(1, 3, 64, 64, dtype=torch.float64, requires_grad=True)
    # by gradients: what the edge adds to a pixel is too faint for a difference of two outputs
    model(x, gates)[..., 64, 64].sum().backward()
    rows, columns = x.grad.any(dim=1)[0].nonzero().T
    assert rows.min() == columns.min() == 32 - 27
    assert rows.max() == columns.max() == 32 + 27


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": 0}, "scale must be an integer"),
        ({"scale": 2, "channels": 10}, "channels must be a multiple of 4, got 10"),
        ({"scale": 2, "blocks": 0}, "blocks must be at least 1"),
        ({"scale": 2, "global_skip": "lanczos"}, "global_skip must be 'bicubic' or None"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ConfigError, match=message):
        IMDN(**arguments)


def test_bad_shapes(tiny):
    with pytest.raises(ShapeError, match="x must be \\[B, 3, H, W\\]"):
        tiny(torch.rand(1, 8, 8, 3))
    with pytest.raises(ShapeError, match="even sides"):
        IMDN_RTE()(torch.rand(1, 3, 7, 8))
