"""Subgraphs for teachers: parts everywhere, PyG's sampler where it is installed."""

import pytest
import torch
import torch.nn.functional as F

from potstill.core import Objective, fit
from potstill.core.errors import BackendError, ConfigError
from potstill.graph import Supervised, load
from potstill.graph.data import sampling
from potstill.graph.data.sampling import has_sampler, partition, teacher_batches
from potstill.graph.models.teachers import SAGETeacher


def test_parts_hold_every_node_once_and_most_edges():
    data = load("digits")
    parts = list(partition(data, 4))
    assert sum(part.num_nodes for part in parts) == data.num_nodes
    assert sum(part.num_edges for part in parts) > 0.6 * data.num_edges
    with pytest.raises(ConfigError, match="parts must be from 1 to 1797 nodes, got 0"):
        list(partition(data, 0))


def test_a_teacher_learns_from_parts():
    data = load("digits")
    batches = teacher_batches(data, 3, sampler="parts")
    teacher = SAGETeacher(64, 32, 2, 10)
    distiller = Supervised(teacher, Objective(task=(1.0, F.cross_entropy)))
    fit(distiller, batches, steps=60, lr=0.01, progress=False)
    right = (teacher(data.x, data.edge_index).argmax(1) == data.y)[data.test_mask]
    assert right.float().mean() > 0.8


def test_a_missing_sampler_is_named_and_auto_does_without(monkeypatch):
    data = load("digits")
    monkeypatch.setattr(sampling, "has_sampler", lambda: False)
    assert len(teacher_batches(data, 4)) == 4
    with pytest.raises(BackendError, match="must have pyg-lib or torch-sparse, got neither"):
        teacher_batches(data, sampler="neighbors")
    with pytest.raises(ConfigError, match="sampler must be auto, neighbors or parts, got 'metis'"):
        teacher_batches(data, sampler="metis")


class WholeGraph:
    """Stands in for PyG's loader, which needs a compiled sampler: the seeds, then all others."""

    def __init__(self, data, fanout, input_nodes, batch_size):
        self.data, self.seen, self.fanout = data, input_nodes, fanout

    def __call__(self, index):
        chosen = self.seen[index]
        rest = torch.ones(self.data.num_nodes, dtype=torch.bool)
        rest[chosen] = False
        order = torch.cat([chosen, rest.nonzero().flatten()[: int(torch.randint(1, 50, ()))]])
        batch = self.data.subgraph(order)
        batch.batch_size = len(chosen)
        return batch


def test_drawn_batches_depend_on_seed_and_step_and_share_the_nodes(monkeypatch):
    data = load("digits")
    monkeypatch.setattr(sampling, "has_sampler", lambda: True)
    monkeypatch.setattr(sampling, "NeighborLoader", WholeGraph)
    draw = teacher_batches(data, 5, fanout=(3, 2), seed=1)
    before = torch.get_rng_state()
    first, again, other = draw(0, 0, 1), draw(0, 0, 1), draw(1, 0, 1)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first.x, again.x)
    assert first.x.shape != other.x.shape
    assert int(first.train_mask.sum()) == 10
    assert bool(first.train_mask[:10].all())
    seen = [set(draw(2, rank, 2).x[:10].sum(1).tolist()) for rank in (0, 1)]
    assert not seen[0] & seen[1]
    with pytest.raises(ConfigError, match="parts must be from 1 to 50 training nodes, got 51"):
        teacher_batches(data, 51)


@pytest.mark.skipif(not has_sampler(), reason="needs pyg-lib or torch-sparse")
def test_pygs_sampler_gives_batches():
    draw = teacher_batches(load("digits"), 5, seed=1)
    assert int(draw(0, 0, 1).train_mask.sum()) == 10
