"""A choice without tuning: what is tried, what is chosen, and the one line that says so."""

import pytest
import torch

from potstill.core import ConfigError
from potstill.core.command.cli import main
from potstill.graph import Comparison, Recipe, check_graph, jobs
from potstill.graph.config import DistillConfig
from potstill.graph.training import choose

RECIPE = Recipe(hidden=16, lr=0.05, student_dropout=0.0)


def test_glnn_where_the_teacher_knows_more(graph):
    data = check_graph(graph)
    found = choose(data, 9 * torch.eye(3)[data.y], RECIPE)
    assert (found.method, found.teacher) == ("glnn", 1.0)
    assert found.probe < 0.99
    assert found.text.startswith("auto: GLNN (homophily 0.")
    assert found.text.endswith("expect about the teacher's score")


def test_a_plain_network_where_features_suffice(graph):
    data = check_graph(graph)
    data.x = torch.eye(3)[data.y].repeat(1, 2)
    found = choose(data, 9 * torch.eye(3)[(data.y + 1) % 3], RECIPE)
    assert found.method == "mlp"
    assert found.text.endswith("features suffice, no teacher pays here")


def test_features_that_say_nothing_are_warned_about(graph):
    data = check_graph(graph)
    data.x = torch.zeros_like(data.x)
    found = choose(data, 9 * torch.eye(3)[data.y], RECIPE)
    assert found.method == "glnn"
    assert "a student may stay far below its teacher" in found.text


def test_a_graph_without_labels_has_nothing_to_probe(graph):
    data = check_graph(graph)
    data.label_free = True
    assert choose(data, torch.randn(30, 3), RECIPE).method == "glnn"


def test_the_command_says_what_it_chose_and_trains_the_teacher_once(tmp_path, capsys, monkeypatch):
    calls, train = [], jobs.train_teacher
    monkeypatch.setattr(jobs, "train_teacher", lambda *a, **o: calls.append(o) or train(*a, **o))
    monkeypatch.setattr(Comparison, "report", lambda *a: {})  # times models, draws
    words = ["graph", "distill", "--auto", "--seeds", "1", "--epochs", "6", "--hidden", "8"]
    assert main([*words, "--out", str(tmp_path)]) == 0
    assert "auto: " in capsys.readouterr().out
    assert len(list(tmp_path.glob("parts/*/teacher"))) == len(calls) == 1
    with pytest.raises(ConfigError, match="auto must come without methods, got both"):
        DistillConfig(auto=True, methods=("glnn",))
