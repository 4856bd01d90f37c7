"""Every verb with a folder: repeated from its configuration, continued, refused by name."""

import csv
import json
import signal
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from potstill.core import ConfigError, Interrupted, Training
from potstill.core.command.cli import main
from potstill.graph import Comparison, Recipe, check_graph, distill, train_teacher
from potstill.graph.config import DiagnoseConfig, DistillConfig, TrainConfig
from potstill.graph.jobs import Diagnose, Distill, Train

QUICK = ["--epochs", "6", "--hidden", "8", "--lr", "0.02", "--seed", "3", "--device", "cpu"]
VERBS = {
    "train": [],
    "distill": ["--seeds", "2", "--methods", "glnn", "--methods", "krd", "--teacher-lr", "0.03"],
    "diagnose": ["--methods", "glnn", "--every", "4", "--weight-decay", "0.1"],
}


@pytest.fixture(autouse=True)
def _untimed(monkeypatch):
    """Latencies are not compared here, and take a second a page."""
    times = {"single node": 1.0, "full graph": 1.0}
    monkeypatch.setattr(Comparison, "_times", lambda self, model: times)


def weights(folder):
    found = sorted(folder.rglob("*.safetensors"))
    files = [path for path in found if "checkpoints" not in path.parts]
    assert files
    return {str(path.relative_to(folder)): load_file(path) for path in files}


def figures(folder):
    """Accuracies of the page, which latencies are not part of, and ``result.json``."""
    rows = folder / "rows.csv"
    table = list(csv.DictReader(rows.read_text().splitlines())) if rows.exists() else []
    scores = [row["accuracy"] for row in table]
    return scores, json.loads((folder / "result.json").read_text())


def assert_same(first, second):
    one, two = weights(first), weights(second)
    assert one.keys() == two.keys()
    for name, tensors in one.items():
        assert all(torch.equal(tensors[k], two[name][k]) for k in tensors), name
    assert figures(first)[0] == figures(second)[0]
    results = [figures(folder)[1] for folder in (first, second)]
    assert results[0].pop("seconds") > 0 < results[1].pop("seconds")
    assert results[0] == results[1]


@pytest.mark.parametrize("verb", VERBS)
def test_the_configuration_of_a_run_repeats_it(verb, tmp_path, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    words = ["graph", verb, *VERBS[verb], *QUICK]
    assert main([*words, "--out", str(first)]) == 0
    config = str(first / "config.yaml")
    assert main(["graph", verb, "--config", config, "--out", str(second)]) == 0
    assert_same(first, second)
    history = sorted(p.read_text() for p in first.rglob("history.jsonl"))
    assert main([*words, "--out", str(first)]) == 0
    assert sorted(p.read_text() for p in first.rglob("history.jsonl")) == history
    assert_same(first, second)
    capsys.readouterr()
    assert main([*words, "--out", str(first), "--patience", "4"]) == 2
    assert "another patience (None, now 4)" in capsys.readouterr().err


JOBS = {
    "train": lambda **o: Train(TrainConfig(hidden=8, **o)),
    "distill": lambda **o: Distill(DistillConfig(hidden=8, methods=("glnn", "krd"), seeds=2, **o)),
    "diagnose": lambda **o: Diagnose(DiagnoseConfig(hidden=8, methods=("glnn",), every=4, **o)),
}
TRAINING = Training(epochs=6, batch=1, device="cpu", seed=3)


@pytest.mark.parametrize(("verb", "after"), [("train", 3), ("distill", 21), ("diagnose", 9)])
def test_a_killed_job_continues(verb, after, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    JOBS[verb](out=whole, training=TRAINING).run(progress=False)
    seen = []

    def kill(row, share):
        seen.append(row)
        if len(seen) == after:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted):
        JOBS[verb](out=killed, training=TRAINING).run(progress=kill)
    rest = []
    JOBS[verb](out=killed, training=TRAINING).run(progress=lambda row, share: rest.append(row))
    parts = len(list(whole.rglob("history.jsonl")))
    assert len(seen) + len(rest) == 6 * parts, "finished parts were trained again"
    assert_same(whole, killed)
    if verb == "diagnose":
        assert (whole / "curves.csv").read_text() == (killed / "curves.csv").read_text()


@pytest.mark.parametrize(
    ("option", "value"), [("batch", 8), ("accumulate", 2), ("workers", 1), ("parallel", "fsdp")]
)
def test_options_that_a_whole_graph_cannot_honour_are_refused(option, value, graph, tmp_path):
    training = replace(TRAINING, **{option: value})
    message = f"Training: {option} must be .* got {value}"
    for config in (TrainConfig, DistillConfig, DiagnoseConfig):
        with pytest.raises(ConfigError, match=message):
            config(out=tmp_path, training=training)
    data = check_graph(graph)
    with pytest.raises(ConfigError, match=message):
        train_teacher(data, Recipe(), training=training)
    with pytest.raises(ConfigError, match=message):
        distill(data, None, Recipe(), "mlp", training=training)


def test_options_of_training_win_over_the_recipe(graph):
    data = check_graph(graph)
    recipe = Recipe(hidden=8, epochs=5)
    base = Training(batch=1, device="cpu")
    assert len(distill(data, None, recipe, "mlp", training=base).history) == 5
    assert distill(data, None, recipe, "mlp", training=base).history[0]["lr"] == recipe.lr
    own = replace(base, epochs=3, lr=0.5, clip=1.0, optimizer="sgd", final=0.1, ema=0.9)
    rows = distill(data, None, recipe, "mlp", training=own).history
    assert len(rows) == 3
    assert rows[0]["lr"] == 0.5 > rows[-1]["lr"]
    assert "grad_norm" in rows[0]
    assert len(train_teacher(data, recipe, training=replace(base, steps=2)).history) == 2
    clipped = train_teacher(data, recipe, training=replace(base, weight_decay=10.0)).history
    assert clipped != train_teacher(data, recipe, training=base).history


@pytest.mark.dist
def test_two_processes_do_what_one_does(graph, tmp_path, on_two_processes):
    """With the same dropout: both train on the whole graph."""
    ring = torch.stack([torch.arange(30), torch.arange(30).roll(1)])
    graph.edge_index = torch.cat([ring, ring.flip(0)], 1)
    torch.save(graph, tmp_path / "graph.pt")
    short = ["--epochs", "2", "--hidden", "8", "--dataset", str(tmp_path / "graph.pt")]
    on_two_processes({
        "train": ["graph", "train", *short],
        "distill": ["graph", "distill", "--seeds", "1", "--methods", "glnn", *short],
        "diagnose": ["graph", "diagnose", "--every", "2", "--methods", "glnn", *short],
    })  # fmt: skip
