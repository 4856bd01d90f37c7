"""Jobs: a configuration that becomes a folder, and verbs that repeat it from what lies there."""

import itertools
import json
import sys
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from cyclopts import App
from safetensors.torch import load_file
from torch import nn

from potstill.core import (
    ConfigError,
    DataError,
    Distiller,
    Engine,
    Job,
    Objective,
    Report,
    Training,
)
from potstill.core.command import build, cli, verb
from potstill.core.command.config import strict
from potstill.core.engine import fit_with, run_ranks
from potstill.core.store.checkpoint import Saver


@dataclass(frozen=True)
class Config:
    """Train a tiny student.

    Attributes:
        data: Value of the inputs.
        out: Folder of the run.
        width: Width of the student.
        training: Options of training.
    """

    data: float
    _: KW_ONLY
    out: Path = Path("runs/tiny")
    width: int = 2
    training: Training = Training(steps=4, lr=0.1, batch=8, optimizer="sgd")


class Regression(Distiller):
    def forward(self, batch, step):
        return self.objective(step, task=(self.student(batch[0]), batch[1]))


class Tiny(Job[Config]):
    def source(self):
        x = torch.full((self.config.training.batch, 2), self.config.data)
        return [(x, 2 * x[:, :1])]

    def distiller(self):
        student = nn.Sequential(nn.Linear(2, self.config.width), nn.Linear(self.config.width, 1))
        return Regression(student, Objective(task=(1.0, F.mse_loss)))

    def export(self, folder, history):
        return {"last": history[-1]["task"], "rank": self.engine.rank}


class Paged(Tiny):
    def export(self, folder, history):
        report = Report("Tiny")
        report.add("student", loss=history[-1]["loss"])
        return report


class Parts(Tiny):
    """Two students, one after the other."""

    def train(self, progress):
        for part in ("first", "second"):
            options = {"folder": part, "curves": part == "first", "progress": progress}
            self.fit(self.distiller(), self.source(), **options)


def test_a_job_leaves_weights_history_configuration_and_result(tmp_path):
    result = Tiny(Config(1.0, out=tmp_path)).run(progress=False)
    assert {"config.yaml", "curves.png", "history.jsonl", "result.json", "student.safetensors"} <= {
        path.name for path in tmp_path.iterdir()
    }
    assert result.summary == json.loads((tmp_path / "result.json").read_text())
    assert result.summary["steps"] == 4
    assert result.summary["last"] == result.history[-1]["task"]
    assert result.folder == tmp_path


def test_the_same_job_again_returns_the_finished_run_and_another_is_refused(tmp_path):
    first = Tiny(Config(1.0, out=tmp_path)).run(progress=False)
    again = Tiny(Config(1.0, out=tmp_path)).run(progress=False)
    assert again.history == first.history
    with pytest.raises(ConfigError, match=r"another data .1.0, now 2.0"):
        Tiny(Config(2.0, out=tmp_path)).run(progress=False)
    with pytest.raises(ConfigError, match=r"another training.lr .0.1, now 0.2"):
        Tiny(Config(1.0, out=tmp_path, training=Training(
            steps=4, lr=0.2, batch=8, optimizer="sgd"))).run(progress=False)  # fmt: skip
    elsewhere = Training(steps=4, lr=0.1, batch=8, optimizer="sgd", device="cpu", workers=2)
    Tiny(Config(1.0, out=tmp_path, training=elsewhere)).run(progress=False)


def test_a_job_of_several_parts_has_a_folder_for_each(tmp_path):
    result = Parts(Config(1.0, out=tmp_path)).run(progress=False)
    assert len(result.history) == 8
    weights = [load_file(tmp_path / part / "student.safetensors") for part in ("first", "second")]
    assert [path.parent.name for path in tmp_path.rglob("curves.png")] == ["first"]
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_page_is_saved(tmp_path):
    result = Paged(Config(1.0, out=tmp_path)).run(progress=False)
    assert result.report is not None
    assert (tmp_path / "index.html").exists()


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"optimizer": "adamm"}, "optimizer must be a known one, got 'adamm'; did you mean 'adam'"),
        ({"steps": None}, "give a budget"),
    ],
)
def test_options_that_cannot_be_honoured_are_refused(tmp_path, training, message):
    options = Training(**{"steps": 1, "optimizer": "adam", **training})
    with pytest.raises(ConfigError, match=message):
        Tiny(Config(1.0, out=tmp_path, training=options)).run(progress=False)


@pytest.mark.parametrize(
    "options",
    [{"steps": 0}, {"epochs": -1.0}, {"lr": 0.0}, {"batch": 0}, {"clip": -1.0}, {"warmup": 1.0},
     {"ema": 1.0}, {"accumulate": 0}, {"workers": -1}, {"weight_decay": -0.1}],
    ids=str,
)  # fmt: skip
def test_training_options_out_of_range_are_refused(options):
    (name,) = options
    with pytest.raises(ConfigError, match=f"Training: {name} must"):
        Training(**options)


def test_the_options_of_training_reach_fit(tmp_path):
    training = Training(
        epochs=2, lr=0.25, optimizer="adamw", weight_decay=0.5, final=0.5, clip=1e-3, accumulate=2
    )
    result = Tiny(Config(1.0, out=tmp_path, training=training)).run(progress=False)
    assert [row["lr"] for row in result.history] == [0.25]  # two passes of one batch, two a step
    assert result.history[0]["grad_norm"] > 1e-3


@pytest.mark.parametrize("missing", ["source", "distiller"])
def test_what_a_job_must_write_is_named(tmp_path, missing):
    lacking = type("Lacking", (Tiny,), {missing: getattr(Job, missing)})
    with pytest.raises(NotImplementedError, match=rf"Lacking: write {missing}\(\), or train\(\)"):
        lacking(Config(1.0, out=tmp_path)).run(progress=False)


# --- verbs ---------------------------------------------------------------------------------------


@pytest.fixture
def app(monkeypatch):
    monkeypatch.setitem(sys.modules, "tiny_job", sys.modules[__name__])
    app = App(name="tiny", config=(strict,), result_action="return_value")
    verb(app, "train", "tiny_job:Tiny", Config)
    verb(app, "page", "tiny_job:Paged", Config)
    return app


def call(app, *words, config=None):
    if config is not None:
        app.config = (cli._file(config, app), strict)
    app(list(words), exit_on_error=False, print_error=False)


def test_the_configuration_of_a_run_repeats_it(app, tmp_path, capsys):
    words = ["train", "1.5", "--out", str(tmp_path / "a"), "--lr", "0.05", "--width", "3"]
    call(app, *words, "--training.seed", "7")
    assert "last" in capsys.readouterr().out
    call(app, "train", "--out", str(tmp_path / "b"), config=tmp_path / "a" / "config.yaml")
    one, two = (load_file(tmp_path / name / "student.safetensors") for name in "ab")
    assert one["0.weight"].shape == (3, 2)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_short_and_long_flags_are_the_same_and_keep_the_other_defaults(app, tmp_path):
    for name, flag in (("a", "--lr"), ("b", "--training.lr")):
        call(app, "train", "1", "--out", str(tmp_path / name), flag, "0.05")
        text = (tmp_path / name / "config.yaml").read_text()
        assert "lr: 0.05" in text
        assert "steps: 4" in text
        assert "optimizer: sgd" in text


def test_a_budget_takes_the_place_of_the_default_one(app, tmp_path):
    call(app, "train", "1", "--out", str(tmp_path), "--epochs", "6")
    assert len((tmp_path / "history.jsonl").read_text().splitlines()) == 6
    made = build(Config, {"data": 1.0, "training": {"seconds": 2.0}})
    assert (made.training.steps, made.training.seconds, made.training.lr) == (None, 2.0, 0.1)
    assert type(made) is Config
    assert type(made.training) is Training


def test_help_shows_the_defaults_of_this_verb(app, capsys):
    call(app, "train", "--help")
    text = " ".join(capsys.readouterr().out.split())
    assert "Train a tiny student." in text
    assert "--training.lr --lr" in text
    assert "[default: 0.1]" in text
    assert "DATA --data" in text


def test_a_page_is_shown_and_named(app, tmp_path, capsys):
    call(app, "page", "1", "--out", str(tmp_path))
    assert f"page: {tmp_path / 'index.html'}" in capsys.readouterr().out


def on_two(folder):
    result = Tiny(Config(1.0, out=Path(folder))).run(progress=False)
    return sorted(result.summary), len(result.history)


@pytest.mark.dist
def test_only_the_main_process_writes(tmp_path):
    (main, rows), (other, _) = run_ranks(on_two, 2, str(tmp_path))
    assert "rank" in main
    assert other == []
    assert rows == 4
    assert json.loads((tmp_path / "result.json").read_text())["rank"] == 0


def test_devices_are_named_by_the_options():
    with pytest.raises(ConfigError, match="device"):
        Engine(device="tpu")


@pytest.mark.parametrize("wrong", ["optimizer", "source"])
def test_a_start_that_failed_does_not_claim_the_folder(tmp_path, monkeypatch, wrong):
    right = Config(1.0, out=tmp_path)
    if wrong == "optimizer":
        typo = replace(right, training=replace(right.training, optimizer="sdg"))
        with pytest.raises(ConfigError, match="did you mean 'sgd'"):
            Tiny(typo).run(progress=False)
    else:
        with monkeypatch.context() as missing:
            missing.setattr(Tiny, "source", lambda job: raise_(DataError("nothing there")))
            with pytest.raises(DataError):
                Tiny(replace(right, data=2.0)).run(progress=False)
    assert len(Tiny(right).run(progress=False).history) == 4


def test_a_run_that_can_be_continued_keeps_the_folder(tmp_path):
    def stop(row, share):
        raise InterruptedError if row["step"] == 2 else KeyError

    config = Config(1.0, out=tmp_path, training=replace(Config(1.0).training, steps=6))
    with pytest.raises(KeyError):
        Tiny(config).run(progress=stop)
    assert not (tmp_path / "config.yaml").exists()  # no checkpoint was written
    Tiny(config).run(progress=False)
    with pytest.raises(ConfigError, match="another data"):
        Tiny(replace(config, data=2.0)).run(progress=False)
    assert (tmp_path / "config.yaml").exists()


def raise_(error):
    raise error


@pytest.mark.parametrize(("minutes", "steps"), [(5.0, [2, 12]), (0.5, [1, 2, 3, 4, 5])])
def test_the_first_checkpoint_comes_within_a_minute(tmp_path, monkeypatch, minutes, steps):
    saved = []
    monkeypatch.setattr(
        "potstill.core.engine.fit.checkpoint.save", lambda folder, step, *_: saved.append(step)
    )
    now = itertools.count(0, 31)  # seconds of a step

    class Slow(Tiny):
        def train(self, progress):
            self.fit(self.distiller(), self.source(), clock=lambda: float(next(now)))

    training = Training(steps=12, lr=0.001, batch=8, optimizer="sgd", checkpoint_minutes=minutes)
    Slow(Config(1.0, out=tmp_path, training=training)).run(progress=False)
    assert saved[: len(steps)] == steps
    with pytest.raises(ConfigError, match="checkpoint_minutes must be positive, got 0"):
        Training(checkpoint_minutes=0)
    movable = replace(training, checkpoint_minutes=1.0)
    Slow(Config(1.0, out=tmp_path, training=movable)).run(progress=False)


def test_options_of_checkpoints_and_event_files_reach_the_run(tmp_path, monkeypatch):
    """In a job and without one; a run is continued with others."""
    pytest.importorskip("tensorboard")
    behind = []
    start = Saver.__init__

    def watched(self, folder, keep, asynchronous=False):
        behind.append(asynchronous)
        start(self, folder, keep, asynchronous)

    monkeypatch.setattr(Saver, "__init__", watched)
    training = replace(Config(1.0).training, checkpoint_asynchronous=True, tensorboard=True)
    Tiny(Config(1.0, out=tmp_path, training=training)).run(progress=False)
    assert list((tmp_path / "tensorboard").glob("events.*"))
    Tiny(Config(1.0, out=tmp_path)).run(progress=False)
    job = Tiny(Config(1.0))
    fit_with(training, job.distiller(), job.source(), run=tmp_path / "other", progress=False)
    assert list((tmp_path / "other/tensorboard").glob("events.*"))
    assert behind == [True, False, True]
