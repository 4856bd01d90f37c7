"""Graphs of people's own: files, folders and objects of many kinds, as one checked `Data`."""

from __future__ import annotations

import csv
import gzip
import io
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data, HeteroData, storage
from torch_geometric.data import data as pyg

from potstill.core import ConfigError, DataError, ShapeError, nearest, reading
from potstill.graph.data.check import Kind, check_graph, check_logits
from potstill.graph.data.datasets import sparse_features
from potstill.graph.data.fields import from_fields
from potstill.graph.data.scaling import Scaling, fill_features, scale_features
from potstill.graph.data.splits import random_split, take_split
from potstill.graph.data.tensors import MOST, as_features, read_npz

__all__ = ["read_features", "read_graph"]


def read_graph(
    source: Any,
    *,
    target: str | None = None,
    split: int | None = None,
    seed: int = 0,
    task: Literal["classes", "labels", "values"] | None = None,
    metric: Literal["accuracy", "f1", "roc_auc", "mae"] | None = None,
    directed: bool = False,
    scaling: Scaling = "auto",
    fill: bool = False,
    sparse: bool | None = None,
    logits: Any = None,
    kind: Kind = "logits",
) -> Data:
    """A graph of your own, checked, with masks.

    Files and folders: ``.npz`` of arrays (also the layouts of gnn-benchmark and of Platonov et
    al.), ``.pt`` of a PyG `Data`, `HeteroData` or dictionary (no code in it is run), a folder with
    ``edges.csv`` and ``features.csv``, a folder in OGB's layout. Objects: PyG's, dictionaries of
    arrays, NetworkX and DGL graphs, and OGB's pair of graph and labels.

    ``features.csv`` has a row for each node: ``id`` (else the rows are numbered from 0), ``label``
    (a word, a number, several joined by ``|``, or nothing where it is unknown), ``split`` (train,
    val or test), and features; ``edges.csv`` has ``source``, ``target`` and perhaps ``weight``.
    Labels, masks and names of classes are read in all their usual forms. Labelled nodes are split
    60 : 20 : 20 where there are no masks.

    Args:
        source: A path, or an object.
        target: Type of the nodes that are classified, in heterogeneous graphs.
        split: Which of several stored splits; ``seed % number`` by default.
        seed: Draws a split where there is none.
        task: Kind of prediction: one class a node, several labels, or values; what the labels look
            like by default.
        metric: Score; by the task, and ROC-AUC or F1 where most nodes have one class.
        directed: Keep edges that have one direction; else the other one is added.
        scaling: ``"standard"`` takes the mean off each feature and divides by its deviation,
            ``"row"`` divides each row by its sum, ``"none"``; ``"auto"`` is the first where
            features are dense and leave [-1, 1].
        fill: Put the mean of the feature in the place of NaN, instead of refusing it.
        sparse: Store features as CSR; by default where fewer than one in ten is not zero.
        logits: Logits of a teacher for all nodes, as `check_logits` takes it: of a graph without
            labels these become what is predicted, and scores say how well they are met.
        kind: Kind of the numbers in ``logits``; embeddings are values.

    Returns:
        The graph, with ``task``, ``metric`` and, where they are known, ``class_names``; what
        serving needs of ``scaling`` and ``fill`` is there too, for `MLPStudent.for_raw`.

    Raises:
        DataError: The file is missing or cannot be read; the message names it.
        ShapeError: Parts that do not fit together.
        ConfigError: An option that does not fit the graph.

    Example:
        >>> edges = torch.tensor([[0, 1, 2, 3, 4], [1, 2, 3, 4, 5]])
        >>> data = read_graph({"x": torch.eye(6), "edges": edges, "labels": list("abbaab")})
        >>> data.num_edges, data.class_names, data.metric
        (10, ['a', 'b'], 'accuracy')
    """
    named = isinstance(source, str | os.PathLike)
    name = "read_graph" if not named else str(source)

    def made() -> Data:
        fields = _opened(Path(source), target) if named else _of_object(source, target)
        data = from_fields(fields, task)
        if "y" not in data:
            data = _taught(data, logits, kind, task)
        if "train_mask" in data and data.train_mask.ndim == 2:
            index = seed % data.train_mask.shape[1] if split is None else split
            data = take_split(data, index)
        elif split not in (None, 0):
            raise ConfigError(f"split must be 0 for a graph with one split, got {split}")
        data = random_split(data, seed=seed)
        if fill:
            data = fill_features(data)
        if metric is not None:
            data.metric = metric
        checked = check_graph(data, to_undirected=not directed, name=name)
        return sparse_features(scale_features(checked, scaling), sparse)

    if not named:
        return made()
    with reading(source, "a graph"):
        return made()


def _taught(data: Data, logits: Any, kind: Kind, task: str | None) -> Data:
    """A graph without labels, with what its teacher says in their place."""
    if logits is None:
        raise DataError("labels must be there, got none; add them, or pass a teacher's logits")
    z = check_logits(logits, len(data.x), kind=kind)
    data.task = "values" if kind == "embeddings" else task or "classes"
    data.y = {"classes": z.argmax(1), "labels": (z > 0).float(), "values": z}[data.task]
    data.num_classes, data.label_free = z.shape[1], True
    return data


def read_features(path: str | Path, width: int | None = None) -> Any:
    """Features [N F] of nodes alone: ``.npy`` (mapped), ``.npz`` of scipy, ``.csv``.

    Args:
        path: The file; columns of a CSV that are no features (id, label, split) are left out.
        width: F where it is known.

    Raises:
        DataError: The file is missing, or is something else.
        ShapeError: Another number of features.
    """
    import scipy.sparse as sp

    path = Path(path)
    if path.suffix not in (".npy", ".npz", ".csv", ".tsv") or not path.is_file():
        raise ConfigError(
            f"features must be an existing .npy, .npz or .csv file, got {path}; numpy.save and "
            "scipy.sparse.save_npz write them"
        )
    with reading(path, "features saved by numpy.save, scipy.sparse.save_npz or as a table"):
        if path.suffix == ".npz":
            x: Any = sp.load_npz(path)
        elif path.suffix == ".npy":
            x = np.lib.format.open_memmap(path, "c")
        else:
            x = _Table(path).numbers()[0]
        as_features(x[:1])
        if width is not None and x.shape[1] != width:
            raise ShapeError(f"features must be [N, {width}], got {list(x.shape)}")
    return x


# --- files --------------------------------------------------------------------------------------


def _opened(path: Path, target: str | None) -> Mapping[str, Any]:
    if not path.exists():
        raise DataError(f"{path} must be a file or folder, got nothing there")
    if path.is_dir():
        for edges in ("edges.csv", "edges.tsv", "edges.csv.gz"):
            if (path / edges).is_file():
                return _tables(path / edges)
        if (path / "raw" / "edge.csv.gz").is_file():
            return _ogb(path)
        stored = sorted((path / "processed").glob("*data*.pt"))
        if stored:
            return _torch(stored[0], target)
        raise DataError(
            f"{path} must hold edges.csv and features.csv, raw/edge.csv.gz (OGB) or "
            f"processed/data.pt (PyG), got {', '.join(sorted(p.name for p in path.iterdir())[:9])}"
        )
    if path.suffix in (".csv", ".tsv", ".gz"):
        return _tables(path)
    if path.suffix == ".npz":
        return read_npz(path)
    if path.suffix in (".pt", ".pth"):
        return _torch(path, target)
    raise DataError(f"{path} must end in .npz, .pt or .csv, or be a folder, got {path.suffix!r}")


_SAFE = [
    Data, HeteroData, pyg.DataEdgeAttr, pyg.DataTensorAttr, storage.BaseStorage,
    storage.GlobalStorage, storage.NodeStorage, storage.EdgeStorage,
]  # fmt: skip
"""What a ``.pt`` may be made of, beside tensors: containers of PyG."""


def _torch(path: Path, target: str | None) -> Mapping[str, Any]:
    with torch.serialization.safe_globals(_SAFE):
        found = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(found, tuple) and found:  # a PyG data set: data, slices, class
        slices = found[1] if len(found) > 1 else None
        sizes = [len(ends) - 1 for ends in (slices or {}).values() if isinstance(ends, Tensor)]
        if sizes and max(sizes) > 1:
            raise DataError(f"{path} must hold one graph, got {max(sizes)}; save one of them")
        found = found[0]
    return _of_object(found, target)


def _ogb(path: Path) -> dict[str, Any]:
    """OGB's layout: ``raw/*.csv.gz`` without headers, and ``split/NAME/*.csv.gz``."""

    def table(file: Path, kind: str) -> Any:
        text = io.StringIO(_unpacked(file).decode())
        return np.loadtxt(text, dtype=kind, delimiter=",", ndmin=2)

    raw = path / "raw"
    fields = {"edge_index": table(raw / "edge.csv.gz", "int64").T}
    for name, key, kind in (("node-feat", "x", "float32"), ("node-label", "y", "float64"),
                            ("edge-weight", "edge_weight", "float32")):  # fmt: skip
        if (raw / f"{name}.csv.gz").is_file():
            fields[key] = table(raw / f"{name}.csv.gz", kind)
    for part in ("train", "valid", "test"):
        for file in sorted(path.glob(f"split/*/{part}.csv.gz"))[:1]:
            fields[f"{part}_idx"] = table(file, "int64")[:, 0]
    return fields


class _Table:
    """A table with or without a header, by column."""

    def __init__(self, path: Path) -> None:
        self.path = path
        rows = list(_lines(path))
        if not rows:
            raise DataError(f"{path} must hold rows, got none")
        header = any(not _number(cell) for cell in rows[0] if cell)
        width = len(rows[0])
        self.names = [cell.strip().lower() for cell in rows[0]] if header else [""] * width
        self.first = 2 if header else 1  # line of the first row
        self.rows = rows[header:]
        for line, row in enumerate(self.rows, self.first):
            if len(row) != width:
                raise DataError(f"{path}: line {line} must have {width} cells, got {len(row)}")

    def column(self, *names: str) -> list[str] | None:
        """The cells under one of these names."""
        for place, name in enumerate(self.names):
            if name in names:
                return [row[place].strip() for row in self.rows]
        return None

    def numbers(self) -> tuple[Any, list[str]]:
        """The columns that are features [N F], and their names."""
        other = {*_ID, *_LABEL, *_SPLIT, "train_mask", "val_mask", "test_mask"}
        places = [
            i for i, n in enumerate(self.names) if n not in other and not n.startswith("label_")
        ]
        if not places:
            raise DataError(f"{self.path} must have columns of features, got {self.names}")
        x = np.empty((len(self.rows), len(places)), np.float32)
        for row, cells in enumerate(self.rows):
            for k, place in enumerate(places):
                try:
                    x[row, k] = cells[place] or "nan"
                except ValueError:
                    known = nearest(self.names[place], other)
                    raise DataError(
                        f"{self.path}: line {row + self.first} must have a number in column "
                        f"{self.names[place] or place + 1}, got {cells[place]!r}; {known}"
                    ) from None
        return x, [self.names[place] for place in places]


_ID = ("id", "node", "node_id", "name")
_LABEL = ("label", "y", "class", "target")
_SPLIT = ("split", "set", "fold")


def _lines(path: Path) -> Iterator[list[str]]:
    text = _unpacked(path).decode("utf-8-sig")
    first = text.partition("\n")[0]
    delimiter = max(",;\t ", key=first.count) if first.strip() else ","
    for row in csv.reader(io.StringIO(text), delimiter=delimiter):
        if row and not row[0].startswith("#"):
            yield row


def _unpacked(path: Path) -> bytes:
    """The content of a file, of a ``.gz`` up to a limit."""
    if path.suffix != ".gz":
        return path.read_bytes()
    parts, size = [], 0
    with gzip.open(path, "rb") as file:
        while part := file.read(2**20):
            parts.append(part)
            if (size := size + len(part)) > MOST:
                raise DataError(f"{path} must hold at most {MOST >> 30} GiB, got more")
    return b"".join(parts)


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _tables(edges: Path) -> dict[str, Any]:
    """``edges.csv``, ``features.csv`` and perhaps ``labels.csv`` beside each other."""
    end = edges.name.partition(".")[2]
    nodes = edges.with_name(f"features.{end}")
    if not nodes.is_file():
        nodes = edges.with_name(f"nodes.{end}")
    if not nodes.is_file():
        raise DataError(f"{edges} must have features.{end} beside it, got none")
    table = _Table(nodes)
    x, _ = table.numbers()
    ids = table.column(*_ID) or [str(i) for i in range(len(x))]
    place = {name: i for i, name in enumerate(ids)}
    if len(place) < len(ids):
        raise DataError(f"{nodes}: id must be different in each row, got {len(place)} ids")
    fields: dict[str, Any] = {"x": x, **_roles(table)}
    if (more := edges.with_name(f"labels.{end}")).is_file():
        labels = _Table(more)
        order = _places(labels, labels.column(*_ID) or ids, place)
        for key, values in _roles(labels).items():
            full = np.full((len(x), *values.shape[1:]), _empty(values), values.dtype)
            full[order] = values
            fields[key] = full
    links = _Table(edges)
    ends = [
        links.column(*names) or [row[k].strip() for row in links.rows]
        for k, names in enumerate((("source", "src", "from"), ("target", "dst", "to")))
    ]
    fields["edge_index"] = np.array([_places(links, cells, place) for cells in ends], np.int64)
    weight = links.column("weight", "edge_weight", "w", "value")
    if weight is not None:
        fields["edge_weight"] = np.array([float(cell) for cell in weight], np.float32)
    return fields


def _places(table: _Table, cells: list[str], place: Mapping[str, int]) -> list[int]:
    found = []
    for line, cell in enumerate(cells, table.first):
        if cell not in place:
            raise DataError(
                f"{table.path}: line {line} must name a node of the features, got {cell!r}; "
                "add its row, or drop the line"
            )
        found.append(place[cell])
    return found


def _roles(table: _Table) -> dict[str, Any]:
    """Labels and masks of a table of nodes."""
    fields: dict[str, Any] = {}
    several = [name for name in table.names if name.startswith("label_")]
    if several:
        columns = [[float(c or "nan") for c in table.column(name) or ()] for name in several]
        fields["y"] = np.array(columns).T
        fields["class_names"] = np.array([name.removeprefix("label_") for name in several])
    elif (label := table.column(*_LABEL)) is not None:
        numbers = all(_number(cell) for cell in label if cell)
        fields["y"] = np.array([float(c or "nan") for c in label]) if numbers else np.array(label)
    if (split := table.column(*_SPLIT)) is not None:
        words = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
        known = {word for many in words.values() for word in many} | {""}
        if strange := sorted(set(split) - known):
            raise DataError(
                f"{table.path}: split must be train, val, test or empty, got {strange[0]!r}"
            )
        for part, names in words.items():
            fields[f"{part}_mask"] = np.array([cell in names for cell in split])
    for part in ("train", "val", "test"):
        if (mask := table.column(f"{part}_mask")) is not None:
            fields[f"{part}_mask"] = np.array([cell.lower() in ("1", "true") for cell in mask])
    return fields


def _empty(values: Any) -> Any:
    return {"f": np.nan, "b": False}.get(values.dtype.kind, "")


# --- objects ------------------------------------------------------------------------------------


def _of_object(found: Any, target: str | None) -> Mapping[str, Any]:
    if isinstance(found, HeteroData) or (hasattr(found, "ntypes") and len(found.ntypes) > 1):
        return _heterogeneous(found, target)
    if isinstance(found, tuple) and len(found) == 2 and isinstance(found[0], Mapping):
        return {**found[0], "y": found[1]}  # OGB: graph and labels
    if hasattr(found, "ndata") and hasattr(found, "edges"):  # DGL
        return {**found.ndata, **_weights(found.edata), "edge_index": tuple(found.edges())}
    if hasattr(found, "adjacency") and hasattr(found, "nodes"):  # NetworkX
        return _networkx(found)
    if hasattr(found, "to_dict"):
        found = found.to_dict()
    if not isinstance(found, Mapping):
        raise DataError(
            f"a graph must be a PyG, NetworkX or DGL graph or a dictionary, got "
            f"{type(found).__name__}"
        )
    if "ndata" in found:
        rest = {k: v for k, v in found.items() if k not in ("ndata", "edata")}
        return {**rest, **found["ndata"], **_weights(found.get("edata", {}))}
    return found


def _weights(edata: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in edata.items() if k in ("weight", "edge_weight", "w", "edge_attr")}


def _networkx(graph: Any) -> dict[str, Any]:
    names = list(graph.nodes)
    place = {name: i for i, name in enumerate(names)}
    links = list(graph.edges(data=True))
    ends = np.array([[place[a], place[b]] for a, b, _ in links], np.int64).reshape(-1, 2).T
    if not graph.is_directed():
        ends = np.concatenate([ends, ends[::-1]], 1)
    fields: dict[str, Any] = {"edge_index": ends}
    keys = dict.fromkeys(key for _, about in graph.nodes(data=True) for key in about)
    for key in keys:
        values = [graph.nodes[name].get(key) for name in names]
        if any(value is None for value in values):
            raise DataError(f"{key} must be there for all nodes, got none for some")
        fields[key] = np.array([np.asarray(value) for value in values])
    weights = [about.get("weight") for _, _, about in links]
    if links and all(weight is not None for weight in weights):
        both = weights if graph.is_directed() else weights * 2
        fields["edge_weight"] = np.array(both, np.float32)
    return fields


def _heterogeneous(found: Any, target: str | None) -> dict[str, Any]:
    """The nodes of one type, and the edges between them of all types."""
    kinds = list(found.node_types)
    if target is None:
        labelled = [kind for kind in kinds if "y" in found[kind]]
        target = labelled[0] if len(labelled) == 1 else None
    if target not in kinds:
        raise ConfigError(
            f"target must be one of the types of nodes, {', '.join(kinds)}, got {target!r}; it is "
            "the type that has labels"
        )
    fields = dict(found[target])
    own = [found[kind].edge_index for kind in found.edge_types if kind[0] == kind[2] == target]
    if not own:
        raise DataError(
            f"{target} nodes must have edges between each other, got edges of the types "
            f"{found.edge_types}; torch_geometric.transforms.AddMetaPaths makes some"
        )
    others = [kind for kind in found.edge_types if not kind[0] == kind[2] == target]
    if others:
        warnings.warn(f"edges of the types {others} are not used", stacklevel=4)
    fields["edge_index"] = torch.cat(own, 1)
    return fields
