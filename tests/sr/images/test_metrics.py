"""Both protocols against the reference figures of the official weights, image by image."""

import json

import numpy as np
import pytest
import torch

from potstill.core.errors import ConfigError, ShapeError
from potstill.core.store.data import root
from potstill.core.testing import requires_data
from potstill.sr import load_model, score, upscale
from potstill.sr.evaluation.scores import PUBLISHED, find_set
from potstill.sr.images.metrics import luma, quantize
from potstill.sr.images.reading import read_image
from potstill.sr.images.resize import imresize


# Set14 has 5 MPx, each scored in float64 under two protocols.
@requires_data("sr/safetensors", "sr/reference_metrics.json", "sr/Set5", "sr/Set14")
@pytest.mark.parametrize("name", ["Set5", pytest.param("Set14", marks=pytest.mark.slow)])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_official_weights_give_the_reference_figures(official, name, scale):
    reference = json.loads((root() / "sr/reference_metrics.json").read_text())["results"]
    expected = reference[f"{name}_x{scale}"]
    model = load_model(official(f"IMDN_x{scale}"))
    paper = []
    for path in find_set(name):
        hr = read_image(path).rgb8()
        h, w = (side - side % scale for side in hr.shape[:2])
        hr = hr[:h, :w]
        made = upscale(imresize(hr, 1 / scale), model).image
        float_y, rounded_y = (score(made, hr, scale, p) for p in ("paper", "imdn-repo"))
        wanted = expected[path.stem]
        assert abs(float_y.psnr - wanted["psnr_y"]) <= 0.01, path.stem
        assert abs(float_y.ssim - wanted["ssim_y"]) <= 2e-4, path.stem
        assert abs(rounded_y.psnr - wanted["psnr_y_rounded"]) <= 0.01, path.stem
        assert abs(rounded_y.ssim - wanted["ssim_y_rounded"]) <= 2e-4, path.stem
        assert abs(float_y.psnr_rgb - wanted["psnr_rgb"]) <= 0.01, path.stem
        paper.append(float_y)
    psnr, ssim, _ = np.mean(paper, axis=0)
    published = PUBLISHED[name, scale]
    # half a unit of the last published digit comes on top of the bound
    assert abs(psnr - published[0]) <= 0.01 + 0.005
    assert abs(ssim - published[1]) <= 2e-4 + 5e-5


@requires_data("sr/safetensors", "sr/RealSR")
def test_any_scale_on_a_real_camera_pair(official):
    folder = root() / "sr/RealSR"
    lr, hr = (read_image(folder / side / "cam1_02.png").rgb8() for side in ("LR", "HR"))
    made = upscale(lr, load_model(official("IMDN_AS"))).image
    assert abs(score(made, hr, 0).psnr_rgb - 29.36) <= 0.01
    assert abs(score(lr, hr, 0).psnr_rgb - 26.84) <= 0.01


def test_luma_is_bt601():
    rgb = np.array([[[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    np.testing.assert_allclose(luma(rgb)[0], [16, 16 + 65.481, 16 + 128.553, 16 + 24.966])


def test_psnr_by_hand():
    original = np.full((32, 32, 3), 100, np.uint8)
    image = original + 10
    gap = 10 * (65.481 + 128.553 + 24.966) / 255
    found = score(image, original, 4)
    assert found.psnr == pytest.approx(20 * np.log10(255 / gap))
    assert found.psnr_rgb == pytest.approx(20 * np.log10(255 / 10))
    # 101.88 and 110.47 become 102 and 110
    assert score(image, original, 4, "imdn-repo").psnr == pytest.approx(20 * np.log10(255 / 8))


def test_border_is_left_out():
    original = np.zeros((40, 40, 3), np.uint8)
    image = original.copy()
    image[:3] = 255
    assert score(image, original, 3).psnr == float("inf")
    assert score(image, original, 2).psnr < 60


def test_quantize_rounds_and_clips():
    x = torch.tensor([-0.1, 0.5, 1.2]).reshape(1, 3, 1, 1)
    assert quantize(x).tolist() == [[[0, 128, 255]]]


def test_bad_input():
    image = np.zeros((32, 32, 3), np.uint8)
    with pytest.raises(ConfigError, match="protocol must be one of paper, imdn-repo, got 'y'"):
        score(image, image, 2, "y")
    with pytest.raises(ShapeError, match="of one size"):
        score(image, image[:30], 2)
    with pytest.raises(ShapeError, match="must be uint8, got float64"):
        score(image / 255, image, 2)
    with pytest.raises(ShapeError, match="at least 31 pixels a side with crop=10"):
        score(image[:20, :20], image[:20, :20], 10)
