"""Two checkpoints of every domain side by side."""

import importlib

import pytest
import timm
import torch

from potstill.core.errors import ConfigError
from potstill.core.measure.machine import Load


def save_sr(folder, small):
    from potstill.sr import IMDN, save_model

    model = IMDN(2, channels=8 if small else 12, blocks=1, global_skip="bicubic")
    return save_model(model, folder / "upscaler.safetensors")


def save_nerf(folder, small):
    from potstill.nerf import HashConfig, MLPConfig, load_scene, make_field, save_field

    space = load_scene("analytic").space
    if small:
        field = make_field("hash", space, HashConfig(levels=2, log2_rows=8, hidden=8))
    else:
        field = make_field("mlp", space, MLPConfig(depth=2, width=16, skip=0))
    field.occupancy.binaries.zero_()
    field.occupancy.binaries[24:40, 24:40, 24:40] = True  # few samples: rendering is quick
    return save_field(field, folder / "field.safetensors")


def save_graph(folder, small):
    from potstill.graph import MLPStudent

    MLPStudent(64, 8 if small else 32, 2, 10).save_pretrained(folder)
    return folder


def save_mae(folder, small):
    from potstill.mae import Decoder, Encoder, Student

    half = (0.5,) * 3
    width = 32 if small else 64
    encoder = Encoder("vit_tiny_patch16_224", 16, 2, width, 1, heads=2, mean=half, std=half)
    Student(encoder, Decoder(depth=1, width=32)).save_pretrained(folder)
    return folder


def save_acm(folder, small):
    from potstill.acm import acmize, save_pretrained

    options = {"img_size": 16, "patch_size": 2, "depth": 1, "num_classes": 10, "num_heads": 2}
    options["embed_dim"] = 16 if small else 32
    model = acmize(timm.create_model("vit_tiny_patch16_224", **options))
    save_pretrained(model, folder, architecture="vit_tiny_patch16_224", options=options)
    return folder


SAVE = {"sr": save_sr, "nerf": save_nerf, "graph": save_graph, "mae": save_mae, "acm": save_acm}


@pytest.mark.parametrize("domain", SAVE)
def test_two_checkpoints_on_one_page(domain, tmp_path):
    from apps.compare.__main__ import outcome_of
    from apps.tour.page import page

    torch.manual_seed(0)
    paths = [tmp_path / name for name in ("large", "small")]
    for path in paths:
        path.mkdir()
    sources = [str(SAVE[domain](path, path.name == "small")) for path in paths]
    outcome = outcome_of(domain, *sources, data="", quick=True)
    large, small = outcome.costs
    assert small.parameters < large.parameters
    if domain != "nerf":  # untrained fields are both clear
        assert outcome.chapter.teacher.quality != outcome.chapter.student.quality
    html = page([outcome], "python -m apps.compare", Load(), 1.0).page()
    assert f"{domain} first: {sources[0]}" in html
    assert f"{domain} second: {sources[1]}" in html
    assert "<table" in outcome.chapter.html
    assert domain == "graph" or "data:image/png" in outcome.chapter.html


def test_upscalers_of_different_factors_are_refused(tmp_path):
    adapter = importlib.import_module("apps.compare.sr")
    with pytest.raises(ConfigError, match="second must enlarge by 2 like the first, got 3"):
        adapter.compare("potstill-x2", "potstill-x3", "")


def test_the_command_says_what_is_missing(run_app, tmp_path):
    done = run_app("apps.compare", "sr", "nothing.safetensors", "potstill-x2")
    assert done.returncode == 1
    assert done.stderr.startswith("compare: load_model: nothing.safetensors must be a file")
    assert "Traceback" not in done.stderr
