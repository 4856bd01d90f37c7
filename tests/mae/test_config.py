from __future__ import annotations

import subprocess
import sys

import pytest

from potstill.core.command import config as configs
from potstill.core.errors import ConfigError
from potstill.mae import Align, Decoder, Encoder, Finetune, Mask, Pretrain, Probe, recipe, recipes


@pytest.mark.parametrize("name", recipes())
def test_recipes_are_read_and_survive_a_round_trip(name, tmp_path):
    kind = Finetune if "finetune" in name else Pretrain
    config = configs.load(kind, recipe(name))
    assert configs.load(kind, configs.dump(config, tmp_path / "config.yaml")) == config


def test_published_recipe():
    config = configs.load(Pretrain, recipe("dmae_vit_base"))
    assert config.lr_per_256 == 1.5e-4
    assert (config.training.epochs, config.training.accumulate, config.training.lr) == (
        100,
        4,
        None,
    )
    assert config.align.blocks() == [0.75]
    assert (config.align.distance, config.align.norm) == ("l1", "l2")  # published


def test_unknown_recipe():
    with pytest.raises(ConfigError, match="did you mean 'finetune'"):
        recipe("fintune")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mask(ratio=1.0), r"ratio must be in \[0, 1\), got 1.0"),
        (lambda: Align(pairs=("8-17",)), r"must look like 8:17 \(student:teacher\), got"),
        (lambda: Encoder(depth=-1), "depth must be at least 0, got -1"),
        (lambda: Encoder(mean=(0.5,)), "mean and std must be one number per channel"),
        (lambda: Encoder(mean=(0.5,), std=(0.0,)), "std positive"),
        (lambda: Probe("x", neighbors=0), "neighbors must be at least 1, got 0"),
    ],
)
def test_bad_options_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_pairs_win_over_shares():
    assert Align(pairs=("8:17", "11:23")).blocks() == [(8, 17), (11, 23)]
    assert Align(layers=(0.5, 1.0)).blocks() == [0.5, 1.0]


def test_no_decoder():
    assert Decoder(depth=0).options() is None
    assert Decoder(depth=1, width=64).options() == {
        "depth": 1, "width": 64, "heads": 0, "share": 1.0,
    }  # fmt: skip


def test_command_line_does_not_import_torch():
    code = "import potstill.mae.cli, sys; sys.exit('torch' in sys.modules or 'timm' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
