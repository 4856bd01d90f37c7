"""What scores cost beside the training that they save, and the closed form of DisWOT's term.

python -m benchmarks search --check
"""

import torch
from torch import Tensor, nn

from potstill.core.criteria import ickd
from potstill.core.measure.bench import Pair, at_least, benchmark


def close(ours: Tensor, baseline: Tensor) -> None:
    torch.testing.assert_close(ours, baseline, atol=1e-4, rtol=1e-4)


@benchmark(targets=at_least(2.0, "O(K C) for O(K C^2)"), threads=1)
def closed_form() -> Pair:
    """DisWOT's semantic term of gradients [100 512] against the Gram form of the paper."""
    g, h = torch.randn(2, 100, 512)

    def ours() -> Tensor:
        cosine = nn.functional.cosine_similarity(g, h)
        return 2 - 2 * (cosine * (g * h).sign().mean(1)).mean()

    return Pair(ours, lambda: ickd(g[:, :, None, None], h[:, :, None, None]), close)
