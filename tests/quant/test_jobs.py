"""The job, its commands, and subjects of others."""

import json
from pathlib import Path

import pytest
import torch

from potstill.core.command import main
from potstill.core.errors import ConfigError
from potstill.quant import (
    Distill,
    DistillConfig,
    int8_bits,
    int8_units,
    load_lowered,
    load_packed,
    load_subject,
)
from potstill.quant.subject import judge

SUBJECT = """
import torch
import torch.nn.functional as F
from potstill.core import Objective
from potstill.core.schemes import LogitDistiller
from potstill.quant import Subject

def tiny(size=4):
    torch.manual_seed(0)
    teacher, student = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)
    x = torch.randn(6, 8, 4)
    y = x[..., :3].argmax(-1)
    def distiller(student, taught):
        terms = dict(task=(1.0, F.cross_entropy))
        if taught:
            terms = dict(match=(1.0, lambda s, t, y: F.mse_loss(s, t)))
        return LogitDistiller(student, Objective(terms), teacher if taught else None)
    def score(student):
        return -float((student(x) - teacher(x)).square().mean())
    return Subject(student, list(x), score, distiller, list(zip(x, y)), unit="nats")

def wrong():
    return 3
"""


@pytest.fixture
def subject(tmp_path: Path) -> str:
    path = tmp_path / "tiny.py"
    path.write_text(SUBJECT)
    return f"{path}:tiny"


def test_a_run_compares_itself_and_repeats(subject: str, tmp_path: Path) -> None:
    words = ["quant", "distill", subject, "--bits", "2", "--steps", "20", "--device", "cpu"]
    assert main([*words, "--weight-decay", "0.1", "--out", str(tmp_path / "a")]) == 0
    found = json.loads((tmp_path / "a" / "result.json").read_text())
    arms = ["full precision", "post-training mse", "post-training gptq", "without teacher"]
    assert {*arms, "with teacher", "bytes"} <= set(found)
    assert found["with teacher"] > max(found[name] for name in arms[1:])
    made = load_subject(subject)
    student = load_packed(made.student, tmp_path / "a" / "student.safetensors")
    assert judge(made, student) == pytest.approx(found["with teacher"])
    config = tmp_path / "a" / "config.yaml"
    assert main(["quant", "distill", "--config", str(config), "--out", str(tmp_path / "b")]) == 0
    again = json.loads((tmp_path / "b" / "result.json").read_text())
    assert {**again, "seconds": 0} == {**found, "seconds": 0}
    assert "with teacher" in (tmp_path / "b" / "index.html").read_text()


OPTIONS = ["--method dual --bits 2", "--start gptq --bits 3 --no-control",
           "--method levels --bits 4 --keep =8", "--bits 32"]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS)
def test_every_option_of_the_job(options: str, subject: str, tmp_path: Path) -> None:
    words = ["quant", "distill", subject, *options.split(), "--steps", "2", "--device", "cpu"]
    assert main([*words, "--out", str(tmp_path / "run")]) == (2 if "=8" in options else 0)


def test_steps_of_grids_do_not_decay(subject: str, tmp_path: Path) -> None:
    """With a rate of zero but for decay, weights would shrink and scales stay."""
    from potstill.core import Training

    config = DistillConfig(subject, out=tmp_path, training=Training(weight_decay=0.5, steps=1))
    job = Distill(config)
    job.subject = load_subject(subject)
    job.keep = {}
    student = job.lowered()
    distiller = job.subject.distiller(student, False)
    named = list(distiller.named_parameters())
    optimizer = job.optimizer(distiller)(named, lr=1e-3)
    decays = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert {n.rpartition(".")[2]: decays[id(p)] for n, p in named} == {
        "bias": 0.5, "original": 0.5, "scale": 0.0,
    }  # fmt: skip


def test_sizes_and_post(subject: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quant", "sizes", subject, "--bits", "8", "4", "--out", str(tmp_path)]) == 0
    assert "4 bits" in capsys.readouterr().out
    path = tmp_path / "s.safetensors"
    assert main(["quant", "post", subject, str(path), "--bits", "4", "--correct-bias"]) == 0
    load_packed(torch.nn.Linear(4, 3), path)


def test_wrong_subjects_and_options_are_refused(subject: str) -> None:
    for name, message in [
        ("tiny", "must be package.module:function or file.py:function, got 'tiny'"),
        ("nowhere.py:tiny", "no such file: nowhere.py"),
        ("no_such_module:f", "no module 'no_such_module'"),
        (subject.replace(":tiny", ":tine"), "has no tine; did you mean 'tiny'"),
        (subject.replace(":tiny", ":wrong"), "must give a Subject, got int"),
    ]:
        with pytest.raises(ConfigError, match=message):
            load_subject(name)
    for options, message in [
        (dict(keep=("head",)), "each must be PATH=BITS, got 'head'"),
        (dict(method="dual"), "bits must be 2 for dual, got 4"),
        (dict(method="buckets", start="gptq"), "start must be mse or max for buckets, got gptq"),
    ]:
        with pytest.raises(ConfigError, match=message):
            DistillConfig("x:y", **options)


def test_files_are_exported_and_timed(subject: str, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    packed, files = str(tmp_path / "s.safetensors"), [str(tmp_path / f"{n}.onnx") for n in "ab"]
    assert main(["quant", "post", subject, packed, "--bits", "7"]) == 0
    for file, options in zip(files, ([], ["--activations", "both", "--dynamic", "0"]), strict=True):
        assert main(["quant", "export", subject, packed, file, *options]) == 0
    words = ["quant", "time", subject, *files, "--rounds", "1", "--out", str(tmp_path / "t")]
    assert main(words) == 0
    page = (tmp_path / "t" / "index.html").read_text()
    assert "8-bit units" in page
    assert "Below 8 bits weights are unfolded" in page
    assert main(["quant", "time", subject, files[0]]) == 2


def test_seven_bits_are_taken_where_sums_would_overflow(subject, tmp_path, monkeypatch) -> None:
    cpu = tmp_path / "cpuinfo"
    monkeypatch.setattr("potstill.quant.units._CPUINFO", cpu)
    for flags, bits in [("avx2 fma", 7), ("avx2 avx512_vnni", 8), ("avx2 amx_int8", 8)]:
        cpu.write_text(f"flags : {flags}")
        assert DistillConfig(subject, bits="auto").bits == bits
        assert int8_bits() == bits
    cpu.unlink()
    assert (int8_units(), int8_bits()) == ("unknown", 7)
    path = tmp_path / "s.safetensors"
    assert main(["quant", "post", subject, str(path), "--bits", "auto", "--method", "mse"]) == 0
    assert load_lowered(torch.nn.Linear(4, 3), path).parametrizations.weight[0].grid.bits == 7
