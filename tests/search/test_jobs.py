"""The commands, on a folder of small images."""

import json
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from potstill.core import count_parameters
from potstill.core.command import main
from potstill.core.store.cache import TeacherCache
from potstill.search import (
    Latency,
    SmallResNet,
    save_student,
    suggest,
    timm_model,
)
from potstill.search.jobs import Suggest
from potstill.search.ledger import Ledger
from potstill.search.tasks import Accuracy, _Softened

SPACE = """
builder = "timm"
[fixed]
model = "vit_tiny_patch16_224"
img_size = 8
patch_size = 4
mlp_ratio = 1
num_heads = 2
[choices]
depth = [1, 2]
embed_dim = [8, 16]
"""

STATISTICS = ((0.25, 0.5, 0.375), (0.5, 0.25, 0.75))


@pytest.fixture
def folder(tmp_path: Path, images_of) -> Path:
    images = images_of(36)
    for pixels, label, name in zip(images.pixels, images.labels, images.names, strict=True):
        path = tmp_path / "photos" / images.classes[label] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(path)
    (tmp_path / "space.toml").write_text(SPACE)
    torch.manual_seed(0)
    options = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
    teacher = timm_model("vit_tiny_patch16_224", num_classes=3, **options)
    save_student(teacher, tmp_path / "teacher", ("a", "b", "c"), STATISTICS)
    return tmp_path


def test_a_teacher_images_and_a_budget_become_a_student_of_timm(folder: Path, monkeypatch) -> None:
    monkeypatch.setattr("potstill.core.engine.fit.plot_curves", lambda *_: None)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    words = ["search", "suggest", str(folder / "space.toml"), "--teacher",
             f"timm:local-dir:{folder / 'teacher'}", "--images", str(folder / "photos"),
             "--parameters", "3000", "--shortlist", "2", "--steps", "4", "--batch", "8",
             "--device", "cpu"]  # fmt: skip
    out = folder / "run"
    assert main([*words, "--out", str(out)]) == 0
    best = json.loads((out / "best.json").read_text())
    assert best["costs"]["parameters"] <= 3000
    student = timm.create_model(f"local-dir:{out / 'student'}", pretrained=True)
    assert tuple(student.pretrained_cfg["mean"]) == STATISTICS[0]  # as it was trained
    assert tuple(student.pretrained_cfg["std"]) == STATISTICS[1]
    assert json.loads((out / "student/model.json").read_text())["std"] == list(STATISTICS[1])
    assert student.embed_dim == best["choice"]["embed_dim"]
    assert len(student.blocks) == best["choice"]["depth"]
    assert "parameters, used" in (out / "index.html").read_text()
    log = (out / "search.jsonl").read_text()
    assert main([*words, "--out", str(out)]) == 0  # finished: nothing is done again
    assert (out / "search.jsonl").read_text() == log
    again = folder / "again"
    assert (
        main(["search", "suggest", "--config", str(out / "config.yaml"), "--out", str(again)]) == 0
    )
    weights = [timm.create_model(f"local-dir:{p / 'student'}", pretrained=True).state_dict()
               for p in (out, again)]  # fmt: skip
    assert all(torch.equal(a, b) for a, b in zip(*(w.values() for w in weights), strict=True))
    assert main(["search", "check", str(out), "--truth", "half"]) == 0
    assert main(["search", "suggest", *words[2:], "--out", str(out), "--parameters", "2000"]) == 2


def by_size(model: nn.Module, example: object, spread: float = 1.1) -> Latency:
    time = count_parameters(model) / 1000
    return Latency(time, time, spread * time)


STAGES = {  # what a search does, and at which call of it a kill comes
    "teacher": (TeacherCache, "write", 1),
    "reference": (Accuracy, "__call__", 1),
    "costs": (Ledger, "_append", 2),
    "latency": (Ledger, "_append", 4),
    "score": (Ledger, "_append", 5),
    "first rung": (_Softened, "__call__", 3),
    "first accuracy": (Accuracy, "__call__", 2),
    "second rung": (_Softened, "__call__", 2),
    "last accuracy": (Ledger, "_append", 1),
    "export": (Suggest, "export", 1),
}


def test_killed_at_every_stage_the_command_goes_on_to_the_same_student(
    folder: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr("potstill.core.engine.fit.plot_curves", lambda *_: None)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    words = ["search", "suggest", str(folder / "space.toml"), "--teacher",
             f"timm:local-dir:{folder / 'teacher'}", "--images", str(folder / "photos"),
             "--milliseconds", "3", "--shortlist", "2", "--steps", "4", "--batch", "8",
             "--device", "cpu", "--out"]  # fmt: skip

    def killed(stage: str) -> None:
        owner, name, count = STAGES[stage]
        real, calls = getattr(owner, name), []

        def stop(*args, **options):
            calls.append(1)
            if len(calls) == count:
                raise KeyboardInterrupt
            return real(*args, **options)

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, stop)
            try:
                code = main([*words, str(folder / "killed")])
            except KeyboardInterrupt:
                code = 130
        assert code not in (0, 1, 2), stage

    shaky = partial(suggest, timer=partial(by_size, spread=1.6))
    with monkeypatch.context() as patch:  # a clock that cannot be trusted
        patch.setattr("potstill.search.jobs.suggest", shaky)
        assert main([*words, str(folder / "killed")]) == 1
    assert "wait until the machine is idle and call it again" in capsys.readouterr().err
    assert "latency" not in (folder / "killed/search.jsonl").read_text()
    monkeypatch.setattr("potstill.search.jobs.suggest", partial(suggest, timer=by_size))
    for stage in STAGES:
        killed(stage)
    for name in ("whole", "killed"):
        assert main([*words, str(folder / name)]) == 0
    for name in ("search.jsonl", "best.json"):
        assert (folder / "whole" / name).read_text() == (folder / "killed" / name).read_text()
    weights = [load_file(folder / name / "student/model.safetensors")
               for name in ("whole", "killed")]  # fmt: skip
    assert all(torch.equal(weights[1][name], value) for name, value in weights[0].items())


def test_a_supernet_makes_the_shortlist(folder: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("potstill.core.engine.fit.plot_curves", lambda *_: None)
    assert main(["search", "space", "tiny", str(folder / "tiny.toml")]) == 0
    words = [str(folder / "tiny.toml"), "--teacher", "timm:test_resnet", "--fresh", "--images",
             str(folder / "photos"), "--steps", "3", "--batch", "8", "--device", "cpu"]  # fmt: skip
    net = str(folder / "net")
    assert main(["search", "elastic", *words, "--out", net]) == 0
    assert set(json.loads((folder / "net/result.json").read_text())) >= {"largest", "smallest"}
    words += ["--out", str(folder / "run"), "--macs", "1e9", "--shortlist", "2"]
    assert main(["search", "suggest", *words, "--score", "elastic"]) == 2
    assert "score elastic and supernet need each other" in capsys.readouterr().err
    assert main(["search", "suggest", *words, "--score", "elastic", "--supernet", net]) == 0
    assert "elastic, used" in (folder / "run/index.html").read_text()
    assert (folder / "run/student/model.safetensors").exists()


def test_costs_are_a_table_and_a_page(folder: Path, capsys) -> None:
    words = ["search", "costs", str(folder / "space.toml"), "--shape", "1", "3", "8", "8"]
    assert main([*words, "--device", "cpu", "--out", str(folder / "page")]) == 0
    assert (folder / "page" / "rows.csv").read_text().count("depth=") == 4
    (folder / "space.toml").write_text(SPACE.replace("num_heads = 2", "num_heads = 7"))
    assert main(words) == 2
    assert "no candidate can be built; depth=1 embed_dim=8: " in capsys.readouterr().err


def test_any_student_is_written(tmp_path: Path) -> None:
    save_student(nn.Linear(3, 2), tmp_path / "plain")
    assert (tmp_path / "plain" / "model.safetensors").exists()
    net = SmallResNet((1,), 4, num_classes=2)
    save_student(net, tmp_path / "resnet")
    from safetensors.torch import load_file

    loaded = SmallResNet((1,), 4, num_classes=2)
    loaded.load_state_dict(load_file(tmp_path / "resnet" / "model.safetensors"))
    assert torch.equal(loaded.fc.weight, net.fc.weight)
