"""The job and its command."""

import json
from pathlib import Path

import pytest
import torch

from potstill.core import Training
from potstill.core.command import main
from potstill.core.errors import ConfigError
from potstill.NAME import Config, Network, Train


def test_the_student_comes_near_its_teacher(tmp_path: Path) -> None:
    training = Training(steps=200, lr=0.01, device="cpu")
    job = Train(Config(out=tmp_path, training=training))
    result = job.run(progress=False)
    assert result.history[-1]["loss"] < result.history[0]["loss"] / 10
    again = Network.from_pretrained(tmp_path / "student")
    x = torch.randn(5, 4)
    torch.testing.assert_close(again(x), job.student(x))
    assert json.loads((tmp_path / "result.json").read_text())["error"] == job.error(again)


def test_the_command_repeats_itself(tmp_path: Path) -> None:
    words = ["NAME", "train", "--steps", "3", "--width", "5", "--device", "cpu"]
    assert main([*words, "--out", str(tmp_path / "a")]) == 0
    config = tmp_path / "a" / "config.yaml"
    assert main(["NAME", "train", "--config", str(config), "--out", str(tmp_path / "b")]) == 0
    first, second = (json.loads((tmp_path / n / "result.json").read_text()) for n in ("a", "b"))
    assert first["error"] == second["error"]


def test_a_width_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="width must be at least 1, got 0"):
        Config(width=0)
