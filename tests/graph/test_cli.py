"""The commands from end to end, on the embedded graph."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from sklearn.datasets import load_digits

from potstill.core import Training
from potstill.core.command.cli import main
from potstill.graph import load
from potstill.graph.config import DiagnoseConfig, DistillConfig, TrainConfig

QUICK = ["--epochs", "6", "--hidden", "8"]


def test_distill_writes_page_and_student(tmp_path, capsys):
    out = tmp_path / "run"
    words = ["graph", "distill", "--seeds", "2", "--out", str(out), *QUICK]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "GCN teacher" in shown
    assert "FF-G2M" in shown
    page = (out / "index.html").read_text()
    assert page.count("<svg") == 2
    assert "http" not in page.split("<body")[1].split("<svg")[0]
    assert {"config.yaml", "rows.csv", "plot-1.png", "plot-2.png", "student"} <= {
        p.name for p in out.iterdir()
    }

    x = (load_digits().data / 16).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    sp.save_npz(tmp_path / "x.npz", sp.csr_matrix(x))
    found = []
    for name in ("x.npy", "x.npz"):
        words = ["graph", "predict", str(out / "student"), str(tmp_path / name)]
        assert main([*words, "--out", str(tmp_path / "classes.npy"), "--batch-size", "2000"]) == 0
        found.append(np.load(tmp_path / "classes.npy"))
    assert np.array_equal(*found)
    assert found[0].shape == (1797,)


def test_a_teacher_is_trained_once_and_its_logits_are_used(tmp_path, capsys, monkeypatch):
    first = tmp_path / "teacher"
    assert main(["graph", "train", "--out", str(first), *QUICK]) == 0
    assert np.load(first / "logits.npy").shape == (1797, 10)
    words = ["graph", "distill", "--logits", str(first / "logits.npy"), "--methods", "glnn"]
    seen = []
    monkeypatch.setattr(
        "potstill.graph.jobs.load", lambda *a, seed, **o: seen.append(seed) or load(*a, seed=seed)
    )
    out = ["--out", str(tmp_path / "student"), *QUICK]
    assert main([*words, "--seeds", "2", *out]) == 0
    assert seen == [0]  # the split that the teacher knows serves both seeds
    assert "GLNN" in capsys.readouterr().out
    assert main([*words, "--seed", "1", "--out", str(tmp_path / "other")]) == 2
    assert "trained on the labels of this split" in capsys.readouterr().err


def test_inductive_scores_are_shown(tmp_path, capsys):
    words = ["graph", "distill", "--hold-out", "0.2", "--seeds", "1", "--methods", "glnn"]
    assert main([*words, "--out", str(tmp_path), *QUICK]) == 0
    assert "inductive" in (tmp_path / "report.md").read_text()


def test_diagnose_writes_curves(tmp_path):
    words = ["graph", "diagnose", "--methods", "glnn", "--out", str(tmp_path), *QUICK]
    assert main(words) == 0
    assert (tmp_path / "curves.csv").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["distill", "--dataset", "coraa"], "no graph is called 'coraa'"),
        (["distill", "--tau", "0"], "tau must be > 0"),
        (["distill", "--seeds", "0"], "seeds must be at least 1"),
        (["distill", "--hold-out", "1"], r"hold_out must be in [0, 1)"),
        (["distill", "--methods", "gln"], "no method is called 'gln'"),
        (["distill", "--epohcs", "3"], "--epochs"),
        (["predict", "nowhere", "x.npy"], "nowhere"),
        (["distill", "--reduction", "sum"], "reduction"),
        (["distill", "--logits", "z.npy", "--methods", "krd"], "take krd-entropy"),
        (["distill", "--logits", "z.npy", "--hold-out", "0.2"], "without hold_out, got both"),
    ],
)
def test_wrong_usage_is_one_line(words, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["graph", *words]) in (1, 2)
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "content", [b"", b"no numbers", b"\x80\x04.", b"PK\x03\x04", np.array(["a", "b"])], ids=repr
)
def test_junk_instead_of_logits_is_named(content, tmp_path, capsys):
    path = tmp_path / "z.npy"
    np.save(path, content) if isinstance(content, np.ndarray) else path.write_bytes(content)
    words = ["graph", "distill", "--logits", str(path), "--out", str(tmp_path / "out"), *QUICK]
    assert main(words) == 1
    assert "z.npy must be logits" in capsys.readouterr().err


def test_options_choose_the_folder():
    first, same = DistillConfig(), DistillConfig(training=Training(batch=1, device="cpu"))
    others = [DistillConfig(hidden=7), TrainConfig(), DiagnoseConfig(), DistillConfig("cora")]
    assert first.out == same.out
    assert len({config.out for config in (first, *others)}) == 5
    assert str(first.out).startswith("runs/graph/distill-digits-gcn-")
    assert DistillConfig(out=Path("mine")).out == Path("mine")


def test_a_folder_of_another_run_is_refused(tmp_path, capsys):
    words = ["graph", "train", "--out", str(tmp_path)]
    assert main([*words, *QUICK]) == 0
    assert main([*words, "--epochs", "7"]) == 2
    assert "another training.epochs (6.0, now 7.0)" in capsys.readouterr().err


def test_help_does_not_import_torch():
    code = "import potstill.graph.cli, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_student_is_the_one_that_was_validated(tmp_path):
    from potstill.graph.models.student import MLPStudent

    words = ["graph", "distill", "--seeds", "1", "--methods", "mlp", "--out", str(tmp_path)]
    assert main([*words, *QUICK]) == 0
    student = MLPStudent.from_pretrained(tmp_path / "student")
    assert student.predict(torch.rand(3, 64)).shape == (3,)
