"""Mirage: a few trees instead of thousands of graphs, for graph classification.

Source: Gupta, Manchanda, Kodamana, Ranu, "Mirage: Model-agnostic Graph Distillation for Graph
Classification", ICLR 2024. Written from the paper's description.

A message-passing network with L layers sees of a node only its computation tree of depth L, and
few trees make up most of a data set. So the trees are counted (`wl_colors`), those that occur
together in many graphs of a class are found (`mine`), and each such set becomes one small graph
that stands for all graphs that hold it (`distill`). No gradients and no architecture are involved.
"""

from potstill.graph.mirage.colors import expand_tree, wl_colors
from potstill.graph.mirage.dataset import DistilledDataset, WeightedGraphSampler, distill
from potstill.graph.mirage.mining import mine
from potstill.graph.mirage.training import (
    GraphClassifier,
    RootReadout,
    Split,
    auc,
    load_tu,
    random_sample,
    split_graphs,
    train_classifier,
)

__all__ = [
    "DistilledDataset",
    "GraphClassifier",
    "RootReadout",
    "Split",
    "WeightedGraphSampler",
    "auc",
    "distill",
    "expand_tree",
    "load_tu",
    "mine",
    "random_sample",
    "split_graphs",
    "train_classifier",
    "wl_colors",
]
