"""Every kernel against the torch form on the same device: first the result, then the time.

In a dry run Triton's interpreter computes, on small inputs (`TRITON_INTERPRET=1`).
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.cuda.place import DEVICE
from potstill.acm import BACKENDS, Learners
from potstill.core.backends import Backends
from potstill.core.criteria import kd
from potstill.core.measure.bench import Pair, Skip, at_least, benchmark, close
from potstill.graph import HighFrequency
from potstill.graph.kernels import CONTRASTS
from potstill.nerf import Levels, Space
from potstill.nerf.backends import ENCODERS, MARCHERS

SOURCE = "issue 17: a kernel is not slower than the torch form"


def backend(backends: Backends[Any], name: str) -> Callable[..., Any]:
    """A backend that runs here; Triton's also on the CPU, in its interpreter."""
    if DEVICE == "cpu" and name == "triton":
        backends[name] = replace(backends[name], devices=())
    if reason := backends[name].missing:
        raise Skip(reason)
    return backends[name].run  # type: ignore[no-any-return]


def gradient(loss: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    value = loss(x)
    value.backward()
    assert x.grad is not None
    return value.detach(), x.grad


def fenced(x: Tensor) -> Tensor:
    """The same with NaN behind it in memory, where a kernel without a mask would read."""
    behind = torch.full((x.numel() + (1 << 14),), torch.nan, dtype=x.dtype, device=x.device)
    behind[: x.numel()] = x.flatten()
    return behind[: x.numel()].view(x.shape)


def in_turn(kind: Callable[..., Pair], name: str, *options: Any) -> None:
    """Register a race of a kernel; those that are not ours have no target."""
    function = partial(kind, *options)
    function.__doc__ = kind.__doc__  # type: ignore[attr-defined]
    target = None if options[:1] in (("tcnn",), ("nerfacc",)) else at_least(1.0, SOURCE)
    benchmark(domain="cuda", name=f"kernel-{name}", device="cuda", targets=target)(function)


def divergence(dtype: torch.dtype, classes: int, quick: bool) -> Pair:
    """KD of logits, value and gradient, in one kernel against log-softmax by torch."""
    shape = (8, 50) if quick else (4096 if classes < 10_000 else 1024, classes)
    z_s, z_t = (3 * torch.randn(2, *shape)).to(DEVICE, dtype)
    tight = dtype == torch.float32
    return Pair(
        ours=lambda: gradient(lambda z: kd(z, z_t, T=4.0, blocked=True), z_s),
        baseline=lambda: gradient(lambda z: kd(z, z_t, T=4.0, blocked=False), z_s),
        check=close(rtol=1e-4 if tight else 2e-2, atol=1e-7 if tight else 1e-5),
        work=shape[0], unit="rows/s", bytes=5 * z_s.nbytes,
    )  # fmt: skip


def contrast(classes: int, quick: bool) -> Pair:
    """The term of graph edges, value and gradient, in one kernel against torch."""
    nodes, edges = (50, 200) if quick else (200_000, 4_000_000)
    z_s, z_t = (2 * torch.randn(2, nodes, classes)).to(DEVICE)
    ends = torch.randint(nodes, (2, edges))
    ends = ends[:, ends[0] != ends[1]].to(DEVICE)
    backend(CONTRASTS, "triton")
    ours, torchs = (HighFrequency(1.5, backend=name) for name in ("triton", "torch"))
    return Pair(
        ours=lambda: gradient(lambda z: ours(z, z_t, ends), z_s),
        baseline=lambda: gradient(lambda z: torchs(z, z_t, ends), z_s),
        check=close(rtol=1e-3, atol=1e-8),
        work=edges, unit="edges/s",
    )  # fmt: skip


def hashgrid(ours: str, baseline: str, quick: bool) -> Pair:
    """The hash grid, features and gradient of the table, L 16, F 2, against another backend."""
    count, points = (2, 61) if quick else (16, 1 << 19)
    levels = Levels.geometric(count, 2, 10 if quick else 19, 16, 32 if quick else 2048)
    x = torch.rand(points, 3, device=DEVICE)
    table = torch.rand(levels.total, 2, device=DEVICE) * 2 - 1
    dy = fenced(torch.randn(points, levels.width, device=DEVICE))
    sides = [backend(ENCODERS, name) for name in (ours, baseline)]

    def both(encode: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
        rows = table.detach().requires_grad_()
        y = encode(x, rows, levels)
        y.backward(dy)
        assert rows.grad is not None
        return y.detach(), rows.grad

    def check(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> None:
        # sums of up to 1e4 points a row, added in no fixed order
        assert float((a[1] - b[1]).abs().max()) <= 1e-3 * float(b[1].abs().max())
        torch.testing.assert_close(a[0], b[0], rtol=1e-3, atol=1e-4)

    return Pair(
        ours=lambda: both(sides[0]), baseline=lambda: both(sides[1]), check=check,
        work=points, unit="points/s",
    )  # fmt: skip


def marching(ours: str, quick: bool) -> Pair:
    """Marching rays through an occupied half of the box, against torch."""
    space = Space("box", (0.0,) * 3, (1.0,) * 3, near=0.0, steps=32 if quick else 256)
    rays = 16 if quick else 1 << 16
    origins = torch.rand(rays, 3) * 0.2 - 0.5
    directions = torch.nn.functional.normalize(torch.rand(rays, 3) + 0.2, dim=1)
    traced = space.trace(origins.to(DEVICE), directions.to(DEVICE))
    occupied = torch.zeros(64, 64, 64, dtype=torch.bool, device=DEVICE)
    occupied[:32] = True
    arguments = (
        *(traced.origins, traced.directions, traced.base, traced.far),
        torch.full_like(traced.base, 0.5),
        *(space.edges().to(DEVICE), space.affine(traced.origins), occupied),
    )
    sides = [backend(MARCHERS, name) for name in (ours, "torch")]

    def check(a: Any, b: Any) -> None:
        # an interval that ends on the border of a cell counts in one and not in the other
        assert int((a[3] - b[3]).abs().max()) <= 2

    return Pair(
        ours=lambda: sides[0](*arguments), baseline=lambda: sides[1](*arguments), check=check,
        work=rays, unit="rays/s",
    )  # fmt: skip


def learners(dtype: torch.dtype, activation: str, quick: bool) -> Pair:
    """The adaptive MLP of ViT-B at half its budget, against all learners and a mask."""
    if DEVICE == "cpu" and dtype == torch.bfloat16:
        raise Skip("Triton's interpreter multiplies the bits of bfloat16 as integers")
    width, tokens = (32, 48) if quick else (768, 64 * 197)
    options = {"device": DEVICE, "dtype": dtype}
    up, down = (torch.randn(4 * width, width, **options) / width**0.5 for _ in range(2))
    bounds = tuple(width * k for k in range(5))
    parts = Learners(up, up[:, 0].clone(), down, down[0].clone(), bounds, activation)
    x = torch.randn(tokens, width, **options)
    choices = torch.randint(5, (tokens,)).to(DEVICE)
    sides = [backend(BACKENDS, name) for name in ("triton", "torch")]

    def run(side: Callable[..., Tensor]) -> Tensor:
        with torch.inference_mode():
            return side(x, choices, parts)

    def check(a: Tensor, b: Tensor) -> None:
        apart = float((a.float() - b.float()).abs().max() / b.float().abs().max())
        assert apart <= (1e-5 if dtype == torch.float32 else 2e-2), apart

    return Pair(
        ours=lambda: run(sides[0]), baseline=lambda: run(sides[1]), check=check,
        work=tokens, unit="tokens/s",
    )  # fmt: skip


_SHORT = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
for _dtype, _name in _SHORT.items():
    for _classes in (1000, 32_000):
        in_turn(divergence, f"kd-{_classes}-{_name}", _dtype, _classes)
    in_turn(learners, f"acm-{_name}", _dtype, "gelu")
for _classes in (7, 40):
    in_turn(contrast, f"edges-{_classes}", _classes)
in_turn(hashgrid, "hash-triton", "triton", "torch")
in_turn(hashgrid, "hash-tcnn", "tcnn", "torch")
in_turn(marching, "march-nerfacc", "nerfacc")
