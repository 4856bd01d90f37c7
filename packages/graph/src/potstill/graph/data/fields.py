"""Fields of a graph under the names and in the forms that people write them, made into a `Data`."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor
from torch_geometric.data import Data

from potstill.core import ConfigError, DataError
from potstill.graph.data.tensors import as_features, is_sparse

__all__ = ["from_fields"]

_X = ("x", "features", "node_features", "node_feat", "feat", "feature", "attr", "attr_matrix")
_Y = ("y", "labels", "node_labels", "label", "node_label", "target")
_EDGES = ("edge_index", "edges", "edge_list")
_MATRIX = ("adj_t", "adj", "adjacency", "adj_matrix")
_WEIGHT = ("edge_weight", "weight", "w", "edge_attr")
_NAMES = ("class_names", "classes", "idx_to_class")
_PARTS = {"train": ("train",), "val": ("val", "valid", "validation", "dev"), "test": ("test",)}


def from_fields(fields: Mapping[str, Any], task: str | None = None) -> Data:
    """One graph of named arrays; what is read in another way than it stands there is warned about.

    Args:
        fields: Features, edges (or an adjacency matrix, dense or sparse), labels, masks or lists of
            indices, weights and names of classes under any of their usual names.
        task: ``"classes"``, ``"labels"`` or ``"values"``; what the labels look like when None.

    Raises:
        DataError: No features or no edges, or what cannot be read.
        ConfigError: An unknown task.
    """
    if task not in (None, "classes", "labels", "values"):
        raise ConfigError(f"task must be classes, labels or values, got {task!r}")
    x = _first(fields, _X)
    if x is None:
        raise DataError(
            f"features must be called {', '.join(_X)}, got {', '.join(map(str, fields))}; where "
            "there are none, walk_positions makes some of the edges"
        )
    x = as_features(x.astype(np.float32) if isinstance(x, np.ndarray) else x)
    count = x.shape[0]
    edges, weight = _edges(fields, count)
    data = Data(x=x, edge_index=edges)
    if weight is not None:
        data.edge_weight = weight
    if (y := _first(fields, _Y)) is not None:
        names = _first(fields, _NAMES)
        data.y, data.task, found = _labels(y, count, task)
        if names is not None and found is None and data.task == "classes":
            found = [str(name) for name in (names.values() if isinstance(names, dict) else names)]
        if found:
            data.class_names = found
    for part, mask in _masks(fields, count).items():
        data[f"{part}_mask"] = mask
    return data


def _first(fields: Mapping[str, Any], names: Iterable[str]) -> Any:
    return next((fields[name] for name in names if fields.get(name) is not None), None)


def _tensor(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    return torch.from_numpy(np.ascontiguousarray(np.asarray(value)))


# --- edges --------------------------------------------------------------------------------------


def _edges(fields: Mapping[str, Any], count: int) -> tuple[Tensor, Tensor | None]:
    found = _first(fields, _EDGES)
    if found is None:
        for name in _MATRIX:
            if fields.get(name) is not None:
                return _of_matrix(fields[name], count, turned=name == "adj_t")
        raise DataError(f"edges must be called {', '.join((*_EDGES, *_MATRIX))}, got none of these")
    if isinstance(found, tuple | list) and len(found) == 2:
        found = torch.stack([_tensor(part).flatten() for part in found])
    edges = _tensor(found)
    if edges.ndim == 2 and edges.shape[0] != 2 and edges.shape[1] == 2:
        edges = edges.T.contiguous()
    weight = _first(fields, _WEIGHT)
    if weight is not None:
        weight = _tensor(weight)
        if weight.numel() != edges.shape[-1]:
            warnings.warn(
                f"features of edges {list(weight.shape)} are not used, since a weight is one "
                f"number for each of the {edges.shape[-1]} edges",
                stacklevel=4,
            )
            weight = None
    return edges, None if weight is None else weight.reshape(-1).float()


def _of_matrix(matrix: Any, count: int, turned: bool) -> tuple[Tensor, Tensor | None]:
    """Edges and weights of an adjacency matrix; ``adj_t`` has the targets as rows."""
    if hasattr(matrix, "coo"):  # torch_sparse.SparseTensor
        row, column, value = matrix.coo()
    elif sp.issparse(matrix):
        if matrix.shape != (count, count):
            raise DataError(f"adjacency must be [{count}, {count}], got {list(matrix.shape)}")
        links = matrix.tocoo()
        row, column, value = (_tensor(part) for part in (links.row, links.col, links.data))
    else:
        dense = _tensor(matrix)
        if dense.layout == torch.sparse_csc or is_sparse(dense):
            dense = dense.to_sparse_coo()
        if dense.layout == torch.strided:
            dense = dense.to_sparse()
        links = dense.coalesce()
        (row, column), value = links.indices(), links.values()
    edges = torch.stack([column, row] if turned else [row, column]).long()
    plain = value is None or bool((value == 1).all())
    return edges, None if plain or value is None else value.float()


# --- labels -------------------------------------------------------------------------------------


def _labels(y: Any, count: int, task: str | None) -> tuple[Tensor, str, list[str] | None]:
    """Labels, what they are, and the names of the classes where they were not 0, 1, 2, ..."""
    if sp.issparse(y):
        y = y.toarray()
    if not isinstance(y, Tensor) and np.asarray(y).dtype.kind in "USO":
        return _named(np.asarray(y).reshape(-1).astype(str), task)
    y = _tensor(y)
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim == 0 or y.ndim > 2 or len(y) != count:
        raise DataError(f"labels must be one for each of the {count} nodes, got {list(y.shape)}")
    known = y[~y.isnan()] if y.is_floating_point() else y
    whole = not known.is_floating_point() or bool((known == known.round()).all())
    if y.ndim == 2:
        binary = bool(((known == 0) | (known == 1)).all())
        if task in (None, "classes") and binary and bool((y.sum(1) == 1).all()):
            warnings.warn("one-hot labels are read as classes", stacklevel=4)
            return y.argmax(1), "classes", None
        if task == "classes":
            raise DataError(f"labels must be one class a node, got {list(y.shape)}")
        return y.float(), "labels" if binary and task != "values" else "values", None
    if task == "labels":
        raise DataError(f"labels must be [{count}, K] of 0 and 1, got {list(y.shape)}")
    if task == "values" or (task is None and not whole):
        return y.float()[:, None], "values", None
    if not whole:
        raise DataError(f"labels must be whole numbers, got {float(known[0])}; pass task='values'")
    y = y.nan_to_num(-1).long() if y.is_floating_point() else y.long()
    there = y[y >= 0].unique()
    if torch.equal(there, torch.arange(len(there))):
        return y.clamp_min(-1), "classes", None
    place = torch.searchsorted(there, y.clamp_min(int(there[0])))
    return place.where(y >= 0, -1), "classes", [str(int(value)) for value in there]


def _named(words: Any, task: str | None) -> tuple[Tensor, str, list[str] | None]:
    """Labels that are words; empty ones are unknown, ``a|b`` is several."""
    if task == "values":
        raise DataError(f"labels must be numbers for task='values', got {words[0]!r}")
    rows = [[one for one in word.split("|") if one] for word in words.tolist()]
    if task == "labels" or (task is None and any(len(row) > 1 for row in rows)):
        known = sorted({one for row in rows for one in row})
        y = torch.zeros(len(rows), len(known))
        for node, row in enumerate(rows):
            y[node, [known.index(one) for one in row]] = 1
        return y, "labels", known
    known = sorted({word for word in words.tolist() if word})
    place = {"": -1, **{name: i for i, name in enumerate(known)}}
    return torch.tensor([place[word] for word in words.tolist()]), "classes", known


# --- masks --------------------------------------------------------------------------------------


def _masks(fields: Mapping[str, Any], count: int) -> dict[str, Tensor]:
    """Masks [N] or [N S] of the parts that are named."""
    nested: Mapping[str, Any] = next(
        (fields[k] for k in ("split_idx", "split") if isinstance(fields.get(k), dict)), {}
    )
    found = {}
    for part, names in _PARTS.items():
        forms = ("{}_mask", "{}_masks", "{}_idx", "{}_index", "idx_{}", "{}_nodes")
        value = _first(fields, [form.format(name) for name in names for form in forms])
        value = _first(nested, names) if value is None else value
        if value is not None:
            found[part] = _mask(part, _tensor(value), count)
    return found


def _mask(part: str, value: Tensor, count: int) -> Tensor:
    if value.ndim == 2 and value.shape[0] != count and value.shape[1] == count:
        value = value.T
    if value.ndim in (1, 2) and len(value) == count and bool(((value == 0) | (value == 1)).all()):
        return value.bool().contiguous()
    if value.ndim != 1 or value.is_floating_point():
        raise DataError(
            f"{part} must be a mask [{count}], masks [{count}, S] or a list of nodes, got "
            f"{list(value.shape)} {value.dtype}"
        )
    if value.numel() and not 0 <= int(value.min()) <= int(value.max()) < count:
        raise DataError(f"{part} must list nodes in [0, {count}), got {value.aminmax()}")
    mask = torch.zeros(count, dtype=torch.bool)
    mask[value.long()] = True
    return mask
