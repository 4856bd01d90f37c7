"""Graphs by name: one embedded in scikit-learn, the public ones from the data root."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch_geometric.data import Data
from torch_geometric.io import read_planetoid_data
from torch_geometric.transforms import NormalizeFeatures
from torch_geometric.utils import remove_self_loops, to_undirected

from potstill.core import ConfigError, DataError, locate, nearest, reading
from potstill.core.store import root, sha256
from potstill.graph.data.check import check_graph
from potstill.graph.data.pickles import check_pickle
from potstill.graph.data.splits import cpf_split, per_class_split, take_split
from potstill.graph.data.tensors import as_features, compress, density, is_sparse, read_npz

__all__ = ["DATASETS", "load", "sparse_features"]

# Of the eight files of `raw`, as potstill.core.store.sha256 digests a folder.
_PLANETOID = {
    "Cora": "f60b9cb11b7f99aa213b99365acb5190724d3273537eec9a6b1780a2b09ca409",
    "CiteSeer": "6e179cd0620be6a1904951fa8c916c8c345a8f08e331197c32aa2d720c1f4776",
}


@dataclass(frozen=True)
class _Source:
    """Where a graph lies below the data root, and how it is read and split."""

    path: str
    read: Callable[[Path], Data]
    split: Callable[[Data, int], Data]
    fetch: tuple[str, str] | None = None  # the class in torch_geometric.datasets, and its name


def load(
    name: str,
    *,
    seed: int = 0,
    split: int | None = None,
    download: bool = False,
    sparse: bool | None = None,
) -> Data:
    """A graph by name, checked, with masks; see `DATASETS` for the names.

    Cora, CiteSeer and PubMed come with row-normalised features and their public split; Photo, CS
    and Physics with binary features and 20 nodes a class for training (500 validation, 1,000 test,
    drawn from ``seed``); ``cpf-*`` with the split of CPF; the heterophilous graphs with ten splits.

    Args:
        name: Upper and lower case do not matter. ``"digits"`` is scikit-learn's: 1,797 images of
            8x8 pixels, linked to their 5 nearest neighbours; 5 labels a class.
        seed: Draws the split where it is drawn.
        split: Which of several stored splits; ``seed % number`` by default.
        download: Let PyG fetch what is missing into the data root. Nothing else uses the network.
        sparse: Store features as CSR; by default where fewer than one in ten is not zero.

    Raises:
        ConfigError: An unknown name.
        DataError: The files are missing or not what they should be.

    Example:
        >>> data = load("digits")
        >>> data.num_nodes, data.num_classes, int(data.train_mask.sum())
        (1797, 10, 50)
    """
    source = DATASETS.get(name.lower())
    if source is None:
        raise ConfigError(f"load: no graph is called {name!r}; {nearest(name.lower(), DATASETS)}")
    path = _find(name, source, download)
    with reading(path, f"the graph {name!r}"):
        data = source.read(path)
        if data.get("train_mask") is not None and data.train_mask.ndim == 2:
            data = take_split(data, seed % data.train_mask.shape[1] if split is None else split)
        elif data.get("train_mask") is None:
            data = source.split(data, seed)
        checked = check_graph(data, name=f"load({name!r})")
    return sparse_features(checked, sparse)


def sparse_features(data: Data, sparse: bool | None = None) -> Data:
    """Store the features as CSR where that is worth it: fewer than one entry in ten is not zero."""
    if sparse is None:
        sparse = density(data.x) < 0.1
    if sparse and not is_sparse(data.x):
        row, column = data.x.nonzero(as_tuple=True)
        data.x = compress(row, column, data.x[row, column], tuple(data.x.shape))
    elif not sparse and is_sparse(data.x):
        data.x = data.x.to_dense()
    return data


def _find(name: str, source: _Source, download: bool) -> Path:
    if not source.path:
        return Path()
    path = Path("graph") / source.path
    if download and source.fetch and not (root() / path).exists():
        from torch_geometric import datasets

        kind, title = source.fetch
        getattr(datasets, kind)(str(root() / Path(*path.parts[:2])), title)
    fetched = "download=True, or " if source.fetch else ""
    hint = f"pass {fetched}set POTSTILL_DATA to the folder with {path.as_posix()}"
    return locate(path, hint=f"{hint}; load('digits') needs no files")


# --- readers ------------------------------------------------------------------------------------


def _digits(path: Path) -> Data:
    """Scikit-learn's digits (Alpaydin and Kaynak, UCI, 1998), with their nearest neighbours."""
    try:
        from sklearn.datasets import load_digits
        from sklearn.neighbors import kneighbors_graph
    except ImportError as error:
        raise DataError(
            "load: 'digits' come with scikit-learn, which cannot be imported; "
            "pip install 'potstill-graph[digits]'"
        ) from error
    images, labels = load_digits(return_X_y=True)
    near = kneighbors_graph(images, n_neighbors=5).tocoo()
    edges = torch.from_numpy(np.stack([near.row, near.col])).long()
    return Data(
        x=torch.from_numpy(images / 16).float(),
        edge_index=to_undirected(edges, num_nodes=len(images)),
        y=torch.from_numpy(labels).long(),
    )


def _planetoid(raw: Path) -> Data:
    title = raw.parent.name
    expected = _PLANETOID.get(title)
    if expected is not None and sha256(raw) != expected:
        names = ", ".join(f"ind.{title.lower()}.{part}" for part in _PARTS)
        raise DataError(
            f"load: {raw} must hold exactly {names}, unmodified, got other files or bytes; they "
            "are pickles, so nothing else is opened: fetch them again"
        )
    for part in _PARTS[:-1]:
        check_pickle(raw / f"ind.{title.lower()}.{part}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old pickles name modules that numpy and scipy moved
        data = read_planetoid_data(str(raw), title.lower())
    return NormalizeFeatures()(data)


_PARTS = ("x", "tx", "allx", "y", "ty", "ally", "graph", "test.index")


def _npz(path: Path) -> Data:
    """The layout of Shchur et al. (gnn-benchmark); read without making it dense."""
    held = read_npz(path)
    x, adjacency = held["x"], held["adj"]
    for matrix in (x, adjacency):
        matrix.check_format(full_check=True)
    y = torch.from_numpy(held["labels"]).long()
    x.data[:] = x.data > 0  # as PyG does
    links = adjacency.tocoo()
    edges, _ = remove_self_loops(torch.from_numpy(np.stack([links.row, links.col])).long())
    edges = to_undirected(edges, num_nodes=len(y))
    return Data(x=as_features(x), edge_index=edges, y=y)


def _heterophilous(path: Path) -> Data:
    """The layout of Platonov et al., ICLR 2023: features, labels, undirected edges, ten splits."""
    parts = {key: torch.from_numpy(value) for key, value in read_npz(path).items()}
    count = len(parts["node_labels"])
    masks = {f"{m}_mask": parts[f"{m}_masks"].bool().T for m in ("train", "val", "test")}
    return Data(
        x=parts["node_features"].float(),
        edge_index=to_undirected(parts["edges"].long().T, num_nodes=count),
        y=parts["node_labels"].long(),
        **masks,
    )


def _as_given(data: Data, seed: int) -> Data:
    return data


def _five_a_class(data: Data, seed: int) -> Data:
    return per_class_split(data, train=5, val=500, test=None, seed=seed)


def _twenty_a_class(data: Data, seed: int) -> Data:
    return per_class_split(data, seed=seed)


def _public(title: str) -> _Source:
    return _Source(f"planetoid/{title}/raw", _planetoid, _as_given, ("Planetoid", title))


def _small(name: str) -> _Source:
    return _Source(f"heterophilous_small/{name}.npz", _heterophilous, _as_given)


def _large(name: str) -> _Source:
    kind = ("HeterophilousGraphDataset", name)
    return _Source(f"heterophilous/{name}/raw/{name}.npz", _heterophilous, _as_given, kind)


def _scholars(title: str, file: str) -> _Source:
    return _Source(f"coauthor/{title}/raw/{file}", _npz, _twenty_a_class, ("Coauthor", title))


def _shop(title: str, file: str) -> _Source:
    return _Source(f"amazon/{title}/raw/{file}", _npz, _twenty_a_class, ("Amazon", title))


DATASETS: dict[str, _Source] = {
    "digits": _Source("", _digits, _five_a_class),
    "cora": _public("Cora"),
    "citeseer": _public("CiteSeer"),
    "pubmed": _public("PubMed"),
    "photo": _shop("Photo", "amazon_electronics_photo.npz"),
    "computers": _shop("Computers", "amazon_electronics_computers.npz"),
    "cs": _scholars("CS", "ms_academic_cs.npz"),
    "physics": _scholars("Physics", "ms_academic_phy.npz"),
    "cpf-cora": _Source("cpf/cora.npz", _npz, cpf_split),
    "cpf-citeseer": _Source("cpf/citeseer.npz", _npz, cpf_split),
    "minesweeper": _large("minesweeper"),
    "tolokers": _large("tolokers"),
    "texas": _small("texas"),
    "cornell": _small("cornell"),
    "wisconsin": _small("wisconsin"),
    "actor": _small("actor"),
    "chameleon": _small("chameleon_filtered"),
}
"""The graphs that `load` knows."""
