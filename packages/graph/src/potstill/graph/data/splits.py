"""Who is labelled: public, per-class and CPF splits, and the nodes held out of the graph."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.utils import index_to_mask, subgraph

from potstill.core import ConfigError, DataError, generator
from potstill.graph.data.check import ABOUT
from potstill.graph.data.tensors import rows

__all__ = [
    "Inductive",
    "cpf_split",
    "hold_out",
    "per_class_split",
    "random_split",
    "take_split",
]


def per_class_split(
    data: Data, train: int = 20, val: int = 500, test: int | None = 1000, seed: int = 0
) -> Data:
    """``train`` nodes of every class for training, then ``val`` and ``test`` of the others.

    Source: Shchur et al., "Pitfalls of Graph Neural Network Evaluation", 2018 (as used by FF-G2M
    for the Amazon and Coauthor graphs).

    Args:
        data: With labels ``y``; nodes labelled below 0 are in no part.
        train: Labelled nodes of each class.
        val: Validation nodes.
        test: Test nodes; None takes all that are left.
        seed: The split is a pure function of it.

    Returns:
        The same graph with the three masks; a shallow copy.

    Raises:
        DataError: A class has fewer than ``train`` nodes, or too few nodes are left.
    """
    y, rng = data.y, generator("split", seed)
    order = torch.randperm(len(y), generator=rng)
    order = order[y[order] >= 0]
    chosen = []
    for label in range(int(y.max()) + 1):
        own = order[y[order] == label]
        if len(own) < train:
            raise DataError(
                f"per_class_split: train must be at most the nodes of a class, got {train} for "
                f"class {label}, which has {len(own)}; lower train or merge rare classes"
            )
        chosen.append(own[:train])
    picked = torch.cat(chosen)
    left = order[~torch.isin(order, picked)]
    test = len(left) - val if test is None else test
    if len(left) < val + test or min(val, test) < 1:
        raise DataError(
            f"per_class_split: val + test must leave at least one node each of the {len(left)} "
            f"nodes that are not for training, got {val} + {test}; lower them"
        )
    return _masked(data, picked, left[:val], left[val : val + test])


def cpf_split(data: Data, seed: int = 0) -> Data:
    """20 nodes a class for training, 30 a class for validation, all others for testing.

    Source: Yang, Liu, Shi, "Extract the Knowledge of Graph Neural Networks and Go Beyond it", WWW
    2021 (CPF); the protocol of GLNN and NOSMOG.

    Raises:
        DataError: A class has fewer than 50 nodes.
    """
    y, order = data.y, torch.randperm(len(data.y), generator=generator("cpf", seed))
    train, val = [], []
    for label in range(int(y.max()) + 1):
        own = order[y[order] == label]
        if len(own) <= 50:
            raise DataError(
                f"cpf_split: every class must have more than 50 nodes, got {len(own)} of class "
                f"{label}; use per_class_split"
            )
        train.append(own[:20])
        val.append(own[20:50])
    used = torch.cat(train + val)
    left = order[~torch.isin(order, used) & (y[order] >= 0)]
    return _masked(data, torch.cat(train), torch.cat(val), left)


def random_split(
    data: Data, shares: tuple[float, float, float] = (0.6, 0.2, 0.2), seed: int = 0
) -> Data:
    """The masks that lack, drawn among the labelled nodes that no mask selects.

    Where there is no mask for training, all three are drawn by ``shares``. Where there is, the
    nodes that are left become the ones that lack; without any left, validation takes a fifth of
    training.

    Args:
        data: With labels ``y``; unknown are classes below 0 and rows with NaN.
        shares: Shares of training, validation and test, together 1.
        seed: The split is a pure function of it.

    Raises:
        DataError: Fewer than three labelled nodes.
    """
    names = ("train_mask", "val_mask", "test_mask")
    y = data.y
    known = y >= 0 if not y.is_floating_point() else ~y.isnan().reshape(len(y), -1).any(1)
    given = {name: data[name] for name in names if data.get(name) is not None}
    lacking = [name for name in names if name not in given]
    if not lacking:
        return data
    free = known.clone()
    for mask in given.values():
        free &= ~mask
    order = free.nonzero()[:, 0]
    order = order[torch.randperm(len(order), generator=generator("random-split", seed))]
    if "train_mask" in given and not len(order) and "val_mask" in lacking:
        order = given["train_mask"].nonzero()[:, 0]
        order = order[torch.randperm(len(order), generator=generator("random-split", seed))]
        val = index_to_mask(order[: max(1, len(order) // 5)], size=len(y))
        masks = {"val_mask": val, "train_mask": given["train_mask"] & ~val}
        test = given.get("test_mask", torch.zeros_like(val))
        return _copy(data, **masks, test_mask=test)
    weights = torch.tensor([shares[names.index(name)] for name in lacking])
    if len(order) < len(lacking):
        raise DataError(
            f"random_split: at least {len(lacking)} labelled nodes must be free for "
            f"{', '.join(lacking)}, got {len(order)}"
        )
    ends = (weights.cumsum(0) / weights.sum() * len(order)).round().long().tolist()
    starts = [0, *ends[:-1]]
    parts = {name: order[a:b] for name, a, b in zip(lacking, starts, ends, strict=True)}
    return _copy(data, **given, **{k: index_to_mask(v, size=len(y)) for k, v in parts.items()})


def take_split(data: Data, index: int) -> Data:
    """Choose one of several splits stored as masks [N S].

    Raises:
        ConfigError: There is no split ``index``.
    """
    masks = {}
    for name in ("train_mask", "val_mask", "test_mask"):
        mask = data[name]
        count = mask.shape[1] if mask.ndim == 2 else 1
        if not 0 <= index < count:
            raise ConfigError(f"take_split: index must be in [0, {count}), got {index}")
        masks[name] = mask[:, index] if mask.ndim == 2 else mask
    return _copy(data, **masks)


class Inductive(NamedTuple):
    """A graph without some of its test nodes.

    Attributes:
        observed: The graph that training may see; its test nodes are the transductive ones.
        nodes: For each observed node its number in the whole graph, [N_observed].
        held_out: Numbers of the nodes that training never sees, [N_held].
    """

    observed: Data
    nodes: Tensor
    held_out: Tensor


def hold_out(data: Data, rate: float = 0.2, seed: int = 0) -> Inductive:
    """Take a share of the test nodes out of the graph, with all their edges: the inductive case.

    Source: Zhang et al., "Graph-less Neural Networks", ICLR 2022, section 5.1.

    Args:
        data: With masks.
        rate: Share of the test nodes, in (0, 1).
        seed: The choice is a pure function of it.

    Raises:
        ConfigError: ``rate`` is not in (0, 1), or leaves no node on one side.
    """
    tested = data.test_mask.nonzero().flatten()
    count = round(rate * len(tested))
    if not 0 < count < len(tested):
        raise ConfigError(
            f"hold_out: rate must be in (0, 1) and take at least one of the {len(tested)} test "
            f"nodes, got {rate}"
        )
    shuffled = tested[torch.randperm(len(tested), generator=generator("hold-out", seed))]
    held = shuffled[:count].sort().values
    keep = ~index_to_mask(held, size=data.num_nodes)
    nodes = keep.nonzero().flatten()
    weight = data.get("edge_weight")
    edge_index, weight = subgraph(
        keep, data.edge_index, weight, relabel_nodes=True, num_nodes=data.num_nodes
    )
    # An edge to a held-out node would have no number here: subgraph cannot leak one.
    assert edge_index.numel() == 0 or int(edge_index.max()) < len(nodes)
    observed = Data(
        x=rows(data.x, nodes),
        edge_index=edge_index,
        y=data.y[nodes],
        train_mask=data.train_mask[nodes],
        val_mask=data.val_mask[nodes],
        test_mask=data.test_mask[nodes],
    )
    if weight is not None:
        observed.edge_weight = weight
    for name in ABOUT:
        if data.get(name) is not None:
            observed[name] = data[name]
    return Inductive(observed, nodes, held)


def _masked(data: Data, train: Tensor, val: Tensor, test: Tensor) -> Data:
    parts = {"train_mask": train, "val_mask": val, "test_mask": test}
    size = data.num_nodes
    return _copy(data, **{name: index_to_mask(part, size=size) for name, part in parts.items()})


def _copy(data: Data, **changes: Any) -> Data:
    copied = data.clone_shallow() if hasattr(data, "clone_shallow") else data.__copy__()
    for name, value in changes.items():
        copied[name] = value
    return copied
