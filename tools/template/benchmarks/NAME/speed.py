"""What the student saves.

python -m benchmarks NAME --check
"""

import torch
from torch import Tensor

from potstill.core.measure.bench import Pair, at_least, benchmark
from potstill.NAME import Network


def same_shape(ours: Tensor, baseline: Tensor) -> None:
    assert ours.shape == baseline.shape


@benchmark(targets=at_least(2.0, "a sixteenth of the multiply-adds"), threads=1)
def narrow() -> Pair:
    """A student of 16 hidden units against a teacher of 256, on 4096 rows."""
    student, teacher, x = Network(16), Network(256), torch.randn(4096, 4)
    return Pair(lambda: student(x), lambda: teacher(x), same_shape)
