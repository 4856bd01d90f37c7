"""FF-G2M's own code, from a checkout of yours: `potstill bench graph --official PATH`.

PATH is a clone of https://github.com/LirongWu/FF-G2M. Its criteria and its student step need no
graph library, but its modules import DGL, which has no build for current PyTorch. Where DGL is not
installed, an empty module stands in for it while they are imported; whatever would really use it
fails. Nothing of that code is kept here.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.utils import add_self_loops

from benchmarks.graph.speed import CORA, SHAPES, gradient, problem, step
from potstill.core.measure.bench import Pair, Skip, benchmark, close
from potstill.graph import HighFrequency, LowFrequency, MLPStudent

LAMB = 0.4  # share of the labels
NAMES = ("models", "train_and_eval", "utils")


class Absent(ModuleType):
    """Stands in for a package that is imported and not used."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return None


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Let the modules of ``folder`` be imported, and leave no trace of them."""
    before = {name: sys.modules.pop(name) for name in NAMES if name in sys.modules}
    absent = [] if find_spec("dgl") else ["dgl", "dgl.nn"]
    sys.modules.update({name: Absent(name) for name in absent})
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in (*NAMES, *absent):
            sys.modules.pop(name, None)
        sys.modules.update(before)


def modules(checkout: Path) -> tuple[ModuleType, ModuleType]:
    """Its models and its training, as they are."""
    folder = checkout / "src"
    if not all((folder / f"{name}.py").is_file() for name in NAMES):
        raise Skip(f"{checkout.name} is no checkout of LirongWu/FF-G2M: src/models.py is missing")
    with importable(folder):
        return importlib.import_module("models"), importlib.import_module("train_and_eval")


def settings(name: str, data: Any, tau: float) -> dict[str, Any]:
    """Its options, in its words; ``dropout_t`` is the dropout of the student."""
    layers, width, _ = SHAPES.get(name, (2, 64, tau))
    return {
        "distill_mode": 1,
        "ablation_mode": 0,
        "student": "MLP",
        "num_layers": layers,
        "hidden_dim": width,
        "feat_dim": data.x.shape[1],
        "label_dim": data.num_classes,
        "dropout_t": 0.0,  # no mask of the two sides would be the same
        "dropout_s": 0.0,
        "tau": tau,
        "lamb": LAMB,
    }


def criterion(checkout: Path, name: str) -> Pair:
    """Both terms, forward and backward."""
    models, _ = modules(checkout)
    data, z_s, z_t = problem(name)
    edges, tau = data.edge_index, SHAPES.get(name, (2, 64, 1.5))[2]
    theirs = models.Model(settings(name, data, tau))
    both = (add_self_loops(edges, num_nodes=data.num_nodes)[0], edges)
    divergence = nn.KLDivLoss(reduction="batchmean", log_target=True)
    low, high = LowFrequency(), HighFrequency(tau)

    def official(z: Tensor) -> Tensor:
        distance = theirs.edge_distribution_high(both, z, tau)
        wanted = theirs.edge_distribution_high(both, z_t, tau)
        inputs = (z.log_softmax(1), z_t.log_softmax(1), divergence)
        return theirs.edge_distribution_low(both, *inputs) + divergence(distance, wanted)

    def ours(z: Tensor) -> Tensor:
        return low(z, z_t, edges) + high(z, z_t, edges)

    gradient(ours, z_s)  # what only the teacher and the graph decide is made once
    return Pair(
        ours=lambda: gradient(ours, z_s),
        baseline=lambda: gradient(official, z_s),
        check=close(rtol=1e-4, atol=1e-8),
        work=data.num_edges,
        unit="edges/s",
    )


def student_step(checkout: Path, name: str) -> Pair:
    """A step of Adam on the whole graph: their function as it is, on dense features."""
    models, training = modules(checkout)
    data, _, z_t = problem(name)
    edges, seen, tau = data.edge_index, data.train_mask, SHAPES.get(name, (2, 64, 1.5))[2]
    options = settings(name, data, tau)
    sizes = (options["hidden_dim"], options["num_layers"], data.num_classes)
    student = MLPStudent(data.x.shape[1], *sizes, dropout=0.0)
    theirs = models.Model(options)
    copied = dict(zip(theirs.state_dict(), student.state_dict().values(), strict=True))
    theirs.load_state_dict(copied)
    optimizer = torch.optim.Adam(theirs.parameters(), lr=0.01, weight_decay=5e-4)
    both = (add_self_loops(edges, num_nodes=data.num_nodes)[0], edges)
    labels, divergence = nn.NLLLoss(), nn.KLDivLoss(reduction="batchmean", log_target=True)
    low, high = LowFrequency(), HighFrequency(tau)
    dense = data.x.to_dense()

    def official() -> Tensor:
        arguments = (both, dense, data.y, z_t, seen, labels, divergence, optimizer, options)
        return torch.tensor(sum(training.train_mini_batch(theirs, *arguments)))

    def loss(z: Tensor) -> Tensor:
        matched = low(z, z_t, edges) + high(z, z_t, edges)
        return LAMB * F.cross_entropy(z[seen], data.y[seen]) + (1 - LAMB) * matched

    return Pair(
        ours=step(student, loss, data.x),
        baseline=official,
        check=close(rtol=1e-3, atol=1e-4),
        work=data.num_nodes,
        unit="nodes/s",
    )


@benchmark(name="official-criterion-cora", data=CORA)
def official_criterion(official: Path) -> Pair:
    """FF-G2M's two terms on Cora against the authors' code."""
    return criterion(official, "cora")


@benchmark(name="official-student-step-cora", data=CORA)
def official_student_step(official: Path) -> Pair:
    """A training step of the 3x512 student on Cora against the authors' code."""
    return student_step(official, "cora")
