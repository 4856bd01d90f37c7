"""Teachers against PyG's convolutions, and the student on every kind of input."""

import copy
import warnings

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch import nn
from torch_geometric.nn import GCNConv

from potstill.core.errors import ConfigError, DataError, ShapeError
from potstill.core.testing import with_package
from potstill.graph.analysis import nodes_call
from potstill.graph.criteria.peers import HGMD, KRD
from potstill.graph.data.tensors import Memo, as_features, csr, density, rows, transposed
from potstill.graph.kernels import PRODUCTS
from potstill.graph.kernels.native import csr_product
from potstill.graph.models.propagate import FeatureLinear
from potstill.graph.models.student import MLPStudent
from potstill.graph.models.teachers import (
    APPNPTeacher,
    GATTeacher,
    GCNTeacher,
    MeanTeacher,
    SAGETeacher,
    make_teacher,
)


def sparse(x):
    return as_features(sp.csr_matrix(x.numpy()))


@pytest.mark.parametrize("hidden", [3, 9], ids=["transform first", "propagate first"])
def test_gcn_is_pygs_convolution(graph, hidden):
    teacher = GCNTeacher(5, hidden, 2, 3).eval()
    layers = [GCNConv(5, hidden), GCNConv(hidden, 3)]
    for layer, linear, bias in zip(layers, teacher.maps, teacher.biases, strict=True):
        layer.lin.weight.data, layer.bias.data = linear.weight.data, bias.data
    nn.init.normal_(teacher.biases[0])
    weight = torch.rand(graph.num_edges, generator=torch.Generator().manual_seed(0)) + 0.1
    for extra in ((), (weight,)):
        expected = layers[1](layers[0](graph.x, graph.edge_index, *extra).relu(),
                             graph.edge_index, *extra)  # fmt: skip
        found = teacher(graph.x, graph.edge_index, *extra)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_sage_averages_with_the_node_counted_twice(graph):
    teacher = SAGETeacher(5, 4, 1, 3)
    source, target = graph.edge_index
    expected = torch.stack([
        (graph.x[source[target == i]].sum(0) + 2 * graph.x[i]) / ((target == i).sum() + 2)
        for i in range(30)
    ])  # fmt: skip
    torch.testing.assert_close(
        teacher(graph.x, graph.edge_index), expected @ teacher.maps[0].weight.T
    )


@pytest.mark.parametrize("kind", ["GCN", "SAGE", "GAT"])
def test_teachers_take_sparse_features_and_isolated_nodes(graph, kind):
    teacher = make_teacher(kind, 5, 8, 2, 3).eval()
    dense = teacher(graph.x, graph.edge_index)
    torch.testing.assert_close(teacher(sparse(graph.x), graph.edge_index), dense)
    assert dense.isfinite().all()
    lonely = teacher(graph.x, torch.empty(2, 0, dtype=torch.long))
    assert lonely.isfinite().all()


@pytest.mark.parametrize("kind", ["GCN", "SAGE", "GAT"])
def test_sparse_and_dense_features_give_the_same_gradients(graph, kind):
    torch.manual_seed(0)
    teacher = make_teacher(kind, 5, 8, 2, 3, dropout=0.0).eval()
    found = []
    for x in (graph.x, sparse(graph.x)):
        teacher.zero_grad()
        teacher(x, graph.edge_index).square().sum().backward()
        found.append(torch.cat([p.grad.flatten() for p in teacher.parameters()]))
    assert (found[0] - found[1]).norm() < 1e-6 * found[0].norm()


def test_gat_drops_stored_features(graph):
    teacher, x = GATTeacher(5, 8, 1, 3, dropout=0.5), sparse(graph.x.relu())
    torch.manual_seed(0)
    for _ in range(5):
        dropped = teacher._drop(x).to_dense()
        kept = dropped != 0
        torch.testing.assert_close(dropped[kept], 2 * x.to_dense()[kept])
        assert 0.3 < kept.sum() / len(x.values()) < 0.7
    assert teacher.eval()._drop(x) is x


def test_sparse_layer_has_the_gradient_of_the_dense_one():
    layer, x = FeatureLinear(6, 4).double(), torch.randn(9, 6).double().relu()
    packed = sparse(x)
    packed = csr(packed.crow_indices(), packed.col_indices(), packed.values().double(), (9, 6))

    def through(weight):
        return torch.func.functional_call(layer, {"weight": weight}, (packed,)).sin()

    assert torch.autograd.gradcheck(through, (layer.weight.detach().requires_grad_(),))


def test_student_predicts_whatever_people_have(graph, tmp_path):
    student = MLPStudent(5, 8, 2, 3).eval()
    expected = student(graph.x).argmax(1)
    np.save(tmp_path / "x.npy", graph.x.numpy())
    kinds = {
        "dense": graph.x,
        "csr": sparse(graph.x),
        "coo": graph.x.to_sparse_coo(),
        "numpy": graph.x.numpy(),
        "double": graph.x.double().numpy(),
        "scipy": sp.csr_matrix(graph.x.numpy()),
        "memory map": np.load(tmp_path / "x.npy", mmap_mode="c"),
    }
    for name, x in kinds.items():
        assert torch.equal(student.predict(x), expected), name
    for size in (1, 7, 30, 100):
        assert torch.equal(student.predict(graph.x, batch_size=size), expected)
    assert torch.equal(student.predict(graph.x[3:4]), expected[3:4])
    assert student.predict(graph.x[:0]).shape == (0,)


def test_predicting_leaves_the_mode_alone(graph):
    student = MLPStudent(5, 8, 2, 3).train()
    assert torch.equal(student.logits(graph.x), student.logits(graph.x))
    assert student.training


def test_the_wrong_width_is_named():
    with pytest.raises(ShapeError, match=r"x must be \[N, 5\], .* got \[4, 6\]"):
        MLPStudent(5, 8, 2, 3).predict(torch.zeros(4, 6))
    with pytest.raises(ShapeError, match=r"got \[5\]; a single node is x\[None\]"):
        MLPStudent(5, 8, 2, 3).predict(torch.zeros(5))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MLPStudent(5, 8, 0, 3), "num_layers must be at least 1, got 0"),
        (lambda: GCNTeacher(5, 0, 2, 3), "hidden_channels must be at least 1, got 0"),
        (lambda: MLPStudent(5, 8, 2, 3, dropout=1.0), r"dropout must be in \[0, 1\), got 1.0"),
        (lambda: GATTeacher(5, 10, 2, 3), "must be a multiple of heads, got 10 and 4"),
        (lambda: make_teacher("GIN", 5, 8, 2, 3), "kind must be one of GCN, .* got 'GIN'"),
    ],
)
def test_sizes_are_checked(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_a_student_comes_back_bit_equal(graph, tmp_path):
    student = MLPStudent(5, 8, 3, 3, dropout=0.2)
    student.save_pretrained(tmp_path / "student")
    again = MLPStudent.from_pretrained(tmp_path / "student")
    assert torch.equal(again.logits(graph.x), student.logits(graph.x))
    assert {p.name for p in (tmp_path / "student").iterdir()} >= {
        "config.json",
        "model.safetensors",
    }


@with_package("onnxscript", "onnxruntime")
def test_the_student_exports_to_onnx_and_torch_export(graph, tmp_path):
    from potstill.core.store.export import to_exported, to_onnx

    student = MLPStudent(5, 8, 2, 3).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        onnx = to_onnx(student, graph.x[:4], tmp_path / "s.onnx", dynamic={0: "nodes"})
        program = to_exported(student, graph.x[:4], tmp_path / "s.pt2", dynamic={0: "nodes"})
    assert max(onnx.error, onnx.error_elsewhere, program.error, program.error_elsewhere) < 1e-5


@pytest.mark.parametrize("shape", [(3, 5, 1), (40, 30, 64), (200, 17, 97), (50, 9000, 40)])
def test_the_kernel_multiplies_sparse_and_dense_matrices(shape):
    if why := PRODUCTS["native"].missing:
        pytest.skip(why)
    m, n, k = shape
    rng = torch.Generator().manual_seed(0)
    matrix = torch.randn(m, n, generator=rng).where(torch.rand(m, n, generator=rng) < 0.2, 0)
    matrix[m // 2] = 0
    x, before = torch.randn(n, k, generator=rng), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(csr_product(sparse(matrix), x))
    finally:
        torch.set_num_threads(before)
    exact = (matrix.double() @ x.double()).float()
    torch.testing.assert_close(found[0], exact, rtol=1e-4, atol=1e-4)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_weights_of_features_keep_their_layout(tmp_path):
    """Rows of features read columns of the weight: a copy in every call would cost more."""
    student, x = MLPStudent(50, 40, 2, 3), sparse(torch.randn(500, 50).relu())
    student(x).sum().backward()
    student.save_pretrained(tmp_path)
    loaded = MLPStudent.from_pretrained(tmp_path)
    for model in (student, loaded, copy.deepcopy(student), student.double().float()):
        assert model.layers[0].weight.T.is_contiguous()
    assert student.layers[0].weight.grad.T.is_contiguous()
    torch.testing.assert_close(loaded.logits(x), student.logits(x))


@pytest.mark.parametrize("fused", [False, True])
def test_adam_steps_weights_of_either_layout_alike(fused):
    student, x = MLPStudent(50, 40, 2, 3, dropout=0.0), torch.randn(60, 50).relu()
    weights = [p.detach().clone().contiguous().requires_grad_() for p in student.parameters()]
    ours = torch.optim.Adam(student.parameters(), 0.01, weight_decay=5e-4, fused=fused)
    theirs = torch.optim.Adam(weights, 0.01, weight_decay=5e-4)
    for _ in range(3):
        ours.zero_grad()
        student(sparse(x)).square().sum().backward()
        for p, w in zip(student.parameters(), weights, strict=True):
            w.grad = p.grad.clone().contiguous()
        ours.step()
        theirs.step()
    torch.testing.assert_close(list(student.parameters()), weights)


def test_rows_and_transpose_of_sparse_matrices(graph):
    x = graph.x.relu()
    index = torch.tensor([4, 4, 0, 29])
    torch.testing.assert_close(rows(sparse(x), index).to_dense(), x[index])
    torch.testing.assert_close(transposed(sparse(x)).to_dense(), x.T)
    assert density(sparse(x)) == density(x)


def test_memo_remembers_objects_not_values():
    calls = []
    memo, x = Memo(), torch.ones(2)

    def make(tensor, power):
        calls.append(power)
        return tensor**power

    assert memo(make, x, 2) is memo(make, x, 2)
    memo(make, x, 3)
    memo(make, x.clone(), 3)
    x += 1
    memo(make, x, 3)
    assert calls == [2, 3, 3, 3]


def test_rows_of_scipy_and_rows_that_lie():
    x = sp.random(30, 64, 0.5, format="csr", dtype="float32", random_state=0)
    pointers, columns, values = map(torch.from_numpy, (x.indptr, x.indices, x.data))
    student = MLPStudent(64, 64, 2, 3, dropout=0.0)
    narrow = csr(pointers, columns, values, x.shape)
    assert narrow.col_indices().dtype == torch.int32
    torch.testing.assert_close(student(narrow), student(narrow.to_dense()))
    student(narrow).sum().backward()
    for wrong in (
        csr(pointers, columns + 60, values, x.shape),
        csr(pointers, columns - 1, values, x.shape),
        csr(pointers + 1, columns, values, x.shape),
    ):
        with pytest.raises(DataError, match=r"rising row pointers and columns in \[0, 64\)"):
            student(wrong)
        with pytest.raises(DataError, match="x: a CSR matrix"):
            student.predict(wrong)


def test_features_that_are_not_numbers_have_no_class():
    student = MLPStudent(4, 8, 2, 3)
    x = torch.rand(5, 4)
    x[3, 1] = float("nan")
    with pytest.warns(UserWarning, match=r"1 of 5 nodes .* \(first: 3\); their class is -1"):
        found = student.predict(x)
    assert found[3] == -1
    assert torch.equal(found[:3], student.predict(x[:3]))


def test_methods_without_weights_refuse_them(graph):
    weight = torch.ones(graph.edge_index.shape[1])
    z = torch.randn(30, 3)
    with pytest.raises(ConfigError, match="GATTeacher: edge_weight must be None"):
        GATTeacher(5, 8, 2, 3)(graph.x, graph.edge_index, weight)
    for criterion in (KRD(), HGMD()):
        with pytest.raises(ConfigError, match="edge_weight must be None"):
            criterion(z, z, graph.edge_index, weight)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", [GCNTeacher, SAGETeacher, MeanTeacher, APPNPTeacher, GATTeacher])
def test_some_nodes_have_the_logits_of_the_whole_graph(graph, kind, weighted):
    teacher = kind(5, 8, 2, 3).eval()
    if weighted and kind is GATTeacher:
        return  # refuses weights
    if weighted:
        graph.edge_weight = torch.rand(graph.edge_index.shape[1])
    nodes = torch.tensor([28, 3, 3, 11])
    inputs = [graph.x, graph.edge_index, *([graph.edge_weight] if weighted else [])]
    with torch.no_grad():
        expected = teacher(*inputs)[nodes]
    if kind is not GATTeacher:
        teacher.forward = None  # the whole graph is never asked
    for features in (graph.x, graph.x.to_sparse_csr()):
        if features is graph.x or kind is not GATTeacher:
            graph.x = features
            torch.testing.assert_close(nodes_call(teacher, graph, nodes)(), expected)


def test_any_module_answers_for_one_node_as_for_all(graph):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolutions = nn.ModuleList([GCNConv(5, 8), GCNConv(8, 3)])

        def forward(self, x, edges):
            return self.convolutions[1](self.convolutions[0](x, edges).relu(), edges)

    model, nodes = Two().eval(), torch.arange(30)
    with torch.no_grad():
        expected = model(graph.x, graph.edge_index)
    found = torch.cat([nodes_call(model, graph, nodes[i : i + 1])() for i in range(30)])
    torch.testing.assert_close(found, expected)
