"""Graphs of people's own: every form is read as the same graph, or refused by name."""

import gzip
import warnings

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch_geometric.data import Data, HeteroData
from torch_geometric.data.collate import collate

from potstill.core import PotstillError
from potstill.core.errors import ConfigError, DataError
from potstill.graph import MLPStudent, check_graph, read_graph
from potstill.graph.data import describe, read_features

NAMES = ["blue", "green", "red"]


@pytest.fixture
def parts(graph):
    """The same graph in plain arrays; one direction of each edge."""
    one = graph.edge_index[:, graph.edge_index[0] < graph.edge_index[1]]
    return {
        "x": graph.x.numpy(), "edges": one.numpy(), "y": graph.y.numpy(),
        "train": graph.train_mask.numpy(), "val": graph.val_mask.numpy(),
        "test": graph.test_mask.numpy(),
    }  # fmt: skip


def masks(parts):
    return {f"{part}_mask": parts[part] for part in ("train", "val", "test")}


def table(path, header, rows):
    lines = [",".join(map(str, row)) for row in [header, *rows]]
    path.write_text("\n".join(lines) + "\n")


def folder_of_tables(folder, parts):
    folder.mkdir(exist_ok=True)
    roles = ["train" if parts["train"][i] else "val" if parts["val"][i] else "test"
             for i in range(30)]  # fmt: skip
    table(folder / "features.csv", ["id", "a", "b", "c", "d", "e", "label", "split"], [
        [f"n{i}", *map(repr, map(float, row)), NAMES[parts["y"][i]], roles[i]]
        for i, row in enumerate(parts["x"])
    ])  # fmt: skip
    table(folder / "edges.csv", ["source", "target"],
          [[f"n{a}", f"n{b}"] for a, b in parts["edges"].T])  # fmt: skip
    return folder


def npz(folder, parts):
    np.savez(folder / "g.npz", x=parts["x"], edge_index=parts["edges"], y=parts["y"],
             class_names=np.array(NAMES, dtype=object), **masks(parts))  # fmt: skip
    return folder / "g.npz"


def gnn_benchmark(folder, parts):
    x = sp.csr_matrix(parts["x"])
    a = sp.csr_matrix((np.ones(len(parts["edges"].T)), parts["edges"]), (30, 30))
    named = {f"{k}_{part}": getattr(m, part) for k, m in (("attr", x), ("adj", a))
             for part in ("data", "indices", "indptr", "shape")}  # fmt: skip
    np.savez(folder / "g.npz", **named, labels=parts["y"], **masks(parts))
    return folder / "g.npz"


def platonov(folder, parts):
    many = {f"{k[:-5]}_masks": np.stack([v, v[::-1]]) for k, v in masks(parts).items()}
    np.savez(folder / "g.npz", node_features=parts["x"], edges=parts["edges"].T,
             node_labels=parts["y"], **many)  # fmt: skip
    return folder / "g.npz"


def pyg(folder, parts):
    torch.save(thing(parts), folder / "g.pt")
    return folder / "g.pt"


def thing(parts, **more):
    fields = {k: torch.from_numpy(v) for k, v in masks(parts).items()}
    return Data(x=torch.from_numpy(parts["x"]), edge_index=torch.from_numpy(parts["edges"]),
                y=torch.from_numpy(parts["y"]), **fields, **more)  # fmt: skip


def processed(folder, parts):
    (folder / "processed").mkdir()
    data, slices, _ = collate(Data, [thing(parts)], increment=False)
    torch.save((data.to_dict(), slices, Data), folder / "processed" / "data.pt")
    return folder


def ogb(folder, parts):
    def write(name, rows):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with gzip.open(path, "wt") as file:
            np.savetxt(file, rows, delimiter=",", fmt="%.9g")

    write("raw/edge.csv.gz", parts["edges"].T)
    write("raw/node-feat.csv.gz", parts["x"])
    write("raw/node-label.csv.gz", parts["y"])
    for part, name in (("train", "train"), ("val", "valid"), ("test", "test")):
        write(f"split/time/{name}.csv.gz", parts[part].nonzero()[0])
    return folder


def adjacency(parts, kind):
    a = sp.csr_matrix((np.ones(len(parts["edges"].T)), parts["edges"]), (30, 30))
    if kind == "scipy":
        return a
    a_t = torch.from_numpy(a.T.toarray())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return a_t.to_sparse_csr() if kind == "csr" else a_t


class Links:
    """What torch_sparse.SparseTensor has."""

    def __init__(self, parts):
        self.parts = parts

    def coo(self):
        source, target = torch.from_numpy(self.parts["edges"])
        return target, source, None


class Deep:
    """What a DGL graph has."""

    def __init__(self, parts):
        self.ndata = {"feat": torch.from_numpy(parts["x"]), "label": torch.from_numpy(parts["y"]),
                      **{k: torch.from_numpy(v) for k, v in masks(parts).items()}}  # fmt: skip
        self.edata, self.ends = {}, parts["edges"]

    def edges(self):
        return tuple(torch.from_numpy(self.ends))


def hetero(parts):
    found = HeteroData()
    for name, value in thing(parts).to_dict().items():
        if name != "edge_index":
            found["paper"][name] = value
    found["author"].x = torch.zeros(3, 2)
    found["paper", "cites", "paper"].edge_index = torch.from_numpy(parts["edges"])
    found["author", "writes", "paper"].edge_index = torch.tensor([[0], [1]])
    return found


def no_masks(parts):
    return {"x": parts["x"], "y": parts["y"], "split_idx": {
        name: torch.from_numpy(parts[part].nonzero()[0])
        for name, part in (("train", "train"), ("valid", "val"), ("test", "test"))}}  # fmt: skip


FORMS = {
    "tables": lambda f, p: folder_of_tables(f, p),
    "npz": npz,
    "gnn-benchmark": gnn_benchmark,
    "platonov": platonov,
    "pt": pyg,
    "processed": processed,
    "ogb": ogb,
    "data": lambda f, p: thing(p),
    "adj_t": lambda f, p: {**no_masks(p), "adj_t": adjacency(p, "csr")},
    "dense": lambda f, p: {**no_masks(p), "adj_t": adjacency(p, "dense")},
    "scipy": lambda f, p: {**no_masks(p), "adj": adjacency(p, "scipy")},
    "SparseTensor": lambda f, p: {**no_masks(p), "adj_t": Links(p)},
    "dgl": lambda f, p: Deep(p),
    "dictionary of dgl": lambda f, p: {"ndata": Deep(p).ndata, "edges": p["edges"]},
    "ogb objects": lambda f, p: (
        {"node_feat": p["x"], "edge_index": p["edges"], **masks(p)}, p["y"][:, None]
    ),
    "hetero": lambda f, p: hetero(p),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:edges of the types", "ignore:Sparse CSR")
@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_graph(form, parts, graph, tmp_path):
    expected = check_graph(graph)
    data = read_graph(FORMS[form](tmp_path, parts), scaling="none", directed=False)
    assert torch.equal(data.edge_index, expected.edge_index)
    torch.testing.assert_close(data.x, expected.x)
    assert torch.equal(data.y, expected.y)
    for part in ("train", "val", "test"):
        assert torch.equal(data[f"{part}_mask"], expected[f"{part}_mask"]), part
    assert (data.task, data.metric, data.num_classes) == ("classes", "accuracy", 3)
    if form == "tables":
        assert data.class_names == NAMES
    assert describe(data)["split"] == "12 train, 8 val, 10 test"


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize("kind", ["csr", "dense"])
def test_a_one_way_matrix_keeps_its_direction(kind, parts):
    given = {**no_masks(parts), "adj_t": adjacency(parts, kind)}
    data = read_graph(given, directed=True, scaling="none")
    found = set(map(tuple, data.edge_index.T.tolist()))
    assert found == set(map(tuple, parts["edges"].T.tolist()))


def test_networkx(parts):
    networkx = pytest.importorskip("networkx")
    graph = networkx.Graph()
    for i, row in enumerate(parts["x"]):
        graph.add_node(f"n{i}", x=row, y=int(parts["y"][i]))
    graph.add_weighted_edges_from((f"n{a}", f"n{b}", 2.0) for a, b in parts["edges"].T)
    data = read_graph(graph, scaling="none")
    assert data.num_edges == 2 * len(parts["edges"].T)
    assert data.edge_weight.unique().tolist() == [2.0]


LABELS = {
    "words": (["a", "b", "", "a", "b", "a"], [0, 1, -1, 0, 1, 0], "classes", ["a", "b"]),
    "numbers of something": ([7, 99, -1, 7, 99, 7], [0, 1, -1, 0, 1, 0], "classes", ["7", "99"]),
    "floats": ([0.0, 1, np.nan, 0, 1, 0], [0, 1, -1, 0, 1, 0], "classes", None),
    "a column": ([[0], [1], [0], [0], [1], [0]], [0, 1, 0, 0, 1, 0], "classes", None),
    "several words": (["a|b", "b", "", "a", "b", "a"],
                      [[1, 1], [0, 1], [0, 0], [1, 0], [0, 1], [1, 0]], "labels", ["a", "b"]),
    "several": ([[1, 1], [0, 1], [0, 0], [1, 0], [0, 1], [1, 0]],
                [[1, 1], [0, 1], [0, 0], [1, 0], [0, 1], [1, 0]], "labels", None),
    "values": ([0.5, 1, 2, 3, 4, 5], [[0.5], [1], [2], [3], [4], [5]], "values", None),
}  # fmt: skip


@pytest.mark.parametrize("form", LABELS)
def test_labels_in_every_form(form):
    given, expected, task, names = LABELS[form]
    ring = np.stack([np.arange(6), (np.arange(6) + 1) % 6])
    data = read_graph({"x": np.eye(6), "edges": ring, "labels": np.array(given)}, scaling="none")
    assert data.y.tolist() == expected
    assert (data.task, data.get("class_names")) == (task, names)


def test_one_hot_labels_are_classes():
    ring = np.stack([np.arange(6), (np.arange(6) + 1) % 6])
    with pytest.warns(UserWarning, match="one-hot labels are read as classes"):
        data = read_graph({"x": np.eye(6), "edges": ring, "y": np.eye(3)[[0, 1, 2, 0, 1, 2]]})
    assert data.y.tolist() == [0, 1, 2, 0, 1, 2]


def test_splits_take_turns_and_those_that_lack_are_drawn(parts, tmp_path):
    path = platonov(tmp_path, parts)
    flipped = read_graph(path, split=1)
    assert torch.equal(flipped.train_mask, torch.from_numpy(parts["train"][::-1].copy()))
    assert torch.equal(read_graph(path, seed=3).train_mask, flipped.train_mask)
    bare = {"x": parts["x"], "edges": parts["edges"], "y": parts["y"]}
    drawn = read_graph(bare, seed=1)
    assert [int(drawn[f"{p}_mask"].sum()) for p in ("train", "val", "test")] == [18, 6, 6]
    two = read_graph({**bare, "train_mask": parts["train"], "test_mask": ~parts["train"]})
    assert int(two.val_mask.sum()) == 2
    assert int((two.val_mask & two.test_mask).sum()) == 0
    with pytest.raises(ConfigError, match="split must be 0"):
        read_graph(bare, split=2)


def test_features_are_scaled_and_filled_and_the_student_knows_it(parts):
    raw = parts["x"] * np.array([1e3, 1, 1, 1, 1], np.float32) + 7
    holed = raw.copy()
    holed[3, 1] = np.nan
    given = {"x": holed, "edges": parts["edges"], "y": parts["y"], **masks(parts)}
    with pytest.raises(DataError, match="x must be finite, got NaN or infinity, first in row 3"):
        read_graph(given)
    data = read_graph(given, fill=True)
    torch.testing.assert_close(data.x.mean(0), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(data.x.std(0, correction=0), torch.ones(5))
    student = MLPStudent(5, 8, 3, 3, norm="batch").eval()
    served = student.for_raw(data)
    torch.testing.assert_close(served.logits(holed), student.logits(data.x), rtol=1e-4, atol=1e-4)
    row = read_graph({**given, "x": np.abs(raw)}, scaling="row")
    torch.testing.assert_close(row.x.sum(1), torch.ones(30))
    torch.testing.assert_close(student.for_raw(row).logits(np.abs(raw)), student.logits(row.x))
    with pytest.raises(ConfigError, match="row or none for sparse features, got 'standard'"):
        read_graph({**given, "x": sp.csr_matrix(raw)}, scaling="standard")


def test_values_are_scaled_and_the_student_gives_them_back(parts):
    heights = 1000 + 50 * parts["x"][:, :1]
    data = read_graph({"x": parts["x"], "edges": parts["edges"], "y": heights, **masks(parts)})
    assert (data.task, data.metric) == ("values", "mae")
    assert data.y[data.train_mask].std(correction=0) == pytest.approx(1)
    student = MLPStudent(5, 8, 2, 1, task="values").eval()
    torch.testing.assert_close(
        student.for_raw(data).predict(parts["x"]),
        student.logits(data.x) * data.y_scale + data.y_shift, rtol=1e-5, atol=1e-3,
    )  # fmt: skip


def test_a_graph_without_labels_takes_those_of_its_teacher(parts):
    bare = {"x": parts["x"], "edges": parts["edges"]}
    with pytest.raises(DataError, match="labels must be there, got none"):
        read_graph(bare)
    z = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    data = read_graph(bare, logits=z)
    assert data.label_free
    assert torch.equal(data.y, torch.from_numpy(z).argmax(1))
    assert read_graph(bare, logits=z, kind="embeddings").task == "values"


FAULTS = {
    "an edge to nobody": ("edges.csv", "n1,n99", "edges.csv: line 3 must name a node .* 'n99'"),
    "a word": ("features.csv", "n1,1,2,x,4,5,red,train", "line 3 must have a number in column c"),
    "a short line": ("features.csv", "n1,1,2", "features.csv: line 3 must have 8 cells, got 3"),
    "another split": ("features.csv", "n1,1,2,3,4,5,red,tarin", "split must be train, .* 'tarin'"),
    "the same id": ("features.csv", "n0,1,2,3,4,5,red,train", "id must be different in each row"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_tables_are_named_with_file_and_line(fault, parts, tmp_path):
    name, line, message = FAULTS[fault]
    path = folder_of_tables(tmp_path, parts) / name
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], line, *lines[3:]]))
    with pytest.raises(PotstillError, match=message):
        read_graph(tmp_path)


def test_what_cannot_be_read_is_named(parts, tmp_path):
    for name, content in (("a.npz", b"no"), ("a.pt", b"no"), ("a.csv", b"1,2"), ("a.txt", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(PotstillError, match=name.replace(".", r"\.")):
            read_graph(tmp_path / name)
    with pytest.raises(DataError, match="got nothing there"):
        read_graph(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"must hold edges\.csv and features\.csv"):
        read_graph(tmp_path / "empty")
    two = [thing(parts), thing(parts)]
    data, slices, _ = collate(Data, two, increment=False)
    torch.save((data, slices), tmp_path / "two.pt")
    with pytest.raises(DataError, match=r"two\.pt must hold one graph, got 2"):
        read_graph(tmp_path / "two.pt")
    with pytest.raises(ConfigError, match="target must be one of the types .* got 'pape'"):
        read_graph(hetero(parts), target="pape")


class Evil:
    def __reduce__(self):
        return print, ("code of a stranger",)


def test_no_code_of_a_file_is_run(tmp_path, capsys):
    torch.save({"x": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(DataError, match=r"evil\.pt must be a graph"):
        read_graph(tmp_path / "evil.pt")
    assert capsys.readouterr().out == ""


def test_features_alone(parts, tmp_path):
    folder = folder_of_tables(tmp_path / "g", parts)
    np.testing.assert_allclose(read_features(folder / "features.csv"), parts["x"], rtol=1e-6)
    with pytest.raises(PotstillError, match=r"features must be \[N, 4\], got \[30, 5\]"):
        read_features(folder / "features.csv", 4)
