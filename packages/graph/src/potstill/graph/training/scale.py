"""Graphs that do not fit a full-batch step: mini-batches of nodes and edges, memory maps, parts.

The student never needs a neighbourhood. The low-frequency term is a cross-entropy with one fixed
target a node, so it takes batches of nodes; the high-frequency term takes batches of edges and
their end points. Both are unbiased estimates of the full terms, drawn as a pure function of seed
and step, so that processes share a global batch and interrupted runs continue exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Data

from potstill.core import (
    ConfigError,
    DataError,
    Distiller,
    Engine,
    Losses,
    Objective,
    ShapeError,
    Validation,
    fit,
    generator,
    seed_all,
)
from potstill.graph.criteria.frequency import HighFrequency, Reduction, match_rows
from potstill.graph.data.check import check_ends, check_logits, is_symmetric
from potstill.graph.data.tensors import is_sparse, rows
from potstill.graph.models.student import MLPStudent
from potstill.graph.training.recipes import Recipe

__all__ = [
    "BatchesToMLP",
    "GraphBatch",
    "GraphStore",
    "check_memory",
    "distill_in_batches",
    "logits_in_blocks",
]


class GraphBatch(NamedTuple):
    """What one step sees.

    Attributes:
        x_nodes: Features of the drawn nodes [B F].
        target: Their targets, scaled so that the batch mean estimates the full term [B C].
        entropy: The share of each node in the constant of the term [B].
        x_seen: Features of drawn training nodes [L F].
        y_seen: Their labels [L].
        x_ends: Features of the end points of the drawn edges [M F].
        z_ends: Logits of the teacher for them [M C].
        edges: Edges between these, by position [2 K].
    """

    x_nodes: Tensor
    target: Tensor
    entropy: Tensor
    x_seen: Tensor
    y_seen: Tensor
    x_ends: Tensor
    z_ends: Tensor
    edges: Tensor


class BatchesToMLP(Distiller):
    """FF-G2M on batches of nodes and of edges, independent of each other; or GLNN, on nodes.

    Source: Wu et al. (FF-G2M), AAAI 2023; the sampling is ours.
    """

    def forward(self, batch: GraphBatch, step: int) -> Losses:
        """Losses of one batch."""
        routes = {
            "task": lambda: (self.student(batch.x_seen), batch.y_seen),
            "low": lambda: (self.student(batch.x_nodes), batch.target, batch.entropy),
            "high": lambda: (self.student(batch.x_ends), batch.z_ends, batch.edges),
        }
        return self.objective(step, {name: routes[name]() for name in self.objective.names})


@dataclass
class GraphStore:
    """A graph on disk or in memory, and how batches are drawn from it.

    Attributes:
        x: Features [N F]: a tensor (dense or CSR), an array or a memory map.
        z_teacher: Logits [N C], likewise.
        target: ``T[i] = sum_j a[i, j] softmax(z_teacher[j])`` [N C].
        entropy: ``sum_j a[i, j] sum_c p log p`` [N].
        half: One direction of every edge, [2 E/2]; all edges where some have only one.
        seen: Training nodes.
        y: Labels [N].
        reach: Sums of the weights of ``half`` up to each edge, for draws; None without weights.
        reduction: Mean of the low-frequency term, ``"edge"`` or ``"node"``.
        val: Validation nodes, where there are any.
    """

    x: Any
    z_teacher: Tensor
    target: Tensor
    entropy: Tensor
    half: Tensor
    seen: Tensor
    y: Tensor
    reach: Tensor | None = None
    reduction: str = "edge"
    val: Tensor | None = None

    @classmethod
    @torch.no_grad()
    def make(
        cls,
        x: Any,
        edge_index: Tensor,
        z_teacher: Any,
        y: Tensor,
        train_mask: Tensor,
        edge_chunk: int = 2**20,
        *,
        edge_weight: Tensor | None = None,
        reduction: Reduction = "edge",
        val_mask: Tensor | None = None,
    ) -> GraphStore:
        """Compute what the student does not change, a chunk of edges at a time.

        Args:
            x: Features [N F].
            edge_index: [2 E], without self-loops. Where every edge has both directions, one of
                them serves the high-frequency term.
            z_teacher: Logits as `check_logits` takes them.
            y: Labels [N].
            train_mask: [N] bool.
            edge_chunk: Edges at a time: beyond the targets, memory is that many times C.
            edge_weight: [E], finite and >= 0: the weight of an edge in both terms.
            reduction: Mean of the low-frequency term, as of `LowFrequency`.
            val_mask: [N] bool; `distill_in_batches` then keeps the best weights on these nodes.

        Raises:
            DataError: Edges to nodes that are not there.
            ShapeError: Edges or weights of another shape.
            ConfigError: An unknown reduction.
        """
        if reduction not in ("edge", "node"):
            raise ConfigError(f"GraphStore: reduction must be edge or node, got {reduction!r}")
        z = check_logits(z_teacher, len(y))
        edge_index = check_ends(edge_index, len(y), "GraphStore.make")
        weight = torch.ones(edge_index.shape[1]) if edge_weight is None else edge_weight.float()
        if weight.shape != edge_index.shape[1:]:
            raise ShapeError(
                f"GraphStore.make: edge_weight must be [{edge_index.shape[1]}], one for each edge, "
                f"got {list(weight.shape)}"
            )
        count, source, target = len(y), *edge_index
        p = torch.softmax(z, 1)
        each = torch.xlogy(p, p).sum(1)
        scaled, entropy, into = p.clone(), each.clone(), torch.ones(count)  # the self-loops
        for start in range(0, edge_index.shape[1], edge_chunk):
            part = slice(start, start + edge_chunk)
            s, t, w = source[part], target[part], weight[part]
            scaled.index_add_(0, t, p[s] * w[:, None])
            entropy.index_add_(0, t, each[s] * w)
            into.index_add_(0, t, w)
        total = into.double().sum().float() if reduction == "edge" else into * count
        if edge_weight is None:
            both = _both_ways(edge_index, count, edge_chunk)
        else:
            both = is_symmetric(edge_index, count, edge_weight)
        keep = source < target if both else torch.ones_like(source, dtype=torch.bool)
        reach = None if edge_weight is None else weight[keep].double().cumsum(0)
        seen = train_mask.nonzero().flatten()
        scaled = (scaled.T / total).T
        val = None if val_mask is None else val_mask.nonzero()[:, 0]
        half, entropy = edge_index[:, keep], entropy / total
        return cls(x, z, scaled, entropy, half, seen, y, reach, reduction, val)

    def draw(
        self,
        step: int,
        rank: int,
        world: int,
        *,
        nodes: int,
        edges: int,
        labelled: int,
        seed: int,
        soft: bool = False,
    ) -> GraphBatch:
        """The part of one process in the global batch of a step; sizes are per process.

        Args:
            step: Step.
            rank: Number of the process.
            world: Number of processes.
            nodes: Nodes.
            edges: Edges; 0 draws none.
            labelled: Training nodes.
            seed: Seed of the draws.
            soft: Take what the teacher says about the nodes themselves as targets (GLNN).
        """

        def mine(kind: str, among: int, size: int) -> Tensor:
            rng = generator(kind, seed, step)
            return torch.randint(among, (size * world,), generator=rng)[rank::world]

        count = len(self.y)
        i = mine("nodes", count, nodes)
        seen = self.seen[mine("labelled", len(self.seen), labelled)]
        if not edges:
            drawn = torch.zeros(0, dtype=torch.long)
        elif self.reach is None:
            drawn = mine("edges", self.half.shape[1], edges)
        else:  # an edge as often as its weight says
            level = torch.rand(edges * world, generator=generator("edges", seed, step)).double()
            level = level[rank::world] * self.reach[-1]
            drawn = torch.searchsorted(self.reach, level, right=True)
            drawn = drawn.clamp_max(len(self.reach) - 1)
        ends = self.half[:, drawn]
        unique, place = torch.unique(ends, return_inverse=True)
        if soft:
            p = torch.softmax(self.z_teacher[i], 1)
            target, entropy = p / nodes, torch.xlogy(p, p).sum(1) / nodes
        else:
            target, entropy = (part[i] * (count / nodes) for part in (self.target, self.entropy))
        return GraphBatch(
            x_nodes=_rows(self.x, i),
            target=target,
            entropy=entropy,
            x_seen=_rows(self.x, seen),
            y_seen=self.y[seen],
            x_ends=_rows(self.x, unique),
            z_ends=self.z_teacher[unique],
            edges=place,
        )


def distill_in_batches(
    store: GraphStore,
    recipe: Recipe,
    method: str = "ff-g2m",
    *,
    epochs: float = 1.0,
    nodes: int = 16_384,
    edges: int = 16_384,
    labelled: int = 1024,
    seed: int = 0,
    student: nn.Module | None = None,
    **options: Any,
) -> tuple[Any, Sequence[dict[str, float]]]:
    """Train a student on batches; memory does not depend on the size of the graph.

    Args:
        store: The graph.
        recipe: Sizes, weights and optimizer.
        method: ``"ff-g2m"``, ``"glnn"`` or ``"mlp"``.
        epochs: Passes over the nodes (drawn with replacement).
        nodes: Nodes of a batch and process, for the low-frequency term.
        edges: Edges of a batch and process, for the high-frequency term.
        labelled: Training nodes of a batch and process.
        seed: Seed of weights, dropout and draws.
        student: Instead of the recipe's MLP.
        **options: Of `potstill.core.fit`: engine, run, validation, progress, ... The weights with
            the best accuracy on ``store.val`` are kept, looked at after each pass over the nodes,
            where these are known and ``validation`` is not given.

    Returns:
        The student, on the device where it was before, and one row a step.

    Raises:
        ConfigError: A size below 1; another reduction than that of the store; an unknown method.
    """
    if min(nodes, edges, labelled) < 1 or epochs <= 0:
        raise ConfigError(
            "distill_in_batches: nodes, edges, labelled and epochs must be positive, got "
            f"{nodes}, {edges}, {labelled} and {epochs}"
        )
    if method not in ("ff-g2m", "glnn", "mlp"):
        raise ConfigError(
            f"distill_in_batches: method must be ff-g2m, glnn or mlp, got {method!r}; the others "
            "choose neighbours anew in each step and need the whole graph"
        )
    if method == "ff-g2m" and recipe.reduction != store.reduction:
        raise ConfigError(
            f"distill_in_batches: the recipe must have the reduction of the store, "
            f"{store.reduction!r}, got {recipe.reduction!r}; GraphStore.make takes one too"
        )
    seed_all("student", seed)
    if student is None:
        sizes = (store.x.shape[1], recipe.hidden, recipe.layers, store.z_teacher.shape[1])
        student = MLPStudent(*sizes, dropout=recipe.student_dropout, norm=recipe.norm)
    share = 1 - recipe.task_weight
    terms: dict[str, Any] = {"task": (recipe.task_weight, F.cross_entropy)}
    if method == "mlp":
        terms = {"task": (1.0, F.cross_entropy)}
    else:
        terms["low"] = (share, match_rows)
    if method == "ff-g2m":
        terms["high"] = (share, HighFrequency(recipe.tau, symmetric=False))
    engine: Engine | None = options.get("engine")
    world = 1 if engine is None else engine.world
    one = len(store.y) / (nodes * world)
    settings: dict[str, Any] = {
        "steps": max(1, round(epochs * one)),
        "lr": recipe.lr,
        "optimizer": partial(torch.optim.Adam, weight_decay=recipe.weight_decay, fused=True),
    }
    if store.val is not None and len(store.val):
        score = partial(_accuracy, store.x, store.y, store.val)
        settings["validation"] = Validation(score, every=max(1, round(one)), ties="latest")
    drawn = {"nodes": nodes, "edges": edges if method == "ff-g2m" else 0, "labelled": labelled}
    history = fit(
        BatchesToMLP(student, Objective(terms)),
        partial(store.draw, **drawn, seed=seed, soft=method == "glnn"),
        seed=seed,
        **{**settings, **options},
    )
    return student, history


def _accuracy(x: Any, y: Tensor, nodes: Tensor, student: nn.Module) -> dict[str, float]:
    """Share of some nodes that a student is right about, a block at a time."""
    device, right = next(student.parameters()).device, 0
    for part in nodes.split(2**16):
        right += int((student(_rows(x, part).to(device)).argmax(1).cpu() == y[part]).sum())
    return {"val": right / len(nodes)}


@torch.no_grad()
def logits_in_blocks(
    model: Any,
    x: Any,
    edge_index: Tensor,
    edge_weight: Tensor | None = None,
    *,
    block: int = 100_000,
) -> Tensor:
    """What a GCN or SAGE teacher says about all nodes, layer by layer and block by block.

    Memory is two matrices [N, width], however many layers there are, and one block of features;
    only blocks are sent to where the model is.

    Args:
        model: A `GCNTeacher` or `SAGETeacher`.
        x: Features [N F], a memory map too.
        edge_index: [2 E] without self-loops.
        edge_weight: [E], or None.
        block: Rows at a time.

    Raises:
        ConfigError: Another kind of model, whose layers are not known here.
    """
    if not hasattr(model, "adjacency"):
        raise ConfigError(
            f"logits_in_blocks: model must be a GCNTeacher or SAGETeacher, got "
            f"{type(model).__name__}; PyG's own models have inference() with a loader"
        )
    model.eval()
    count = x.shape[0]
    matrix, _ = model.adjacency(edge_index, count, edge_weight)
    blocks = [torch.arange(i, min(i + block, count)) for i in range(0, count, block)]
    for i, (linear, bias) in enumerate(zip(model.maps, model.biases, strict=True)):
        h = torch.empty(count, len(bias))
        for part in blocks:
            h[part] = linear(_rows(x, part).to(bias.device)).cpu()
        x = torch.empty_like(h)
        for part in blocks:
            x[part] = rows(matrix, part) @ h + bias.cpu()
        if i < len(model.biases) - 1:
            x.relu_()
    return x


def _both_ways(edge_index: Tensor, count: int, chunk: int) -> bool:
    """Whether every edge has both directions, by sums of hashes: no sort of all the edges."""
    balance = torch.zeros((), dtype=torch.int64)
    for part in edge_index.split(chunk, 1):
        low, high = part.min(0).values, part.max(0).values
        key = (low * count + high) * -7046029254386353131  # wraps: a multiplicative hash
        balance += ((key ^ (key >> 29)) * (part[0] - part[1]).sign()).sum()
    return bool(balance == 0)


def check_memory(data: Data, recipe: Recipe, available: int | None = None) -> int:
    """Estimate the bytes of a full-batch step, and refuse what cannot fit.

    Args:
        data: A checked graph.
        recipe: Sizes.
        available: Bytes that are free; what the system says when None.

    Returns:
        The estimate: features, activations with gradients, optimizer, and one chunk of edges.

    Raises:
        DataError: It exceeds what is available; names the smaller ways.
    """
    count, width = data.x.shape
    classes = data.num_classes
    stored = data.x.values().numel() * 12 if is_sparse(data.x) else 4 * count * width
    hidden = recipe.hidden * (recipe.layers - 1)
    activations = 4 * count * (4 * hidden + 3 * classes)
    weights = 4 * 4 * (width + hidden + classes) * recipe.hidden
    chunk = 4 * 4 * min(2**20, data.num_edges) * classes
    total = int(stored + activations + weights + chunk + 3 * 8 * data.num_edges)
    free = psutil.virtual_memory().available if available is None else available
    if total > free:
        raise DataError(
            f"distill: a full-batch step must fit into {free / 2**30:.1f} GiB, got an estimate of "
            f"{total / 2**30:.1f} GiB for {count} nodes; use distill_in_batches, store x as CSR "
            "(sparse_features), or lower hidden"
        )
    return total


def _rows(x: Any, index: Tensor) -> Tensor:
    if isinstance(x, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(x[index.numpy()])).float()
    return rows(x, index)
