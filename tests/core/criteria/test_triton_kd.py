"""The GPU kernel of kd against the torch form: on a GPU, and everywhere in Triton's interpreter."""

import os
import subprocess
import sys

import pytest
import torch

from potstill.core.criteria import kd
from potstill.core.testing import requires_cuda, with_package

INTERPRETED = """
import torch
from potstill.core.criteria import triton_kd
from potstill.core.criteria.logit import _kd_closed

triton_kd._TILE = 16  # several tiles, the last one short
g = torch.Generator().manual_seed(0)
z_s, z_t = 3 * torch.randn(2, 5, 37, generator=g) + 500
for T in (1.0, 4.0, torch.rand(5, 1, generator=g) + 0.5):
    found, expected = triton_kd.kd_rows(z_s, z_t, T), _kd_closed(z_s, z_t, T)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
half = triton_kd.kd_rows(z_s.half(), z_t.half(), 4.0)
assert half[1].dtype == torch.float16 and half[0].isfinite().all()
"""


@with_package("triton")
def test_kernel_in_the_interpreter() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", INTERPRETED],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]


@requires_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_kernel_on_a_gpu(dtype) -> None:
    g = torch.Generator().manual_seed(0)
    z_s, z_t = (3 * torch.randn(2, 64, 10_007, generator=g)).to("cuda", dtype)
    z_s[0, 3] = z_t[0, 3] = -torch.inf
    found, expected = [], []
    for out, blocked in ((found, True), (expected, False)):
        x = z_s.clone().requires_grad_()
        value = kd(x, z_t, blocked=blocked)
        value.backward()
        out += [value.detach(), x.grad]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
