"""Graphs by name: counts, offline behaviour, and refusal of altered pickles."""

import pickle
import re
import shutil
import sys
from pathlib import Path

import pytest

from potstill.core.errors import ConfigError, DataError
from potstill.core.store.data import root
from potstill.core.testing import requires_data
from potstill.graph.data.check import is_symmetric
from potstill.graph.data.datasets import DATASETS, load
from potstill.graph.data.pickles import check_pickle
from potstill.graph.data.tensors import is_sparse

# nodes, directed edges, features, classes, training nodes (SOURCES.md of the data; splits of PyG)
COUNTS = {
    "cora": (2708, 10556, 1433, 7, 140),
    "citeseer": (3327, 9104, 3703, 6, 120),
    "photo": (7650, 238162, 745, 8, 160),
    "cs": (18333, 163788, 6805, 15, 300),
    "minesweeper": (10000, 78804, 7, 2, 5000),
    "actor": (7600, None, 932, 5, None),
}


def test_digits_needs_no_files(monkeypatch, tmp_path):
    monkeypatch.setenv("POTSTILL_DATA", str(tmp_path))
    data = load("digits")
    assert data.x.shape == (1797, 64)
    assert [int(m.sum()) for m in (data.train_mask, data.val_mask, data.test_mask)] == [
        50,
        500,
        1247,
    ]
    assert is_symmetric(data.edge_index, 1797)
    assert not is_sparse(data.x)


@requires_data("graph")
@pytest.mark.parametrize("name", COUNTS)
def test_counts(name):
    nodes, edges, features, classes, labelled = COUNTS[name]
    data = load(name)
    assert (*data.x.shape, data.num_classes) == (nodes, features, classes)
    assert edges in (None, data.num_edges)
    assert labelled in (None, int(data.train_mask.sum()))
    assert is_symmetric(data.edge_index, nodes)


@requires_data("graph/planetoid/Cora/raw")
def test_features_of_planetoid_are_row_normalised_and_sparse():
    data = load("cora")
    assert is_sparse(data.x)
    assert data.x.to_dense().sum(1).sub(1).abs().max() < 1e-5
    assert not is_sparse(load("cora", sparse=False).x)


@requires_data("graph/planetoid/Cora/raw")
def test_altered_pickles_are_not_opened(monkeypatch, tmp_path):
    raw = tmp_path / "graph/planetoid/Cora/raw"
    shutil.copytree(root() / "graph/planetoid/Cora/raw", raw)
    (raw / "ind.cora.x").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    monkeypatch.setenv("POTSTILL_DATA", str(tmp_path))
    with pytest.raises(DataError, match="must hold exactly ind.cora.x, .* they are pickles"):
        load("cora")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"cos\nsystem\n(S'touch ran'\ntR.", "os system"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x09touch ran\x85R.", "STACK_GLOBAL"),
        (b"(S'touch ran'\nios\nsystem\n.", "os system"),
    ],
)
def test_pickles_of_a_graph_without_a_known_hash_run_nothing(monkeypatch, tmp_path, content, found):
    raw = tmp_path / "graph/planetoid/PubMed/raw"
    raw.mkdir(parents=True)
    (raw / "ind.pubmed.x").write_bytes(content)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POTSTILL_DATA", str(tmp_path))
    with pytest.raises(DataError, match=rf"ind\.pubmed\.x must hold nothing but arrays.*{found}"):
        load("pubmed")
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("was", "now", "said"),
    [
        ("shape", (9, 9), "an array must be (9, 9), got 24 bytes"),
        ("shape", (-1, -6), "an array must be"),
        ("kind", (3, "<", None, None, None, -1, -1, 63), "another state than numpy writes"),
        ("name", "O8", "arrays must hold numbers"),
    ],
)
def test_arrays_that_are_not_what_they_say_never_reach_numpy(tmp_path, was, now, said):
    kind = (3, "<", None, None, None, -1, -1, 0)
    parts = {"shape": (2, 3), "kind": kind, "name": "f4", was: now}

    def text(value):
        return pickle.dumps(value, 3)[2:-1]

    content = b"\x80\x03cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n"
    content += text((0,)) + text(b"b") + b"tR(" + text(1) + text(parts["shape"])
    content += b"cnumpy\ndtype\n(" + text(parts["name"]) + b"I0\nI1\ntR" + text(parts["kind"])
    content += b"b" + text(False) + text(bytes(24)) + b"tb."
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(DataError, match=re.escape(said)):
        check_pickle(tmp_path / "x")


@pytest.mark.parametrize("name", [n for n in DATASETS if n != "digits"])
def test_missing_files_are_named_and_not_fetched(name, monkeypatch, tmp_path):
    monkeypatch.setenv("POTSTILL_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"must exist, got nothing there.*load\('digits'\) needs"):
        load(name)


def test_unknown_names_get_a_suggestion():
    with pytest.raises(ConfigError, match="no graph is called 'Coora'; did you mean 'cora'"):
        load("Coora")


def test_the_digits_say_what_they_need(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)  # as if it were not installed
    with pytest.raises(DataError, match=r"pip install 'potstill-graph\[digits\]'"):
        load("digits")
