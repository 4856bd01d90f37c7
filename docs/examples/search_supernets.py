"""Many students from one training: an elastic network, and a cell that chooses its operations.

python docs/examples/search_supernets.py
"""

import torch
from torch import nn

from potstill.core import fit
from potstill.search import Cell, Darts, Elastic, ElasticSandwich, discretize, resnet, two_turns

torch.manual_seed(0)
batch = torch.randn(8, 3, 8, 8), torch.randint(3, (8,))
elastic = Elastic(resnet(3, depth=((1, 1), (2, 2)), width=(4, 8)))
fit(ElasticSandwich(elastic, 3, delay=0.0, warmup=0.0), [batch], steps=3, progress=False)
small = elastic.extract(elastic.least, [batch[0]])
print(elastic.least, small(batch[0]).shape)

net = nn.Sequential(Cell(3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3))
darts = Darts(net, distil=1.0, every=2)
fit(darts, lambda *_: [batch, batch], stages=[two_turns()], steps=3, progress=False)
print(discretize(net)[0])
