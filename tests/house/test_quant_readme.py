"""The commands in the README and tutorial of quant, in their order, in two steps each."""

import re
from pathlib import Path

import pytest
from workspace import ROOT

from potstill.core.command.cli import main

pytest.importorskip("onnxscript")


def test_the_commands_of_the_documents(tmp_path, monkeypatch):
    pages = [ROOT / "packages/quant/README.md", ROOT / "docs/tutorials/quant.md"]
    text = "".join(path.read_text(encoding="utf-8") for path in pages)
    monkeypatch.chdir(tmp_path)
    for found in re.findall(r'Path\("mine.py"\).write_text\("""\n(.*?)"""\)', text, re.DOTALL):
        Path("mine.py").write_text(found)
    lines = re.findall(r"^potstill (quant .*)$", text, re.MULTILINE)
    assert len(lines) > 5
    for line in lines:
        words = re.sub("--steps [0-9]+", "", line).split()
        small = ["--steps", "2", "--device", "cpu"] if words[1] == "distill" else []
        assert main([*words, *small]) == 0, line
