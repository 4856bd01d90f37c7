"""Scores against scikit-learn's, tasks that are not one class a node, and what says nothing."""

from dataclasses import replace

import pytest
import torch
from sklearn.metrics import f1_score, roc_auc_score
from torch_geometric.nn import APPNP, SAGEConv
from torch_geometric.nn import GCN as PygGCN

from potstill.core.errors import ConfigError, DataError
from potstill.graph import (
    MLPStudent,
    Recipe,
    check_graph,
    distill,
    make_teacher,
    objective_for,
    run_protocol,
    teacher_logits,
    train_teacher,
)
from potstill.graph.analysis import compare, nodes_call
from potstill.graph.training import baseline, roc_auc, score, task_loss

SHORT = Recipe(hidden=16, epochs=40, patience=40)


def labelled(graph, task):
    """The graph with several labels, or values, that follow the features."""
    signal = graph.x[:, :2] - graph.x[:, :2].mean(0)
    graph.y = (signal > 0).float() if task == "labels" else signal * 3
    graph.task = task
    return check_graph(graph)


@pytest.mark.parametrize("classes", [2, 4])
def test_figures_are_those_of_scikit_learn(classes):
    rng = torch.Generator().manual_seed(classes)
    z, y = torch.randn(60, classes, generator=rng).round(), torch.arange(60) % classes
    p = z.softmax(1).numpy()
    expected = roc_auc_score(y, p[:, 1] if classes == 2 else p, multi_class="ovr")
    assert roc_auc(z, y) == pytest.approx(expected, abs=1e-6)
    graph = type("G", (dict,), {"__getattr__": dict.get})(y=y, metric="f1")
    everyone = torch.ones(60, dtype=torch.bool)
    macro = f1_score(y, z.argmax(1), average="macro")
    assert score(graph, z, everyone) == pytest.approx(macro, abs=1e-6)
    several = (torch.randn(60, classes, generator=rng) > 0.5).float()
    graph = type(graph)(y=several, metric="f1")
    micro = f1_score(several, z > 0, average="micro")
    assert score(graph, z, everyone) == pytest.approx(micro, abs=1e-6)
    assert roc_auc(z, several) == pytest.approx(roc_auc_score(several, z), abs=1e-6)
    graph = type(graph)(y=several, metric="mae", y_scale=torch.full((classes,), 10.0))
    assert score(graph, several + 0.5, everyone) == pytest.approx(5.0)


@pytest.mark.parametrize(("task", "metric"), [("labels", "f1"), ("values", "mae")])
def test_several_labels_and_values_are_distilled(graph, task, metric):
    data = labelled(graph, task)
    assert (data.metric, data.num_classes) == (metric, 2)
    found = run_protocol(data, replace(SHORT, teacher="SAGE-mean", lr=0.02), ("mlp", "glnn"))
    least = baseline(data)
    for trained in found.values():
        better = trained.accuracy["val"] - least
        assert better > 0 if metric == "f1" else better < 0
    with pytest.raises(ConfigError, match=f"ff-g2m compares distributions .* has {task}; take"):
        distill(data, torch.zeros(30, 2), SHORT, "ff-g2m")
    assert found["glnn"].model.predict(data.x).shape == (30, 2)


def test_one_class_that_is_most_is_not_scored_by_accuracy(graph):
    graph.y = (torch.arange(30) < 5).long()
    data = check_graph(graph)
    assert data.metric == "roc_auc"
    assert baseline(data) == 0.5
    graph.metric = "accuracy"
    chosen = check_graph(graph)
    assert chosen.metric == "accuracy"
    y = data.y[data.test_mask]
    assert baseline(chosen) == pytest.approx(float(y.bincount().max() / len(y)))
    graph.metric = "mae"
    with pytest.raises(ConfigError, match="metric must be accuracy or f1 or roc_auc for classes"):
        check_graph(graph)


def test_a_student_that_says_nothing_is_called_so(graph):
    graph.y = (torch.arange(30) < 5).long()
    data = check_graph(graph)
    data.x = torch.zeros_like(data.x)  # nothing to learn from
    found = compare(lambda seed: data, replace(SHORT, epochs=3), (), (0,))
    assert found.score.title == "ROC-AUC"
    assert set(found.trained) == {"teacher", "mlp", "glnn", "ff-g2m"}
    assert "No better than saying the same of every node (50.0 %)" in found._summary("ff-g2m")
    assert "MLP, labels only" in found._summary("ff-g2m").partition("No better")[2]


def test_rare_classes_weigh_as_much_where_it_is_asked_for(graph):
    graph.y = (torch.arange(30) < 5).long()
    data = check_graph(graph)
    seen = data.train_mask
    z, y = torch.randn(30, 2)[seen], data.y[seen]
    each = torch.nn.functional.cross_entropy(z, y, reduction="none")
    expected = (each[y == 0].mean() + each[y == 1].mean()) / 2
    torch.testing.assert_close(task_loss(data, balanced=True)(z, y), expected)
    plain = objective_for("mlp", SHORT, data=data)
    assert plain.at(0) == {"task": 1.0}


def test_mean_sage_is_pygs(graph):
    teacher = make_teacher("sage-mean", 5, 4, 1, 3).eval()
    layer = SAGEConv(5, 3)
    layer.lin_r = torch.nn.Linear(5, 3, bias=False)
    layer.lin_r.weight, layer.lin_l.weight = teacher.own[0].weight, teacher.maps[0].weight
    layer.lin_l.bias = teacher.own[0].bias
    torch.nn.init.normal_(teacher.own[0].bias)
    torch.testing.assert_close(
        teacher(graph.x, graph.edge_index), layer(graph.x, graph.edge_index), rtol=1e-5, atol=1e-6
    )


def test_appnp_is_pygs(graph):
    teacher = make_teacher("APPNP", 5, 8, 2, 3).eval()
    expected = APPNP(10, 0.1)(teacher.body(graph.x), graph.edge_index)
    found = teacher(graph.x, graph.edge_index)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["SAGE-mean", "APPNP", "pyg"])
def test_every_teacher_learns_and_answers_for_one_node(graph, kind):
    data = check_graph(graph)
    recipe = SHORT if kind == "pyg" else replace(SHORT, teacher=kind)
    model = PygGCN(5, 8, 2, 3) if kind == "pyg" else None
    teacher = train_teacher(data, recipe, model=model)
    assert teacher.history[-1]["loss"] < teacher.history[0]["loss"]
    z, nodes = teacher_logits(teacher.model, data), torch.tensor([3, 17])
    found = nodes_call(teacher.model.eval(), data, nodes)()
    torch.testing.assert_close(found, z[nodes], rtol=1e-4, atol=1e-5)


def test_students_fit_as_scikit_learns_estimators_do(graph, tmp_path):
    student = MLPStudent(5, 16, 2, 3, norm="batch", classes=("a", "b", "c")).fit(graph.x, graph.y)
    p = student.predict_proba(graph.x)
    torch.testing.assert_close(p.sum(1), torch.ones(30))
    assert torch.equal(p.argmax(1), student.predict(graph.x))
    assert (student.predict(graph.x) == graph.y).float().mean() > 0.8
    taught = MLPStudent(5, 16, 2, 3).fit(graph.x, torch.eye(3)[graph.y] * 9)
    assert (taught.predict(graph.x) == graph.y).float().mean() > 0.8
    student.save_pretrained(tmp_path)
    again = MLPStudent.from_pretrained(tmp_path)
    assert again.classes == ("a", "b", "c")
    assert torch.equal(again.predict_proba(graph.x), p)


def test_what_becomes_of_nan_is_saved_with_the_student(graph, tmp_path):
    x = graph.x.clone()
    x[4, 2] = float("nan")
    with pytest.warns(UserWarning, match="1 of 30 nodes have logits that are not finite"):
        assert MLPStudent(5, 8, 2, 3).predict_proba(x)[4].isnan().all()
    with pytest.raises(DataError, match=r"first: 4\); fill or drop NaN"):
        MLPStudent(5, 8, 2, 3, nan="refuse").predict(x)
    filled = MLPStudent(5, 8, 2, 3, nan="fill", fill=(0.0, 0.0, 7.0, 0.0, 0.0))
    filled.save_pretrained(tmp_path)
    expected = x.clone()
    expected[4, 2] = 7.0
    for student in (filled, MLPStudent.from_pretrained(tmp_path)):
        torch.testing.assert_close(student.logits(x), student.logits(expected))
    with pytest.raises(ConfigError, match="fill must have 5, got 0"):
        MLPStudent(5, 8, 2, 3, nan="fill")
