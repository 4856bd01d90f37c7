"""Speed of the rewrite and of backends, against IMDN written naively from the paper.

All are IMDN x4 at 256x256, 93.0 GFLOP, two threads; weights are random, which costs the same.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.core.bench import Figure, Pair, Skip, at_least, at_most, benchmark
from potstill.core.cost import latency
from potstill.core.errors import BackendError
from potstill.sr import IMDN
from potstill.sr.backends import make_runner
from potstill.sr.weights import _renamed

from .naive import NaiveIMDN

SIZE, SCALE, THREADS = 256, 4, 2
MACS = 709_824 * SIZE**2


@functools.cache
def networks() -> tuple[NaiveIMDN, IMDN, Tensor]:
    torch.manual_seed(0)
    naive = NaiveIMDN(SCALE).eval()
    model = IMDN(SCALE).eval()
    model.load_state_dict(_renamed(naive.state_dict()))
    return naive, model, torch.rand(1, 3, SIZE, SIZE)


def agree(tolerance: float):
    def check(ours: Tensor, baseline: Tensor) -> None:
        torch.testing.assert_close(ours.float(), baseline, rtol=0, atol=tolerance)

    return check


def race(backend: str, precision: str, tolerance: float, compiled: bool = False) -> Pair:
    naive, model, x = networks()
    try:
        runner = make_runner(model, backend, precision, "cpu", compiled)
    except BackendError as error:
        raise Skip(str(error)) from error

    def baseline() -> Tensor:
        with torch.inference_mode():
            return naive(x)

    megapixels = (SIZE * SCALE) ** 2 / 1e6
    seconds = latency(runner, x, blocks=5, block_seconds=1e-3).median
    return Pair(
        ours=lambda: runner(x),
        baseline=baseline,
        check=agree(tolerance),
        work=megapixels,
        unit="output MPx/s",
        flops=2 * MACS,
        figures={
            "seconds per output megapixel": Figure(seconds / megapixels, "s", timed=True),
            "share of convolution peak": Figure(
                100 * convolution_seconds(precision) / seconds, "%", timed=True
            ),
        },
    )


@functools.cache
def convolution_seconds(precision: str) -> float:
    """The convolution floor: as many operations in 3x3 convolutions of 64 to 64 channels."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    x = torch.rand(1, 64, SIZE, SIZE).to(dtype).contiguous(memory_format=torch.channels_last)
    w = torch.rand(64, 64, 3, 3).to(dtype).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        one = latency(F.conv2d, x, w, padding=1, blocks=10).median
    return one * MACS / (64 * 64 * 9 * SIZE**2)


@benchmark(threads=THREADS, targets={"ratio": at_least(1.4, "issue 5: torch fp32")})
def torch_fp32() -> Pair:
    """IMDN x4 in stages, float32, not compiled, against the naive network."""
    return race("torch", "fp32", 1e-5)


@benchmark(threads=THREADS, targets={"ratio": at_least(1.35, "issue 5: ONNX")})
def onnx_fp32() -> Pair:
    """ONNX Runtime, float32, against the naive network."""
    return race("onnx", "fp32", 2e-5)


@benchmark(threads=THREADS)
def openvino_fp32() -> Pair:
    """OpenVINO, float32, against the naive network."""
    return race("openvino", "fp32", 2e-5)


@benchmark(threads=THREADS)
def torch_bf16() -> Pair:
    """Mixed bf16 in stages, not compiled, against the naive network in float32."""
    return race("torch", "bf16", 0.1)


@benchmark(
    threads=THREADS, budget=180, targets={"ratio": at_least(4.5, "issue 5: torch bf16, compiled")}
)
def torch_bf16_compiled() -> Pair:
    """Mixed bf16 compiled by torch, against the naive network in float32."""
    return race("torch", "bf16", 0.1, compiled=True)


@benchmark(threads=THREADS, targets={"ratio": at_least(5.0, "issue 5: best bf16")})
def openvino_bf16() -> Pair:
    """OpenVINO in bf16, against the naive network in float32."""
    return race("openvino", "bf16", 0.1)


@benchmark(
    threads=THREADS,
    targets={"times the floor": at_most(1.3, "issue 5: fp32 near the convolution floor")},
)
def floor_fp32() -> dict[str, Figure]:
    """Float32 in stages against the time of its convolutions alone."""
    _, model, x = networks()
    runner = make_runner(model, "torch", "fp32", "cpu")
    seconds = latency(runner, x, blocks=10, block_seconds=1e-3).median
    floor = convolution_seconds("fp32")
    return {
        "times the floor": Figure(seconds / floor, "x", timed=True),
        "seconds": Figure(seconds, "s", timed=True),
        "floor": Figure(floor, "s", timed=True),
    }
