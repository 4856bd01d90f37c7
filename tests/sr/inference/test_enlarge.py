"""`upscale` on every kind of image, and every row of the table of bad inputs that concerns it."""

import shutil
import tempfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from potstill.core.errors import ConfigError, DataError, ShapeError
from potstill.core.testing import requires_data
from potstill.sr import (
    IMDN,
    IMDN_AS,
    IMDN_RTE,
    Picture,
    Plan,
    load_model,
    plan,
    save_model,
    upscale,
    write_image,
)
from potstill.sr.evaluation.scores import evaluate, find_set, mean


@pytest.fixture
def identity():
    """A student that is exactly bicubic."""
    model = IMDN(2, 8, 1, "bicubic").eval()
    torch.nn.init.zeros_(model.upsampler.weight)
    torch.nn.init.zeros_(model.upsampler.bias)
    return model


def test_kinds_in_are_kinds_out(identity, photograph, tmp_path):
    whole = upscale(photograph, identity).image
    assert whole.dtype == np.uint8
    path = write_image(Picture(photograph), tmp_path / "a.png")
    np.testing.assert_array_equal(upscale(path, identity).image.color, whole)
    np.testing.assert_array_equal(upscale(str(path), identity).image.color, whole)
    made = upscale(Image.fromarray(photograph), identity).image
    np.testing.assert_array_equal(np.asarray(made), whole)
    tensor = torch.from_numpy(photograph).permute(2, 0, 1)[None] / 255
    found = upscale(tensor.half(), identity).image
    assert found.dtype == torch.float16
    assert found.shape == (1, 3, 96, 120)
    real = upscale((photograph / 255).astype(np.float32), identity).image
    assert np.abs(real * 255 - whole).max() <= 0.51
    wide = upscale(photograph.astype(np.uint16) * 257, identity).image
    assert np.abs(wide / 257 - whole).max() <= 0.51


def test_a_batch_is_enlarged_image_by_image(tiny):
    batch = torch.rand(3, 3, 9, 11)
    made = upscale(batch, tiny).image
    for one, expected in zip(batch, made, strict=True):
        torch.testing.assert_close(upscale(one[None], tiny).image[0], expected)
    with torch.no_grad():
        torch.testing.assert_close(tiny(batch), made, rtol=0, atol=1e-5)


def test_channels(identity, photograph):
    grey = photograph[..., 0]
    assert upscale(grey, identity).image.shape == (96, 120)
    assert upscale(grey[..., None], identity).image.shape == (96, 120, 1)
    two = upscale(photograph[..., :2], identity).image
    assert two.shape == (96, 120, 2)
    four = upscale(np.dstack([photograph, grey]), identity).image
    assert four.shape == (96, 120, 4)


def test_opaque_stays_exactly_opaque(identity, photograph):
    opaque = np.full(photograph.shape[:2], 255, np.uint8)
    made = upscale(Picture(photograph, opaque), identity).image
    assert (made.alpha == 255).all()
    np.testing.assert_array_equal(made.color, upscale(photograph, identity).image)


def test_no_black_fringe_at_transparent_edges(identity):
    color = np.zeros((20, 20, 3), np.uint8)
    color[:, :10] = (250, 120, 60)  # what is transparent is black
    alpha = np.zeros((20, 20), np.uint8)
    alpha[:, :10] = 255
    for how in ("lanczos", "network"):
        made = upscale(Picture(color, alpha), identity, alpha=how).image
        seen = made.color[made.alpha > 25].astype(int)
        assert np.abs(seen - (250, 120, 60)).max() <= 16, how


@pytest.mark.parametrize("how", ["bicubic", "lanczos", "network"])
def test_a_white_disc_with_a_hard_edge_stays_white(how):
    y, x = np.mgrid[:48, :48]
    alpha = np.where((y - 24) ** 2 + (x - 24) ** 2 < 200, 255, 0).astype(np.uint8)
    color = np.where(alpha[..., None] > 0, np.uint8(255), np.uint8(0)).repeat(3, axis=2)
    made = upscale(Picture(color, alpha), alpha=how).image
    share = made.alpha[..., None] / 255
    assert (made.color * share + 255 * (1 - share)).min() >= 250
    real = upscale(np.dstack([color, alpha]) / np.float32(255), alpha=how).image
    np.testing.assert_array_equal(np.round(real * 255), np.dstack([made.color, made.alpha]))
    kept = upscale(Picture(color, alpha), alpha=how, keep_hidden=True).image.color
    assert (kept[:4] <= 8).all()
    assert (made.color[:4] >= 250).all()


def test_grey_stays_grey_and_is_one_path(tmp_path):
    grey = np.random.default_rng(0).integers(0, 256, (24, 30), dtype=np.uint8)
    by_array = upscale(grey).image
    as_rgb = upscale(np.dstack([grey] * 3)).image
    assert (np.ptp(as_rgb, axis=2) == 0).all()
    np.testing.assert_array_equal(as_rgb[..., 0], by_array)
    path = write_image(Picture(np.dstack([grey] * 3), kind="L"), tmp_path / "a.png")
    picture = upscale(path).image
    np.testing.assert_array_equal(np.asarray(picture.to_pil()), by_array)
    np.testing.assert_array_equal(np.round(upscale(grey / np.float32(255)).image * 255), by_array)
    np.testing.assert_array_equal(np.asarray(upscale(Image.fromarray(grey)).image), by_array)


def test_a_network_that_gives_no_numbers_is_an_error(tiny, photograph):
    with torch.no_grad():
        tiny.blocks[0].conv1.weight[0, 0, 0, 0] = float("nan")
    for image in (photograph, torch.rand(1, 3, 9, 9)):
        with pytest.raises(DataError, match="the network must give finite values, got NaN"):
            upscale(image, tiny)


def test_tiny_images_and_constants(tiny):
    for size in ((1, 1), (1, 9), (2, 2)):
        assert np.isfinite(upscale(np.full((*size, 3), 0.5, np.float32), tiny).image).all()
    assert upscale(np.full((1, 1, 3), 9, np.uint8)).image.shape == (2, 2, 3)


@requires_data("sr/Set5")
@pytest.mark.parametrize(("scale", "floor"), [(2, 37.0), (3, 33.0), (4, 30.7)])
def test_our_own_weights_reach_their_floor_and_beat_bicubic(scale, floor):
    rows = evaluate(load_model(f"potstill-x{scale}"), find_set("Set5"))
    assert mean(rows).ours.psnr >= floor
    assert all(row.ours.psnr > row.bicubic.psnr for row in rows)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_our_own_weights_are_the_default(scale, photograph):
    expected = upscale(photograph, load_model(f"potstill-x{scale}")).image
    np.testing.assert_array_equal(upscale(photograph, scale=scale).image, expected)
    assert scale != 2 or np.array_equal(upscale(photograph).image, expected)


def test_self_ensemble_is_the_mean_of_eight_orientations(tiny, photograph):
    values = photograph.astype(np.float32)[:10, :12] / 255
    made = upscale(values, tiny, self_ensemble=True).image
    total = np.zeros_like(made)
    for flip in (False, True):
        for turns in range(4):
            turned = np.rot90(values, turns)
            turned = np.ascontiguousarray(turned[:, ::-1] if flip else turned)
            large = upscale(turned, tiny).image
            large = large[:, ::-1] if flip else large
            total += np.rot90(large, -turns) / 8
    np.testing.assert_allclose(made, total, atol=1e-5)


def test_strided_networks_take_any_size(photograph):
    torch.manual_seed(0)
    refine, half = IMDN_AS(channels=8, blocks=1).eval(), IMDN_RTE(8, 1).eval()
    for h, w in ((1, 1), (45, 58), (46, 59)):
        image = photograph[:h, :w]
        assert upscale(image, refine).image.shape == (h, w, 3)
        assert upscale(image, half).image.shape == (2 * h, 2 * w, 3)


def test_adaptive_cropping(photograph):
    torch.manual_seed(0)
    model = IMDN_AS(channels=8, blocks=1).eval()
    image = photograph.repeat(2, axis=0).repeat(2, axis=1)[:94, :118]
    made = upscale(image, model, align="acs")
    assert (made.image.shape, made.mode) == ((94, 118, 3), "independent")
    # every corner is the corner of its own patch
    x = torch.from_numpy(image[:76, :88].copy()).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        corner = (model(x)[0, :, :47, :59].clamp(0, 1) * 255).round().byte().permute(1, 2, 0)
    gap = np.abs(made.image[:47, :59].astype(int) - corner.numpy())
    assert gap.max() <= 1
    with pytest.raises(ConfigError, match="sides of at least 64 pixels, got 118 x 63"):
        upscale(image[:63], model, align="acs")


def test_progress_ends_at_its_total(tiny, photograph):
    for mode in ("none", "exact", "recompute", "gates", "independent"):
        seen = []
        upscale(
            photograph, tiny, tile=16, tile_mode=mode, progress=lambda *s, to=seen: to.append(s)
        )
        assert seen[-1][0] == seen[-1][1] == len(seen), mode


def test_automatic_choice_from_a_memory_limit(tiny):
    model = IMDN(2)
    assert plan(model, 100, 100, memory_limit=2**30).mode == "none"
    assert plan(model, 1020, 678, memory_limit=2**30).mode == "exact"
    large = plan(model, 3024, 4032, memory_limit=2**31)  # a photograph of a phone
    assert (large.mode, large.mapped) == ("exact", True)
    assert large.bytes < 2**31
    assert plan(model, 3024, 4032, memory_limit=2**31, stages=False).mode == "recompute"
    assert not plan(model, 3024, 4032, memory_limit=2**40, tile=256).mapped
    result = upscale(torch.rand(1, 3, 20, 20), tiny, memory_limit=2**31)
    assert (result.mode, result.tile, result.backend) == ("none", 0, "torch")


def test_the_plan_asks_the_device_that_computes(monkeypatch):
    free = {"cuda:1": 2**30, "cuda:0": 2**40}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[str(device)], 2**41))
    assert plan(IMDN(2), 1020, 678, device="cuda:0").mode == "none"
    assert plan(IMDN(2), 1020, 678, device="cuda:1").mode == "exact"


def test_maps_on_the_disk_give_the_same_picture(tiny, photograph, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    in_memory = upscale(photograph, tiny, tile=16)
    monkeypatch.setattr(
        "potstill.sr.inference.planes.plan", lambda *a, **b: Plan("exact", 16, 0, mapped=True)
    )
    on_disk = upscale(photograph, tiny, tile=16)
    np.testing.assert_array_equal(on_disk.image, in_memory.image)
    torch.testing.assert_close(on_disk.gates, in_memory.gates, rtol=0, atol=0)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(DataError, match="GiB on the disk, got 0.0 GiB free in .*set TMPDIR"):
        upscale(photograph, tiny, tile=16)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_a_network_comes_back_as_it_was(tiny, photograph, dtype):
    expected = upscale(photograph, tiny).image
    tiny.train().to(dtype)
    made = upscale(photograph, tiny).image
    assert np.abs(made.astype(int) - expected).max() <= (3 if dtype == torch.float16 else 0)
    assert tiny.training
    assert {p.dtype for p in tiny.parameters()} == {dtype}
    assert all(p.requires_grad for p in tiny.parameters())


def test_bad_tensors(tiny):
    x = torch.rand(1, 3, 8, 8)
    spoilt = x.clone()
    spoilt[0, 1, 2, 3] = float("nan")
    spoilt[0, 2, 2, 3] = float("inf")
    cases = [
        (spoilt, "must be finite, got 2 NaN or infinite values, the first at \\[0, 1, 2, 3\\]"),
        (x.permute(0, 2, 3, 1), "looks like \\[B, H, W, C\\]: use x.permute\\(0, 3, 1, 2\\)"),
        (x[0], "has no batch axis: use x\\[None\\]"),
        (x[:, :1], "repeat grey images"),
        (x * 255, "must be in \\[0, 1\\], got values from .*; divide bytes by 255"),
        ((x * 255).byte(), "must be a floating tensor in \\[0, 1\\], got torch.uint8"),
        (x[..., :0], "must have pixels"),
    ]
    for image, message in cases:
        with pytest.raises(ShapeError, match=message):
            upscale(image, tiny)


def test_bad_arrays(tiny, photograph):
    real = photograph / 255
    spoilt = real.copy()
    spoilt[4, 5, 0] = np.inf
    cases = [
        (spoilt, "got 1 NaN or infinite values, the first at \\[4, 5, 0\\]"),
        (photograph.transpose(2, 0, 1), "looks like \\[C, H, W\\]: use x.transpose\\(1, 2, 0\\)"),
        (photograph[None], "arrays are single images"),
        (photograph.astype(np.float32), "divide bytes by 255"),
        (photograph.astype(np.int64), "must be uint8, uint16 or floating in \\[0, 1\\], got int64"),
        (photograph[:0], "must have pixels"),
    ]
    for image, message in cases:
        with pytest.raises(ShapeError, match=message):
            upscale(image, tiny)
    with pytest.raises(
        ConfigError, match="image must be a path, a PIL image, an array or a tensor"
    ):
        upscale([[1, 2]], tiny)


def test_bad_options(tiny, photograph, tmp_path):
    cases = [
        ({"scale": 3}, "scale must be 2 like the model's, got 3"),
        ({"tile": 4}, "tile must be 'auto', 'none' or at least 8 pixels, got 4"),
        ({"tile_mode": "magic"}, "tile_mode must be one of auto, none, exact"),
        ({"align": "crop"}, "align must be pad or acs"),
        ({"memory_limit": 100}, "memory_limit must be bytes, at least 16 MiB, got 100"),
        ({"gates": torch.rand(2, 8), "tile_mode": "exact"}, "must be 'gates' when gates are given"),
    ]
    for options, message in cases:
        with pytest.raises(ConfigError, match=message):
            upscale(photograph, tiny, **options)
    with pytest.raises(ConfigError, match="scale must be 2, 3 or 4, got 7"):
        upscale(photograph, scale=7)
    path = save_model(tiny, tmp_path / "net.safetensors")
    with pytest.raises(ConfigError, match="scale must be 2 for .*, got 4"):
        upscale(photograph, path, scale=4)
    with pytest.raises(ConfigError, match="IMDN_RTE has no gates"):
        upscale(photograph, IMDN_RTE(8, 1), tile_mode="recompute")
