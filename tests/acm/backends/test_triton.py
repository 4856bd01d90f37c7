"""The Triton kernels in Triton's interpreter, which runs them on the CPU with the same meaning."""

import os
import subprocess
import sys

import pytest
import torch

from potstill.acm import Learners
from potstill.core import ConfigError

pytest.importorskip("triton", reason="triton is not installed")

PROGRAM = """
import torch
from potstill.acm import Learners, backends
from potstill.acm.backends.triton import NARROW, WIDE, triton
from potstill.acm.backends.learners import split_widths

torch.manual_seed(0)
for hidden, inputs, outputs, count, activation in [
    (64, 24, 40, 4, "gelu"), (70, 16, 24, 4, "gelu_tanh"), (16, 8, 8, 1, "silu"),
    (32, 8, 8, 2, "quick_gelu"), (32, 8, 8, 2, "relu"), (32, 8, 8, 2, "identity"),
]:
    learners = Learners(
        0.3 * torch.randn(hidden, inputs), 0.1 * torch.randn(hidden),
        0.2 * torch.randn(hidden, outputs), torch.randn(outputs),
        split_widths(hidden, count), activation,
    )
    tokens = 150
    x = torch.randn(tokens, inputs)
    for k in (torch.randint(0, count + 1, (tokens,)), torch.zeros(tokens, dtype=torch.long),
              torch.full((tokens,), count)):
        reference = backends.dense_masked(x, k, learners)
        for tiles in (*WIDE[::3], *NARROW[::3]):  # two kernels and one
            torch.testing.assert_close(triton(x, k, learners, tiles), reference,
                                       atol=1e-5, rtol=1e-5)
    leaves = [t.clone().requires_grad_() for t in (x, *learners[:4])]
    made = Learners(*leaves[1:], *learners[4:])
    mine = torch.autograd.grad(triton(leaves[0], k, made).square().sum(), leaves)
    theirs = torch.autograd.grad(
        backends.dense_masked(leaves[0], k, made).square().sum(), leaves)
    for a, b in zip(mine, theirs):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
print("agrees")
"""


def test_the_kernels_agree_with_the_reference_in_the_interpreter():
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "agrees" in done.stdout


def test_double_precision_is_refused_with_another_backend():
    from potstill.acm.backends.triton import triton

    up, bias = torch.zeros(8, 4, dtype=torch.float64), torch.zeros(8, dtype=torch.float64)
    learners = Learners(up, bias, up, bias[:4], (0, 4, 8))
    with pytest.raises(ConfigError, match=r"got torch\.float64; use the backend sorted_prefix"):
        triton(up, torch.ones(8, dtype=torch.long), learners)
