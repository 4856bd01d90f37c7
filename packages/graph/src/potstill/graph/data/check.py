"""Graphs are checked once, at the boundary: every fault is named together with its fix."""

from __future__ import annotations

import logging
import warnings
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.utils import coalesce, contains_isolated_nodes, remove_self_loops
from torch_geometric.utils import to_undirected as _to_undirected

from potstill.core import ConfigError, DataError, ShapeError, reading
from potstill.graph.data.tensors import as_features, is_sparse

__all__ = ["ABOUT", "check_edges", "check_ends", "check_graph", "check_logits", "is_symmetric"]

log = logging.getLogger(__name__)
Kind = Literal["logits", "probabilities", "log_probabilities", "embeddings"]
ABOUT = (
    "num_classes", "checked", "task", "metric", "class_names", "label_free", "rows_scaled",
    "x_fill", "x_shift", "x_scale", "y_shift", "y_scale",
)  # fmt: skip
"""What a part of a graph shares with the whole."""
METRICS = {
    "classes": ("accuracy", "f1", "roc_auc"), "labels": ("f1", "roc_auc"), "values": ("mae",)
}  # fmt: skip
"""Scores by task; without a choice the first, or for classes ROC-AUC or F1 where one is most."""
_MOST = 0.75  # share of a class from which accuracy says little
_MASKS = ("train_mask", "val_mask", "test_mask")


def check_graph(
    data: Data, *, to_undirected: bool = False, strict: bool = False, name: str = "check_graph"
) -> Data:
    """Check a graph for node classification and put it into the form that the package uses.

    The result has float32 features (dense or CSR), edges without duplicates and self-loops, three
    masks that do not overlap, ``num_classes``, ``task`` and ``metric``; ``checked`` marks it. What
    was changed is warned about, as is what cannot be used.

    Args:
        data: ``x`` [N F], ``edge_index`` [2 E], ``train_mask``, ``val_mask``, ``test_mask`` [N]
            bool, and ``y``: one class a node [N] int64, several labels [N K] of 0 and 1, or values
            [N K] float (``task="values"`` where they are whole); optional ``edge_weight`` [E], also
            as ``weight`` or ``edge_attr`` [E] or [E 1].
        to_undirected: Add the missing direction of edges that have only one.
        strict: Refuse a graph without edges instead of warning.
        name: The caller, for messages.

    Returns:
        A shallow copy; tensors that were right are shared.

    Raises:
        ShapeError: Shapes or types that do not fit together.
        DataError: Values that cannot be: NaN, labels out of range, edges to nodes that are not
            there, masks that are empty or overlap.

    Example:
        >>> one = torch.eye(3, dtype=torch.bool)
        >>> data = Data(x=torch.eye(3), edge_index=torch.tensor([[0, 1], [1, 0]]),
        ...             y=torch.tensor([0, 1, 0]), train_mask=one[0] | one[1], val_mask=one[1],
        ...             test_mask=one[2])
        >>> check_graph(data)
        Traceback (most recent call last):
        ...
        potstill.core.errors.DataError: check_graph: train_mask and val_mask must not overlap, ...
    """
    for field in ("x", "edge_index", "y", *_MASKS):
        if data.get(field) is None:
            raise DataError(f"{name}: data.{field} must be there, got None; set it before training")
    x = as_features(data.x, "x")
    count = x.shape[0]
    _finite(name, "x", x)
    edge_index, weight = check_edges(
        data.edge_index,
        count,
        _weights_of(data, name),
        to_undirected=to_undirected,
        strict=strict,
        name=name,
    )
    masks = _check_masks(name, data, count)
    task = _task(name, data, count)
    y, classes = data.y, data.get("num_classes")
    if task == "classes":
        classes = _check_labels(name, y, masks, count, classes)
    else:
        y, classes = _check_values(name, y, masks, task), data.y.shape[1]
    checked = Data(x=x, edge_index=edge_index, y=y, **masks)
    for field in ABOUT:
        if data.get(field) is not None:
            checked[field] = data[field]
    checked.num_classes, checked.checked, checked.task = classes, True, task
    checked.metric = _metric(name, data.get("metric"), task, y, masks)
    if weight is not None:
        checked.edge_weight = weight
    return checked


def check_edges(
    edge_index: Tensor,
    num_nodes: int,
    edge_weight: Tensor | None = None,
    *,
    to_undirected: bool = False,
    strict: bool = False,
    name: str = "check_edges",
) -> tuple[Tensor, Tensor | None]:
    """Check an edge list; remove self-loops and duplicates (weights of duplicates are added).

    Args:
        edge_index: [2 E] integers, source and target of each edge.
        num_nodes: N; every entry is in [0, N).
        edge_weight: [E], finite and >= 0; None for an unweighted graph.
        to_undirected: Add the missing direction of edges.
        strict: Refuse a graph without edges instead of warning.
        name: The caller, for messages.

    Returns:
        Edges sorted by source, then target, and their weights.

    Raises:
        ShapeError: Not [2 E] integers, or a weight of another length.
        DataError: An index out of range; a weight that is negative or not finite; no edges, where
            ``strict``.
    """
    edge_index = check_ends(edge_index, num_nodes, name)
    if edge_weight is not None:
        _check_weight(name, edge_weight, edge_index.shape[1])
    given = edge_index.shape[1]
    edge_index, edge_weight = remove_self_loops(edge_index, edge_weight)
    if edge_index.shape[1] < given:
        log.info("%s: %d self-loops removed", name, given - edge_index.shape[1])
    found = edge_index.shape[1]
    edge_index, edge_weight = _coalesced(edge_index, edge_weight, num_nodes)
    if edge_index.shape[1] < found:
        warnings.warn(
            f"{name}: {found - edge_index.shape[1]} duplicates in edge_index were merged",
            stacklevel=3,
        )
    if to_undirected:
        edge_index, edge_weight = _both_directions(edge_index, edge_weight, num_nodes)
    if not edge_index.numel():
        message = f"{name}: edge_index has no edges, so there is nothing high-frequency to match"
        if strict:
            raise DataError(f"{message}; link the nodes, or pass strict=False")
        warnings.warn(message, stacklevel=3)
    elif contains_isolated_nodes(edge_index, num_nodes):
        linked = torch.unique(edge_index).numel()
        log.info("%s: %d of %d nodes are isolated", name, num_nodes - linked, num_nodes)
    return edge_index, edge_weight


def check_ends(edge_index: Tensor, num_nodes: int, name: str) -> Tensor:
    """The edges as int64 [2 E], all ends in [0, N): kernels read memory at these places.

    Args:
        edge_index: [2 E] of any integer type.
        num_nodes: N.
        name: The caller, for messages.

    Raises:
        ShapeError: Not [2 E] integers.
        DataError: An index out of range.
    """
    kind = edge_index.dtype
    whole = not (kind.is_floating_point or kind.is_complex or kind == torch.bool)
    if edge_index.ndim != 2 or edge_index.shape[0] != 2 or not whole:
        raise ShapeError(
            f"{name}: edge_index must be [2, E] int64, got {list(edge_index.shape)} "
            f"{edge_index.dtype}; pass edge_index.long(), transposed if it is [E, 2]"
        )
    if edge_index.numel():
        low, high = (int(value) for value in edge_index.aminmax())
        if low < 0 or high >= num_nodes:
            raise DataError(
                f"{name}: edge_index must be in [0, {num_nodes}), got {low} to {high}; the graph "
                f"has {num_nodes} nodes (rows of x): relabel the nodes or add the missing rows"
            )
    return edge_index.long()


def is_symmetric(edge_index: Tensor, num_nodes: int, edge_weight: Tensor | None = None) -> bool:
    """Whether every edge is there in both directions, with equal weights."""
    source, target = edge_index
    forth, back = source * num_nodes + target, target * num_nodes + source
    forth, order = forth.sort()
    back, turned = back.sort()
    if not torch.equal(forth, back):
        return False
    return edge_weight is None or torch.equal(edge_weight[order], edge_weight[turned])


def check_logits(
    logits: Any, num_nodes: int, num_classes: int | None = None, kind: Kind = "logits"
) -> Tensor:
    """Check what a teacher says about all nodes, given as a tensor, array, memory map or ``.npy``.

    Args:
        logits: [N C]; a path ends in ``.npy`` and is memory-mapped.
        num_nodes: N.
        num_classes: C where it is known.
        kind: Kind of numbers; probabilities are turned into log-probabilities, which serve
            as logits. Embeddings and values are taken as they are.

    Returns:
        [N C] float32.

    Raises:
        ShapeError: Another shape, with both shapes in the message.
        DataError: NaN or infinite values, or negative probabilities.
        ConfigError: An unknown kind.
    """
    if kind not in ("logits", "probabilities", "log_probabilities", "embeddings"):
        raise ConfigError(
            "check_logits: kind must be logits, probabilities or log_probabilities, or embeddings; "
            f"got {kind!r}"
        )
    if not isinstance(logits, Tensor | np.ndarray):
        # A map is only ever read; copy-on-write lets torch share it without a warning.
        with reading(logits, "logits saved by numpy.save"):
            held = torch.from_numpy(np.lib.format.open_memmap(logits, "c"))
            return check_logits(held, num_nodes, num_classes, kind)
    z = torch.as_tensor(logits).detach()
    z = z if z.dtype == torch.float32 else z.float()
    expected = [num_nodes, "C" if num_classes is None else num_classes]
    if z.ndim != 2 or len(z) != num_nodes or num_classes not in (None, z.shape[1]):
        raise ShapeError(
            f"check_logits: teacher logits must be {expected} (nodes, classes), got "
            f"{list(z.shape)}; was the teacher run on this graph and these labels?"
        )
    _finite("check_logits", "teacher logits", z)
    if kind == "probabilities":
        if bool((z < 0).any()):
            raise DataError(
                f"check_logits: probabilities must be >= 0, got {float(z.min()):.6g}; "
                "pass kind='logits' or 'log_probabilities'"
            )
        return z.clamp_min(torch.finfo(z.dtype).tiny).log()
    sums = z[:1000].sum(1)
    if kind == "logits" and bool((z[:1000] >= 0).all()) and bool(((sums - 1).abs() < 1e-3).all()):
        warnings.warn(
            "check_logits: the rows sum to 1, so these look like probabilities; pass "
            "kind='probabilities'",
            stacklevel=2,
        )
    return z


def _weights_of(data: Data, name: str) -> Tensor | None:
    """Weights of the edges under any of the names that people give them."""
    edges = data.edge_index.shape[1]
    for field in ("edge_weight", "weight", "edge_attr"):
        found = data.get(field)
        if found is None:
            continue
        if field == "edge_weight":
            return found
        if isinstance(found, Tensor) and found.shape in ((edges,), (edges, 1)):
            warnings.warn(f"{name}: {field} is taken as edge_weight", stacklevel=3)
            return found.reshape(edges).float()
        got = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        warnings.warn(
            f"{name}: {field} is not used, since weights are one number for each of the {edges} "
            f"edges, got {got}",
            stacklevel=3,
        )
    return None


def _coalesced(edge_index: Tensor, weight: Tensor | None, count: int) -> tuple[Tensor, Any]:
    if weight is None:
        return coalesce(edge_index, num_nodes=count), None
    return coalesce(edge_index, weight, num_nodes=count, reduce="sum")


def _both_directions(edge_index: Tensor, weight: Tensor | None, count: int) -> tuple[Tensor, Any]:
    if weight is None:
        return _to_undirected(edge_index, num_nodes=count), None
    return _to_undirected(edge_index, weight, num_nodes=count, reduce="max")


def _check_weight(name: str, weight: Tensor, edges: int) -> None:
    if weight.shape != (edges,) or not weight.is_floating_point():
        raise ShapeError(
            f"{name}: edge_weight must be [{edges}] float, one for each edge, got "
            f"{list(weight.shape)} {weight.dtype}"
        )
    bad = (~(weight.isfinite() & (weight >= 0))).nonzero().flatten()
    if len(bad):
        first = int(bad[0])
        raise DataError(
            f"{name}: edge_weight must be finite and >= 0, got {float(weight[first])} at edge "
            f"{first}; clip or drop these edges"
        )


def _check_masks(name: str, data: Data, count: int) -> dict[str, Tensor]:
    masks: dict[str, Tensor] = {field: data[field] for field in _MASKS}
    for field, mask in masks.items():
        if mask.ndim == 2:
            raise ShapeError(
                f"{name}: {field} must be [{count}], got {list(mask.shape)}, which holds "
                f"{mask.shape[1]} splits; choose one: take_split(data, 0), or split=0 when loading"
            )
        if mask.shape != (count,) or mask.dtype != torch.bool:
            raise ShapeError(
                f"{name}: {field} must be [{count}] bool, got {list(mask.shape)} {mask.dtype}; "
                "torch_geometric.utils.index_to_mask makes one of indices"
            )
        if field != "test_mask" and not bool(mask.any()):
            raise DataError(
                f"{name}: {field} must select at least one node, got none; per_class_split makes "
                "a split"
            )
    for first, second in (_MASKS[:2], _MASKS[1:], _MASKS[::2]):
        both = (masks[first] & masks[second]).nonzero().flatten()
        if len(both):
            plural = "node" if len(both) == 1 else "nodes"
            raise DataError(
                f"{name}: {first} and {second} must not overlap, got {len(both)} {plural} in both "
                f"(first: {int(both[0])}); give each node one role"
            )
    return masks


def _check_labels(
    name: str, y: Tensor, masks: dict[str, Tensor], count: int, classes: int | None
) -> int:
    if y.shape != (count,) or y.dtype != torch.int64:
        raise ShapeError(
            f"{name}: y must be [{count}] int64, one label for each row of x, got {list(y.shape)} "
            f"{y.dtype}; pass task='values' for numbers [{count}, K] that are no classes"
        )
    used = torch.stack(list(masks.values())).any(0)
    if classes is None:
        classes = int(y.max()) + 1
        different = len(torch.unique(y[used]))
        if classes > 10 * different + 100:
            raise DataError(
                f"{name}: y must number the classes from 0, got {different} different labels up to "
                f"{classes - 1}; names, data.y = torch.unique(data.y, return_inverse=True)"
            )
    bad = (used & ((y < 0) | (y >= classes))).nonzero().flatten()
    if len(bad):
        first = int(bad[0])
        raise DataError(
            f"{name}: y must be in [0, {classes}) where a mask is set, got {int(y[first])} at node "
            f"{first}; -1 is for nodes outside the masks"
        )
    absent = sorted(set(range(classes)) - set(y[masks["train_mask"]].tolist()))
    if absent:
        warnings.warn(f"{name}: train_mask has no node of the classes {absent}", stacklevel=3)
    return classes


def _task(name: str, data: Data, count: int) -> str:
    """What the labels are, as the graph says or as they look."""
    task, y = data.get("task"), data.y
    if task not in (None, *METRICS):
        raise ConfigError(f"{name}: task must be classes, labels or values, got {task!r}")
    several = isinstance(y, Tensor) and y.ndim == 2 and len(y) == count and y.shape[1] > 0
    if task is None:
        if not several:
            return "classes"
        task = "labels" if bool(((y == 0) | (y == 1)).all()) else "values"
    if task != "classes" and not several:
        raise ShapeError(f"{name}: y must be [{count}, K] for {task}, got {list(y.shape)}")
    return str(task)


def _check_values(name: str, y: Tensor, masks: dict[str, Tensor], task: str) -> Tensor:
    """Labels of 0 and 1, or values, in float32; what no mask selects may be unknown."""
    y, used = y.float(), torch.stack(list(masks.values())).any(0)
    right = y.isfinite() if task == "values" else (y == 0) | (y == 1)
    bad = (used[:, None] & ~right).nonzero()
    if len(bad):
        node, column = bad[0].tolist()
        raise DataError(
            f"{name}: y must be {'finite' if task == 'values' else '0 or 1'} where a mask is set, "
            f"got {float(y[node, column])} at node {node}; take the node out of its mask"
        )
    return y.where(right, 0)


def _metric(name: str, metric: str | None, task: str, y: Tensor, masks: dict[str, Tensor]) -> str:
    """The score that was chosen, or that says something about these labels."""
    if metric is not None:
        if metric not in METRICS[task]:
            raise ConfigError(
                f"{name}: metric must be {' or '.join(METRICS[task])} for {task}, got {metric!r}"
            )
        return metric
    if task != "classes":
        return METRICS[task][0]
    counts = y[torch.stack(list(masks.values())).any(0)].bincount()
    if float(counts.max() / counts.sum()) < _MOST:
        return "accuracy"
    return "roc_auc" if len(counts) == 2 else "f1"


def _finite(name: str, field: str, x: Tensor) -> None:
    values = x.values() if is_sparse(x) else x
    if bool(values.isfinite().all()):
        return
    place = int((~values.isfinite()).nonzero()[0, 0])
    if is_sparse(x):
        place = int(torch.searchsorted(x.crow_indices(), place, right=True)) - 1
    raise DataError(
        f"{name}: {field} must be finite, got NaN or infinity, first in row {place}; drop these "
        "nodes or fill the values"
    )
