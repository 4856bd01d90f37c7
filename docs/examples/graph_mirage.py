"""A set of graphs becomes a small one: the most frequent computation trees (Mirage).

python docs/examples/graph_mirage.py
"""

import torch
from torch_geometric.data import Data
from torch_geometric.utils import to_undirected

from potstill.graph.mirage import distill

torch.manual_seed(0)


def ring(size, label):
    """A ring whose nodes alternate, or one with a single odd node."""
    kinds = torch.arange(size) % 2 if label else (torch.arange(size) == 0).long()
    edges = torch.stack([torch.arange(size), (torch.arange(size) + 1) % size])
    x = torch.nn.functional.one_hot(kinds, 2).float()
    return Data(x=x, edge_index=to_undirected(edges), y=torch.tensor([label]))


graphs = [ring(6 + 2 * (n % 3), n % 2) for n in range(40)]
small = distill(graphs, 2, graphs_per_class=2)
print(f"{sum(g.num_edges for g in graphs)} edges became {sum(g.num_edges for g in small)}")
