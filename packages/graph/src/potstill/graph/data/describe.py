"""What a graph is, in words and figures: for people who see it for the first time."""

from __future__ import annotations

from typing import Any

import torch
from torch_geometric.data import Data

from potstill.graph.data.check import is_symmetric
from potstill.graph.data.tensors import density, is_sparse

__all__ = ["describe", "homophily"]


def homophily(data: Data, nodes: torch.Tensor | None = None) -> float:
    """Share of the edges between known labels whose ends have the same one; NaN without such.

    Args:
        data: With classes ``y`` [N], below 0 where they are unknown.
        nodes: Mask [N] of the nodes whose labels may be looked at; all by default.
    """
    source, target = data.edge_index
    known = data.y >= 0 if nodes is None else (data.y >= 0) & nodes
    both = known[source] & known[target]
    return float((data.y[source] == data.y[target])[both].float().mean())


def describe(data: Data) -> dict[str, Any]:
    """Sizes, labels, splits and oddities of a checked graph, by name, in the order of a table."""
    count, edges = int(data.num_nodes or 0), data.edge_index
    degree = torch.bincount(edges[1], minlength=count)
    weight = data.get("edge_weight")
    both = is_symmetric(edges, count, weight)
    layout = "sparse" if is_sparse(data.x) else "dense"
    found: dict[str, Any] = {
        "nodes": count,
        "edges": f"{edges.shape[1]} ({'both directions' if both else 'directed'}"
        f"{', weighted' if weight is not None else ''})",
        "isolated nodes": int((degree == 0).sum()),
        "degree": f"mean {float(degree.float().mean()):.1f}, largest {int(degree.max())}",
        "features": f"{data.x.shape[1]}, {layout}, {100 * density(data.x):.1f} % not zero",
        "scaled": "each feature" if data.get("x_scale") is not None else (
            "each row" if data.get("rows_scaled") else "no"),
        "task": data.task,
        "metric": data.metric,
    }  # fmt: skip
    if data.task == "classes":
        used = data.train_mask | data.val_mask | data.test_mask
        shares = data.y[used].bincount(minlength=data.num_classes).float() / used.sum()
        names = data.get("class_names") or range(data.num_classes)
        pairs = list(zip(names, shares.tolist(), strict=True))
        said = [f"{name} {100 * share:.0f} %" for name, share in pairs[:12]]
        found["classes"] = ", ".join([*said, "..."] if len(pairs) > 12 else said)
        found["homophily"] = f"{homophily(data):.2f} of the edges join one class"
    else:
        found["outputs"] = data.num_classes
    sizes = [f"{int(data[f'{part}_mask'].sum())} {part}" for part in ("train", "val", "test")]
    found["split"] = ", ".join(sizes)
    return found
