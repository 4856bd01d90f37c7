"""The tutorial of one's own graph: its four commands, as they are printed, one after the other."""

import json
import shlex
from pathlib import Path

import onnxruntime
import pytest
import torch
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

from potstill.core.command import main
from potstill.graph import MLPStudent
from potstill.graph.data import read_features

PAGE = Path(__file__).parents[2] / "docs" / "tutorials" / "graph.md"


def test_a_new_user_distils_evaluates_exports_and_serves(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    section = PAGE.read_text(encoding="utf-8").partition("## Your own graph")[2]
    block = section.partition("Distil, evaluate")[2].split("```")[1]
    commands = [shlex.split(line)[1:] for line in block.strip().splitlines()]
    assert [words[1] for words in commands] == ["distill", "evaluate", "export", "serve"]
    document = Sybil(parsers=[PythonCodeBlockParser()]).parse(PAGE)
    document.namespace["data"] = __import__("potstill.graph").graph.load("digits")
    tables = next(e for e in document.examples() if "features.csv" in e.parsed)
    tables.evaluate()
    assert main(["graph", "check", "mine"]) == 0
    assert "zero 10 %" in capsys.readouterr().out
    for words in commands[:-1]:
        assert main(words) == 0, words
    assert main([*commands[-1], "--check"]) == 0
    shown = capsys.readouterr().out
    assert "GLNN" in shown
    assert "test" in shown
    for page, plots in (("runs/mine", 2), ("runs/evaluation", 2)):
        assert Path(page, "index.html").read_text(encoding="utf-8").count("<svg") == plots
    x = read_features("mine/features.csv")
    student = MLPStudent.from_pretrained("runs/mine/student")
    assert student.classes[:3] == ("eight", "five", "four")
    session = onnxruntime.InferenceSession("runs/mine/student.onnx")
    (z,) = session.run(None, {session.get_inputs()[0].name: x})
    assert torch.equal(torch.from_numpy(z).argmax(1), student.predict(x))
    rows = json.loads(Path("runs/mine/result.json").read_text(encoding="utf-8"))
    assert rows["steps"] > 0
    words = ["graph", "predict", "runs/mine/student", "mine/features.csv"]
    assert main([*words, "--probabilities", "--out", "answers.csv"]) == 0
    lines = Path("answers.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("node,eight,five,four")
    assert sum(map(float, lines[1].split(",")[1:])) == pytest.approx(1, abs=1e-5)
    assert main([*words, "--out", "classes.csv"]) == 0
    said = [line.split(",")[1] for line in Path("classes.csv").read_text().splitlines()[1:]]
    true = [line.split(",")[1] for line in Path("mine/features.csv").read_text().splitlines()[1:]]
    assert sum(a == b for a, b in zip(said, true, strict=True)) > 0.85 * len(true)
