"""Tiles against the whole frame."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from potstill.core.errors import ConfigError
from potstill.core.testing import requires_data
from potstill.sr import IMDN, load_model, upscale
from potstill.sr.backends.staged import Moments, Staged, _reduced, merged, moments
from potstill.sr.inference.tiling import (
    Box,
    Frame,
    boxes,
    gated,
    gates_from_sample,
    gates_recomputed,
)


def frame_of(image: torch.Tensor, model: IMDN) -> tuple[Frame, torch.Tensor]:
    h, w = image.shape[2:]
    out = torch.empty(1, 3, h * model.scale, w * model.scale, dtype=image.dtype)
    return Frame(
        Box(0, 0, h // model.stride, w // model.stride),
        model.stride,
        model.stride * model.scale,
        lambda box: box.of(image),
        lambda box, large: box.of(out).copy_(large),
    ), out


def nothing() -> None:
    pass


@requires_data("sr/safetensors")
@pytest.mark.parametrize("size", [(1, 1), (7, 5), (97, 146), (200, 333)])
@pytest.mark.parametrize("tile", [16, 48, 128])
def test_exact_tiles_equal_the_whole_frame(official, size, tile):
    model = load_model(official("IMDN_x2"))
    image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = model(image)
    made = upscale(image, model, tile=tile)
    assert made.mode == "exact"
    assert (made.image - whole).abs().max() <= 5e-6


@requires_data("sr/safetensors")
@pytest.mark.parametrize("size", [(4, 4), (52, 84)])
def test_exact_tiles_of_the_strided_head(official, size):
    model = load_model(official("IMDN_AS"))
    image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = model(image)
    assert (upscale(image, model, tile=16).image - whole).abs().max() <= 5e-6


@pytest.mark.parametrize("name", ["model_RTC", "model_RTE"])
@requires_data("sr/safetensors")
def test_networks_without_attention_tile_exactly(official, name):
    model = load_model(official(name))
    image = torch.rand(1, 3, 90, 102, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = model(image)
    made = upscale(image, model, tile=32)
    assert made.mode == "exact"
    # noise drives IMDN_RTE far out of [0, 1], so the bound is relative to what comes out
    assert (made.image - whole).abs().max() <= 5e-6 * max(1, whole.abs().max())


def test_known_gates_need_a_margin_of_27_and_no_less():
    torch.manual_seed(0)
    model = IMDN(2, 16, 6).double().eval()
    # Kernels that look to the left only, so that what lies furthest away is not faint.
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d) and module.kernel_size == (3, 3):
            module.weight.data[..., 1:] = 0
            module.weight.data *= 4
    gates = torch.rand(6, 16, dtype=torch.float64)
    image = torch.rand(1, 3, 70, 75, dtype=torch.float64)
    frame, out = frame_of(image, model)
    with torch.no_grad():
        whole = model(image, gates)
        gated(model, gates, frame, 20, 27, nothing)
        enough = (out - whole).abs().max()
        gated(model, gates, frame, 20, 26, nothing)
        short = (out - whole).abs().max()
    assert enough < 1e-13 * whole.abs().max()
    assert short > 1e-6 * whole.abs().max()


def test_recomputed_gates_are_those_of_the_whole_frame(tiny):
    image = torch.rand(1, 3, 40, 52)
    exact = upscale(image, tiny, tile=16)
    again = upscale(image, tiny, tile=16, tile_mode="recompute")
    assert again.mode == "recompute"
    torch.testing.assert_close(again.gates, exact.gates, rtol=0, atol=1e-6)
    torch.testing.assert_close(again.image, exact.image, rtol=0, atol=5e-6)


def test_gates_of_one_run_serve_another(tiny):
    image = torch.rand(1, 3, 40, 52)
    exact = upscale(image, tiny, tile=16)
    given = upscale(image, tiny, tile=16, gates=exact.gates)
    assert given.mode == "gates"
    torch.testing.assert_close(given.image, exact.image, rtol=0, atol=5e-6)
    with pytest.raises(
        ConfigError, match="gates must be \\[2, 8\\], one row a block, got \\[3, 8\\]"
    ):
        upscale(image, tiny, gates=torch.rand(3, 8))


def test_a_sample_of_all_tiles_is_exact_and_of_some_is_near(tiny):
    image = torch.rand(1, 3, 64, 64)
    frame, _ = frame_of(image, tiny)
    with torch.no_grad():
        stages = Staged(tiny)
        exact = gates_recomputed(stages, frame, 32, nothing)
        every = gates_from_sample(stages, frame, 32, nothing, samples=4, margin=32)
        some = gates_from_sample(stages, frame, 16, nothing, samples=3)
    torch.testing.assert_close(every, exact, rtol=0, atol=1e-6)
    assert 0 < (some - exact).abs().max() < 0.05


def test_independent_tiles_have_seams_and_exact_ones_do_not(tiny, photograph):
    image = torch.from_numpy(photograph).permute(2, 0, 1)[None] / 255
    whole = upscale(image, tiny).image
    made = upscale(image, tiny, tile=16, tile_mode="independent")
    assert made.mode == "independent"
    assert (made.image - whole).abs().max() > 1e-4
    assert (upscale(image, tiny, tile=16).image - whole).abs().max() <= 5e-6


def test_boxes_cover_the_frame_once():
    seen = torch.zeros(37, 53)
    for box in boxes(Box(0, 0, 37, 53), 16):
        box.of(seen).add_(1)
    assert (seen == 1).all()


def test_moments_merge_without_cancellation():
    z = 1000 + torch.randn(1, 4, 30, 50, generator=torch.Generator().manual_seed(0))
    z = z.contiguous(memory_format=torch.channels_last)
    parts = [moments(part) for part in z.split(7, dim=2)]
    found = merged(parts)
    variance, mean = torch.var_mean(z.double(), dim=(2, 3), correction=0)
    assert found.pixels == 1500
    torch.testing.assert_close(found.mean, mean[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(found.variance, variance[0], rtol=1e-4, atol=0)


def test_one_reduction_elsewhere_than_on_a_cpu():
    z = 1000 + torch.randn(1, 4, 60, 50, generator=torch.Generator().manual_seed(0))

    class Counted(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            Counted.calls += 1
            return function(*args, **(kwargs or {}))

    with Counted():
        found = _reduced(z)
    assert Counted.calls <= 8
    variance, mean = torch.var_mean(z.double(), dim=(2, 3), correction=0)
    torch.testing.assert_close(found.mean, mean[0], rtol=3e-6, atol=0)
    torch.testing.assert_close(found.variance, variance[0], rtol=1e-4, atol=0)
    Counted.calls = 0
    with Counted():
        merged([found] * 50)
    assert Counted.calls <= 20


def test_merging_is_the_textbook_formula():
    a = Moments(2, torch.tensor([1.0]).double(), torch.tensor([2.0]).double())
    b = Moments(1, torch.tensor([4.0]).double(), torch.tensor([0.0]).double())
    both = merged([a, b])  # 0, 2 and 4
    assert (both.pixels, float(both.mean), float(both.squares)) == (3, 2.0, 8.0)
