"""Small trainings: what learns, what is kept, and what comes out the same twice."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch_geometric.nn import GraphConv

from potstill.core import Engine, Frozen, Objective, fit
from potstill.core.errors import ConfigError
from potstill.core.testing import requires_cuda
from potstill.graph.criteria.frequency import HighFrequency, LowFrequency, SoftLabel
from potstill.graph.data.check import check_graph
from potstill.graph.data.datasets import load
from potstill.graph.models.student import MLPStudent
from potstill.graph.models.teachers import GCNTeacher
from potstill.graph.training.distiller import GraphToMLP, Supervised
from potstill.graph.training.protocol import (
    METHODS,
    distill,
    evaluate,
    objective_for,
    run_protocol,
    teacher_logits,
    train_teacher,
    with_reliability,
)
from potstill.graph.training.recipes import NAMES, Recipe, recipe_for

SHORT = Recipe(hidden=16, epochs=30, patience=30)


def test_the_house_program_runs_as_printed(graph):
    data = check_graph(graph)
    gnn = train_teacher(data, SHORT).model
    data.z_teacher = Frozen(gnn)(data.x, data.edge_index)
    mlp = MLPStudent(5, 16, 2, 3)
    distiller = GraphToMLP(
        mlp,
        Objective(
            task=(0.1, nn.functional.cross_entropy),
            low=(0.9, LowFrequency()),
            high=(0.9, HighFrequency(tau=1.5)),
        ),
    )
    history = fit(distiller, [data], steps=60, lr=0.01, progress=False)
    assert history[-1]["loss"] < history[0]["loss"]
    assert all(name.startswith("student.") for name in distiller.state_dict())


@pytest.mark.parametrize("method", METHODS)
def test_every_method_lowers_its_loss(graph, method):
    data = check_graph(graph)
    teacher = train_teacher(data, SHORT).model
    z, data = teacher_logits(teacher, data), with_reliability(data, teacher)
    trained = distill(data, None if method == "mlp" else z, SHORT, method)
    assert trained.history[-1]["loss"] < trained.history[0]["loss"]
    assert set(trained.accuracy) == {"val", "test"}


def test_the_same_seed_gives_the_same_student(graph):
    data = check_graph(graph)
    z = teacher_logits(train_teacher(data, SHORT, seed=3).model, data)
    first, again, other = (distill(data, z, SHORT, seed=s).model.logits(data.x) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_best_validated_student_is_kept_and_the_latest_of_equals(graph):
    data = check_graph(graph)
    scores = iter([0.5, 0.9, 0.9, 0.1, 0.2, 0.3])
    seen = []

    def score(student):
        seen.append(student.logits(data.x))
        return next(scores)

    recipe = Recipe(hidden=16, epochs=6)
    trained = distill(data, None, recipe, "mlp", validation=score)
    assert torch.equal(trained.model.logits(data.x), seen[2])


def test_any_pyg_module_can_teach(graph):
    class Mine(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = GraphConv(5, 3)

        def forward(self, x, edge_index):
            return self.layer(x, edge_index)

    data = check_graph(graph)
    teacher = train_teacher(data, SHORT, model=Mine())
    trained = distill(data, teacher_logits(teacher.model, data), SHORT)
    assert trained.epochs <= 30


def test_a_student_learns_its_teacher_by_heart(graph):
    data = check_graph(graph)
    z = torch.randn(30, 3, generator=torch.Generator().manual_seed(0)) * 3
    recipe = Recipe(hidden=64, layers=3, student_dropout=0.0, task_weight=0.0, epochs=300,
                    patience=300)  # fmt: skip
    trained = distill(data, z, recipe, "glnn", validation=lambda student: 0.0)
    assert (trained.model.predict(data.x) == z.argmax(1)).float().mean() > 0.9


def test_weighted_graphs(graph):
    graph.edge_weight = torch.rand(graph.num_edges) + 0.5
    data = check_graph(graph)
    found = run_protocol(data, SHORT, ("ff-g2m",))
    assert found["ff-g2m"].accuracy["test"] >= 0


@pytest.mark.parametrize("kind", ["GCN", "SAGE", "GAT"])
@pytest.mark.parametrize("sparse", [False, True])
def test_sixteen_bits_train_as_thirty_two_do(graph, kind, sparse):
    data = check_graph(graph)
    data.x = data.x.to_sparse_csr() if sparse else data.x
    recipe = replace(SHORT, teacher=kind, student_dropout=0.0, teacher_dropout=0.0)
    losses = []
    for precision in ("fp32", "bf16"):
        with Engine("cpu", precision=precision) as engine:
            teacher = train_teacher(data, recipe, engine=engine)
            student = distill(data, teacher_logits(teacher.model, data), recipe, engine=engine)
        losses.append(student.history[0]["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=0.2)
    assert losses[1] != losses[0], "autocast changed nothing, so it was not on"


@requires_cuda
def test_the_gpu_trains_what_the_cpu_does(graph):
    recipe = replace(SHORT, student_dropout=0.0, teacher_dropout=0.0, epochs=5)
    losses = []
    for device in ("cpu", "cuda"):
        data = check_graph(graph)
        with Engine(device) as engine:
            teacher = train_teacher(data, recipe, engine=engine)
            student = distill(data, teacher_logits(teacher.model, data), recipe, engine=engine)
        assert data.x.device.type == "cpu", "the caller's graph was moved"
        losses.append([row["loss"] for row in teacher.history + student.history])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_methods_that_need_the_teacher_itself_are_refused_without(graph):
    data = check_graph(graph)
    with pytest.raises(ConfigError, match="krd must have the reliability .* take krd-entropy"):
        distill(data, torch.zeros(30, 3), SHORT, "krd")
    with pytest.raises(ConfigError, match="z_teacher must come without hold_out_rate, got both"):
        run_protocol(data, SHORT, ("glnn",), hold_out_rate=0.2, z_teacher=torch.zeros(30, 3))
    assert run_protocol(data, replace(SHORT, epochs=2), ("krd",))["krd"].accuracy["test"] >= 0


class _Waits(TorchDispatchMode):
    """Counts what a GPU waits for: numbers that are asked for, and masks as indices."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function).partition(".")[2]
        masks = any(t.dtype == torch.bool for t in tree_leaves(args[1:]) if torch.is_tensor(t))
        if "_local_scalar_dense" in name or "nonzero" in name or (name[:6] == "index." and masks):
            self.found.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("teacher", [False, True])
def test_a_step_never_waits_for_the_gpu(graph, teacher):
    data = check_graph(graph)
    data.z_teacher = torch.randn(30, 3).double()  # of a teacher in double precision
    if teacher:
        distiller = Supervised(GCNTeacher(5, 8, 2, 3), objective_for("mlp", SHORT))
    else:
        distiller = GraphToMLP(MLPStudent(5, 8, 2, 3), objective_for("ff-g2m", SHORT))
    with _Waits() as first:
        distiller(data, 0).total.backward()
    with _Waits() as second:
        distiller(data, 1).total.backward()
    assert first.found, "the count sees nothing"
    assert second.found == []


def test_a_teacher_in_double_precision_is_converted_once(graph):
    data = check_graph(graph)
    z_s, z_t = torch.randn(2, 30, 3)
    for criterion in (SoftLabel(), LowFrequency(), HighFrequency(backend="torch")):
        single = criterion(z_s, z_t, data.edge_index)
        value = criterion(z_s, z_t.double(), data.edge_index)
        torch.testing.assert_close(value, single)
        made = criterion._memo._made
        kinds = {part.dtype for part in made if torch.is_tensor(part) and part.ndim == 2}
        assert kinds == {torch.float32}
        assert criterion(z_s.double(), z_t, data.edge_index).dtype == torch.float64


def test_held_out_nodes_are_scored_apart():
    data = load("digits")
    found = run_protocol(data, Recipe(epochs=15), ("glnn",), hold_out_rate=0.2)
    for trained in found.values():
        score = trained.accuracy
        assert score["production"] == pytest.approx(0.2 * score["inductive"] + 0.8 * score["test"])


def test_digits_reach_the_teacher():
    # 5 seeds, mean: teacher 92.6, MLP 85.8, GLNN 92.2, FF-G2M 92.4 (potstill graph distill)
    data = load("digits", seed=2023)
    found = run_protocol(data, Recipe(), ("mlp", "ff-g2m"), seed=2023)
    score = {name: 100 * trained.accuracy["test"] for name, trained in found.items()}
    assert score["teacher"] > 89
    assert score["ff-g2m"] > score["teacher"] - 3
    assert score["ff-g2m"] > score["mlp"] + 2


def test_recipes():
    assert recipe_for("Cora").hidden == 512
    assert recipe_for("photo", "GAT").lr == 0.001
    assert recipe_for("cpf-citeseer", "SAGE") == recipe_for("citeseer", "SAGE")
    assert recipe_for("unknown", "GAT").teacher == "GAT"
    with pytest.raises(ConfigError, match="must be one of GCN, .* got 'gcn'; did you mean 'GCN'"):
        recipe_for("cora", "gcn")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tau": 0.0}, "tau must be > 0, got 0.0"),
        ({"task_weight": 1.5}, r"task_weight must be in \[0, 1\], got 1.5"),
        ({"layers": 0}, "layers must be at least 1, got 0"),
        ({"teacher": "GIN"}, "teacher must be one of GCN, SAGE, SAGE-mean, GAT, APPNP"),
        ({"norm": "layer"}, "norm must be none or batch, got 'layer'"),
        ({"reduction": "sum"}, "reduction must be edge or node"),
        ({"lr": 0.0}, "lr must be > 0"),
    ],
)
def test_recipes_are_checked(options, message):
    with pytest.raises(ConfigError, match=message):
        Recipe(**options)


def test_objectives():
    assert objective_for("ff-g2m", Recipe(task_weight=0.4)).at(0) == pytest.approx(
        {"task": 0.4, "low": 0.6, "high": 0.6}
    )
    assert objective_for("mlp", Recipe()).at(0) == {"task": 1.0}
    assert "task" not in objective_for("glnn", Recipe(task_weight=0.0)).at(0)
    with pytest.raises(ConfigError, match="no method is called 'gln'; did you mean 'glnn'"):
        objective_for("gln", Recipe())


def test_a_wrong_teacher_is_named(graph):
    data = check_graph(graph)
    with pytest.raises(ValueError, match=r"z_t must be \[30, 3\] like z_s, got \[29, 3\]"):
        distill(data, torch.zeros(29, 3), SHORT)
    with pytest.raises(ValueError, match="z_t must be the teacher's logits"):
        distill(data, None, SHORT)


def test_evaluate_without_test_nodes(graph):
    graph.test_mask[:] = False
    data = check_graph(graph)
    assert set(evaluate(data, torch.zeros(30, 3))) == {"val"}


def test_soft_label_alone_matches_nodes_only(graph):
    z = torch.randn(30, 3)
    assert float(SoftLabel()(z, z, graph.edge_index)) == pytest.approx(0, abs=1e-6)


def test_every_method_has_a_name_in_tables():
    assert set(METHODS) == set(NAMES)
