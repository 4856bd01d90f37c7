"""Speed of the rewrite and of backends, against IMDN written naively from the paper.

All are IMDN x4 at 256x256, 93.0 GFLOP, two threads; weights are random, which costs the same.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib import metadata

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.sr.naive import NaiveIMDN
from potstill.core import BackendError, latency
from potstill.core.measure.bench import Figure, Pair, Skip, at_least, benchmark
from potstill.sr import IMDN
from potstill.sr.backends import Precision, Runner, fast_bf16, make_runner
from potstill.sr.models import renamed

SIZE, SCALE, THREADS = 256, 4, 2
MACS = 709_824 * SIZE**2
MEGAPIXELS = (SIZE * SCALE) ** 2 / 1e6
SHARE = "share of convolution peak"


@functools.cache
def networks() -> tuple[NaiveIMDN, IMDN, Tensor]:
    """The naive network and ours with the same weights, and an image."""
    torch.manual_seed(0)
    naive = NaiveIMDN(SCALE).eval()
    model = IMDN(SCALE).eval()
    model.load_state_dict(renamed(naive.state_dict()))
    return naive, model, torch.rand(1, 3, SIZE, SIZE)


def agree(tolerance: float) -> Callable[[Tensor, Tensor], None]:
    def check(ours: Tensor, baseline: Tensor) -> None:
        torch.testing.assert_close(ours.float(), baseline, rtol=0, atol=tolerance)

    return check


def runner(backend: str, precision: Precision, compiled: bool = False) -> Runner:
    """Our network on a backend, or a skip that says what to install or what the CPU lacks."""
    if precision == "bf16" and not fast_bf16():
        raise Skip("bf16 needs AVX512-BF16 or AMX, which this processor does not have")
    try:
        return make_runner(networks()[1], backend, precision, "cpu", compiled)
    except BackendError as error:
        raise Skip(str(error)) from error


def infer(network: nn.Module, x: Tensor) -> Tensor:
    with torch.inference_mode():
        out: Tensor = network(x)
    return out


def race(
    backend: str,
    precision: Precision,
    compiled: bool = False,
    baseline: nn.Module | None = None,
) -> Pair:
    """A backend against the naive network, or another one with the same weights."""
    naive, _, x = networks()
    run, network = runner(backend, precision, compiled), baseline or naive
    tolerance = 1e-2 if precision == "bf16" else 1e-5 if backend == "torch" else 2e-5
    taken = latency(run, x, blocks=5, block_seconds=1e-3).median
    floor = convolution_seconds(precision)
    return Pair(
        ours=lambda: run(x),
        baseline=lambda: infer(network, x),
        check=agree(tolerance),
        work=MEGAPIXELS,
        unit="output MPx/s",
        flops=2 * MACS,
        figures={
            "seconds per output megapixel": Figure(taken / MEGAPIXELS, "s", timed=True),
            SHARE: Figure(100 * floor / taken, "%", timed=True),
        },
    )


def convolution_seconds(precision: Precision) -> float:
    """The convolution floor: as many operations in 3x3 convolutions of 64 to 64 channels."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    x = torch.rand(1, 64, SIZE, SIZE).to(dtype).contiguous(memory_format=torch.channels_last)
    w = torch.rand(64, 64, 3, 3).to(dtype).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        one = latency(F.conv2d, x, w, padding=1, blocks=10).median
    return one * MACS / (64 * 64 * 9 * SIZE**2)


@benchmark(
    threads=THREADS, targets={"ratio": at_least(1.4, "issue 5: torch fp32, AVX2 and AVX-512")}
)
def torch_fp32() -> Pair:
    """IMDN x4 in stages, float32, not compiled, against the naive network."""
    return race("torch", "fp32")


@benchmark(
    threads=THREADS,
    budget=180,
    targets={SHARE: at_least(100 / 1.3, "issue 5: fp32 in 1.3x of its floor, AVX-512")},
)
def torch_fp32_compiled() -> Pair:
    """Float32 compiled by torch, against the naive network."""
    return race("torch", "fp32", compiled=True)


@benchmark(threads=THREADS, targets={"ratio": at_least(1.35, "issue 5: ONNX, AVX2 and AVX-512")})
def onnx_fp32() -> Pair:
    """ONNX Runtime, float32, against the naive network."""
    return race("onnx", "fp32")


@benchmark(threads=THREADS)
def openvino_fp32() -> Pair:
    """OpenVINO, float32, against the naive network."""
    return race("openvino", "fp32")


@benchmark(threads=THREADS)
def torch_bf16() -> Pair:
    """Mixed bf16 in stages, not compiled, against the naive network in float32."""
    return race("torch", "bf16")


@benchmark(
    threads=THREADS,
    budget=180,
    targets={"ratio": at_least(4.5, "issue 5: torch bf16, compiled, AMX")},
)
def torch_bf16_compiled() -> Pair:
    """Mixed bf16 compiled by torch, against the naive network in float32."""
    return race("torch", "bf16", compiled=True)


@benchmark(threads=THREADS, targets={"ratio": at_least(5.0, "issue 5: best bf16, AMX")})
def openvino_bf16() -> Pair:
    """OpenVINO in bf16, against the naive network in float32."""
    return race("openvino", "bf16")


@benchmark(threads=THREADS)
def spandrel_fp32() -> Pair:
    """The stages against spandrel, the loader of most upscaling programs, where it knows IMDN."""
    try:
        import spandrel
    except ImportError as error:
        raise Skip("needs spandrel: hatch run peers:bench sr spandrel-fp32") from error
    weights = networks()[0].state_dict()
    try:
        theirs = spandrel.ModelLoader("cpu").load_from_state_dict(weights).model.eval()
    except spandrel.UnsupportedModelError as error:
        version = metadata.version("spandrel")
        raise Skip(f"spandrel {version} does not know IMDN's weights") from error
    return race("torch", "fp32", baseline=theirs)
