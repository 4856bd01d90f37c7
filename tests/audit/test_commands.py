"""The commands, their pages and their exit codes."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from potstill.audit import Data, Network
from potstill.core.command import main

SMALL = ["--steps", "20", "--device", "cpu", "--network.teacher", "16", "--network.student", "8"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, digits: Data) -> Path:
    """Digits as PNG in folders."""
    place = tmp_path_factory.mktemp("digits")
    for n, (x, y) in enumerate(zip(*digits.teacher, strict=True)):
        path = place / str(int(y)) / f"{n}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray((255 * x[0]).round().numpy().astype(np.uint8)).convert("RGB").save(path)
    return place


def test_inspect(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Network((3, 8, 8), 10, (16,)).save_pretrained(tmp_path / "teacher")
    words = ["audit", "inspect", str(tmp_path / "teacher"), str(folder), "--out"]
    rest = ["--check", "--limit", "99", "--controls", str(tmp_path / "teacher"), *SMALL]
    assert main([*words, str(tmp_path / "out"), *rest]) == 0
    page = (tmp_path / "out" / "index.html").read_text()
    assert "How to read this" in page
    assert "Controls" in page
    assert "ound" in page
    assert main([*words, str(tmp_path / "other"), "--training.lr", "-1", *SMALL]) == 2
    assert "lr must be positive" in capsys.readouterr().err


def test_backdoor_fails_past_its_limit(folder: Path, tmp_path: Path) -> None:
    words = ["audit", "backdoor", str(folder), "--arms", "kd", "--seeds", "1", "--check", *SMALL]
    assert main([*words, "--limit", "100", "--out", str(tmp_path / "a")]) == 0
    assert main([*words, "--limit", "-101", "--out", str(tmp_path / "b")]) == 1
    first, second = (sorted((tmp_path / n / "models").glob("kd*")) for n in "ab")
    assert len(first) == 4
    assert [p.read_text() for p in first] == [p.read_text() for p in second]
    assert "of a clean teacher" in (tmp_path / "a" / "report.md").read_text()


def test_privacy_fails_past_its_limit(folder: Path, tmp_path: Path) -> None:
    words = ["audit", "privacy", str(folder), "--arms", "kd", "--worlds", "5", *SMALL]
    words += ["--canaries", "40", "--insert", "8", "--out", str(tmp_path)]
    assert main(words) == 0
    text = (tmp_path / "report.md").read_text()
    assert "labels only" in text
    assert "without memory" in text
    assert json.loads((tmp_path / "result.json").read_text())
    # a folder continues with the same options only
    assert main([*words, "--check", "--tpr", "-1"]) == 2


def test_what_is_missing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "backdoor"]) == 2
    assert "data and rates must be named" in capsys.readouterr().err
    assert main(["audit", "backdoor", str(tmp_path / "nothing")]) != 0
    assert main(["audit", "backdoor", str(tmp_path), "--arms", "kdd"]) == 2
    assert "no arm 'kdd'; did you mean 'kd'" in capsys.readouterr().err
