"""Every backend against the float64 reference; choice, refusal, and the optimizer over them."""

import ctypes.util
import math
import os
import subprocess
import sys
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from potstill.core.errors import BackendError, ConfigError, ShapeError
from potstill.core.testing import requires_cuda
from potstill.nerf import Levels, RowAdam
from potstill.nerf.backends import ENCODERS, MARCHERS, native, reference, tcnn
from potstill.nerf.backends.gradients import POOL


def parity(encode, device="cpu", tolerance=1e-6, levels=None, count=2048):
    """Forward and both gradients against float64 sums over the same float32 positions."""
    levels = levels or Levels.geometric(8, 2, 12, 8, 256)
    draw = torch.Generator().manual_seed(0)
    x = torch.rand(count, 3, generator=draw)
    table = torch.rand(levels.total, levels.features, generator=draw) * 2 - 1
    dy = torch.randn(count, levels.width, generator=draw)
    exact_x, exact_table = x.clone().requires_grad_(), table.double().requires_grad_()
    exact = reference.encode(exact_x, exact_table, levels)
    exact.backward(dy.double())
    x, table = x.to(device).requires_grad_(), table.to(device).requires_grad_()
    ours = encode(x, table, levels)
    ours.backward(dy.to(device))
    assert (ours.detach().cpu() - exact.detach()).abs().max() <= 1e-6
    largest = exact_table.grad.abs().max()
    assert (table.grad.cpu() - exact_table.grad).abs().max() <= tolerance * largest
    error = (x.grad.cpu() - exact_x.grad).abs() / exact_x.grad.abs().amax(1, keepdim=True)
    assert error.max() <= 1e-4


def same_bits_in_any_order(encode):
    """Points in another order, whose gradients span 30 powers of two: floats would differ."""
    levels, draw = Levels.geometric(2, 2, 6, 2, 4), torch.Generator().manual_seed(0)
    x = torch.rand(300, 3, generator=draw)
    dy = torch.randn(300, 4, generator=draw) * 2.0 ** torch.randint(-15, 15, (300, 1))
    found = []
    for order in (torch.arange(300), torch.randperm(300, generator=draw)):
        table = torch.zeros(levels.total, 2, requires_grad=True)
        encode(x[order], table, levels).backward(dy[order])
        found.append(table.grad)
    assert torch.equal(*found)


@pytest.mark.parametrize("name", ["torch", "native"])
@pytest.mark.parametrize("features", [1, 2, 4, 8])
@pytest.mark.parametrize("count", [1, 16])
def test_parity_with_the_float64_oracle(name, features, count):
    levels = Levels.geometric(count, features, 13, 16, 512 if count > 1 else 16)
    parity(ENCODERS[name].run, levels=levels)


def test_parity_of_a_large_hashed_table():
    parity(native.encode, levels=Levels.geometric(4, 2, 19, 64, 2048))


def test_threads_do_not_change_the_result():
    levels = Levels.geometric(6, 2, 12, 8, 256)
    x, dy = torch.rand(999, 3), torch.randn(999, 12)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            table = torch.linspace(-1, 1, levels.total * 2).reshape(-1, 2).requires_grad_()
            y = native.encode(x, table, levels)
            y.backward(dy)
            results.append((y.detach(), table.grad))
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


def test_no_points_have_no_gradient():
    levels = Levels.geometric(4, 2, 10, 8, 64)
    for _ in range(3):  # an uninitialised buffer would be zero by luck
        table = torch.rand(levels.total, 2).requires_grad_()
        y = native.encode(torch.zeros(0, 3), table, levels)
        assert y.shape == (0, 8)
        y.sum().backward()
        assert not table.grad.any()
        table.grad.fill_(7)


def test_input_gradient_is_the_slope():
    levels = Levels.geometric(1, 1, 12, 8, 8)
    table = torch.rand(levels.total, 1, dtype=torch.float64)
    x = torch.tensor([[0.31, 0.62, 0.47]], requires_grad=True)
    reference.encode(x, table, levels).sum().backward()
    for axis in range(3):
        step = torch.zeros(1, 3)
        step[0, axis] = 1e-3
        high, low = (reference.encode(x.detach() + s * step, table, levels) for s in (1, -1))
        assert float((high - low) / 2e-3) == pytest.approx(float(x.grad[0, axis]), rel=1e-3)


def test_triton_kernels_in_the_interpreter():
    """The Triton kernels run on the CPU in Triton's interpreter: logic, not speed or atomics."""
    pytest.importorskip("triton")
    from triton._C.libtriton import interpreter

    if not hasattr(interpreter, "fma_fp32"):
        pytest.skip("the interpreter of this Triton rounds a fused multiply-add twice, no GPU does")
    program = (
        "from test_backends import parity, same_bits_in_any_order\n"
        "from potstill.nerf.backends import triton\n"
        "from potstill.nerf import Levels\n"
        "parity(triton.encode, levels=Levels.geometric(3, 2, 9, 4, 40), count=200)\n"
        "parity(triton.encode_fixed, levels=Levels.geometric(3, 2, 9, 4, 40), count=200)\n"
        "same_bits_in_any_order(triton.encode_fixed)\n"
    )
    path = [os.path.dirname(__file__), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]


@requires_cuda
@pytest.mark.parametrize("name", ["torch", "triton", "triton-fixed", "tcnn"])
def test_parity_on_cuda(name):
    if reason := ENCODERS[name].missing:
        pytest.skip(reason)
    parity(ENCODERS[name].run, device="cuda", tolerance=1e-5)


@requires_cuda
def test_integer_sums_repeat_on_cuda():
    encode = ENCODERS["triton-fixed"].run
    same_bits_in_any_order(lambda x, table, levels: encode(x.cuda(), table.cuda(), levels).cpu())


@requires_cuda
def test_nerfacc_marches_like_the_reference():
    if reason := MARCHERS["nerfacc"].missing:
        pytest.skip(reason)
    from potstill.nerf import Space

    space = Space("box", (0.0,) * 3, (1.0,) * 3, near=0.0, steps=64)
    origins = torch.rand(64, 3) * 0.2 - 0.5
    directions = torch.nn.functional.normalize(torch.rand(64, 3) + 0.2, dim=1)
    rays = space.trace(origins.cuda(), directions.cuda())
    occupied = torch.ones(8, 8, 8, dtype=torch.bool, device="cuda")
    arguments = (
        *(rays.origins, rays.directions, rays.base, rays.far),
        torch.full_like(rays.base, 0.5),
        *(space.edges().cuda(), space.affine(rays.origins), occupied),
    )
    ours, theirs = (MARCHERS[name].run(*arguments) for name in ("torch", "nerfacc"))
    # intervals that end at the border of the box count in one and not in the other
    assert (ours[3] - theirs[3]).abs().max() <= 1


def test_auto_takes_the_best_that_runs():
    best = "torch" if ENCODERS["native"].missing else "native"
    assert ENCODERS.resolve("auto", "cpu").name == MARCHERS.resolve("auto", "cpu").name == best


@pytest.mark.parametrize("name", ["triton", "tcnn", "nerfacc"])
@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_cuda_backends_say_why_they_cannot_run(name):
    backends = MARCHERS if name == "nerfacc" else ENCODERS
    with pytest.raises(BackendError, match=f"'{name}' cannot run here: torch finds no CUDA device"):
        backends.resolve(name)


def pretend_card(monkeypatch, name, **modules):
    """A CUDA device with compute capability 8.9, and these modules in the place of packages."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 9))
    for module, content in modules.items():
        monkeypatch.setitem(sys.modules, module.replace("_DOT_", "."), content)
    backend = {**ENCODERS, **MARCHERS}[name]
    monkeypatch.delitem(vars(backend), "missing", raising=False)  # looked for anew, and forgotten
    monkeypatch.setitem(vars(backend), "missing", type(backend).missing.func(backend))
    return backend


def test_instructions_for_tiny_cuda_nn_name_the_card_of_this_machine(monkeypatch):
    backend = pretend_card(monkeypatch, "tcnn", tinycudann=None)
    assert "TCNN_CUDA_ARCHITECTURES=89 " in backend.missing
    assert "setuptools<81" in backend.missing
    assert f"nvcc of CUDA {(torch.version.cuda or '?').split('.')[0]}" in backend.missing


@pytest.mark.parametrize("built", [True, False])
def test_nerfacc_is_there_when_its_extension_is(monkeypatch, built):
    extension = SimpleNamespace(_C=object() if built else None)
    modules = {"nerfacc": SimpleNamespace(), "nerfacc_DOT_cuda_DOT__backend": extension}
    backend = pretend_card(monkeypatch, "nerfacc", nerfacc_DOT_cuda=SimpleNamespace(), **modules)
    assert ("no nvcc to compile it" in backend.missing) != built
    assert MARCHERS.resolve("auto", "cuda").name == ("nerfacc" if built else "torch")
    assert MARCHERS.resolve("auto", "cuda", ("contracted space",)).name == "torch"
    if built:
        with pytest.raises(BackendError, match="does not do contracted space; or use .* 'torch'"):
            MARCHERS.resolve("nerfacc", "cuda", ("contracted space",))


def test_places_are_rounded_once_without_float64_too():
    x = torch.rand(100_000)
    for scale in Levels.geometric(16, 2, 19, 16, 2048).scale:
        exact = (x.double() * scale + 0.5).float()
        assert (reference.placed(x, scale) != exact).float().mean() < 1e-4
        assert (x * scale + 0.5 != exact).any()


def test_unknown_backends_and_wrong_devices_are_refused():
    with pytest.raises(ConfigError, match="did you mean 'triton'"):
        ENCODERS.resolve("tritn")
    with pytest.raises(ConfigError, match="march: .* got 'triton'; known: auto, nerfacc, native"):
        MARCHERS.resolve("triton")
    with pytest.raises(BackendError, match="runs on cpu, got tensors on cuda"):
        ENCODERS.resolve("native", "cuda")


def test_without_a_compiler_torch_is_used(monkeypatch):
    monkeypatch.setitem(vars(ENCODERS["native"]), "missing", "no C++ compiler was found")
    with pytest.warns(UserWarning, match="'torch' runs instead of 'native': no C"):
        assert ENCODERS.resolve("auto", "cpu").name == "torch"
    with pytest.raises(BackendError, match="no C\\+\\+ compiler was found; or use backend 'torch'"):
        ENCODERS.resolve("native")
    module = torch.nn.Module()
    module.table = torch.nn.Parameter(torch.ones(4, 2))
    optimizer = RowAdam(module.named_parameters(), lr=0.1)
    module.table.grad = torch.eye(4)[:, :2].clone()
    monkeypatch.setattr(native, "row_adam", None)
    optimizer.step()  # not by the kernel
    assert module.table[:2].detach().ne(1).any(1).all()


def test_tables_travel_to_tiny_cuda_nn_and_back():
    levels = Levels.geometric(4, 2, 10, 8, 64)
    table = torch.rand(levels.total, 2)
    params = tcnn.to_params(table, levels)
    assert params.shape == (levels.total * 2,)
    assert torch.equal(params[2:4], table[1])
    assert torch.equal(tcnn.from_params(params, levels), table)
    with pytest.raises(ShapeError, match="same level table, and without network weights"):
        tcnn.from_params(params[1:], levels)
    assert tcnn.config(levels)["per_level_scale"] == pytest.approx(2.0)


def tcnns_levels(config):
    """Vertices and rows of each level as tiny-cuda-nn's C++ computes them, by the C library."""
    libm = ctypes.CDLL(ctypes.util.find_library("m"))
    for name in ("exp2f", "log2f"):
        function = getattr(libm, name)
        function.restype, function.argtypes = ctypes.c_float, [ctypes.c_float]
    growth = np.float32(libm.log2f(config["per_level_scale"]))
    found = []
    for level in range(config["n_levels"]):
        power = np.float32(libm.exp2f(np.float32(level) * growth))
        scale = power * np.float32(config["base_resolution"]) - np.float32(1)
        side = int(np.ceil(scale)) + 1
        found.append((side, min(-(-(side**3) // 8) * 8, 2 ** config["log2_hashmap_size"])))
    return found


@pytest.mark.skipif(not ctypes.util.find_library("m"), reason="there is no C library of this name")
def test_level_tables_are_those_of_tiny_cuda_nn():
    """1,104 configurations; 27 had another dense resolution when powers were of float64."""
    finest = (96, 128, 200, 256, 300, 512, 777, 1024, 1500, 2048, 3000, 4096)
    for count, base, end in product(range(2, 25), (4, 8, 16, 32), finest):
        levels = Levels.geometric(count, 2, 19, base, end)
        ours = list(zip(levels.resolution, levels.rows, strict=True))
        assert tcnns_levels(tcnn.config(levels)) == ours, (count, base, end)


def test_a_table_of_other_arithmetic_is_not_exported():
    levels = Levels.geometric(4, 2, 10, 8, 64)
    scale = tuple(value + 0.2 * k for k, value in enumerate(levels.scale))
    resolution = tuple(math.ceil(value) + 1 for value in scale)
    rows = tuple(min(-(-(n**3) // 8) * 8, 2**10) for n in resolution)
    offset = tuple(sum(rows[:k]) for k in range(4))
    with pytest.raises(BackendError, match="would resolve these levels otherwise"):
        tcnn.config(Levels(2, scale, resolution, rows, offset))


def lazy_reference(table, gradients, lr):
    """torch's SparseAdam on the rows that have a gradient."""
    table = torch.nn.Parameter(table.clone())
    optimizer = torch.optim.SparseAdam([table], lr=lr, betas=(0.9, 0.99), eps=1e-8)
    for gradient in gradients:
        rows = gradient.any(dim=1).nonzero()[:, 0]
        table.grad = torch.sparse_coo_tensor(
            rows[None], gradient[rows], table.shape, check_invariants=True
        )
        optimizer.step()
    return table.detach()


@pytest.mark.parametrize("kind", ["native", "torch", "sparse"])
def test_row_adam_is_torchs_sparse_adam(kind, monkeypatch):
    draw = torch.Generator().manual_seed(1)
    start = torch.randn(50, 2, generator=draw)
    gradients = []
    for _ in range(6):
        gradient = torch.randn(50, 2, generator=draw)
        gradient[torch.rand(50, generator=draw) < 0.6] = 0
        gradients.append(gradient)
    module = torch.nn.Module()
    module.table = torch.nn.Parameter(start.clone())
    optimizer = RowAdam(module.named_parameters(), lr=0.05, eps=1e-8)
    if kind == "torch":
        monkeypatch.setattr("potstill.nerf.optim._is_native", lambda tensors: False)
    for gradient in gradients:
        module.table.grad = gradient.to_sparse(1) if kind == "sparse" else gradient.clone()
        optimizer.step()
    expected = lazy_reference(start, gradients, 0.05)
    torch.testing.assert_close(module.table.detach(), expected, rtol=1e-5, atol=1e-6)


def test_row_adam_leaves_untouched_rows_alone_and_reuses_its_buffer():
    levels = Levels.geometric(4, 2, 12, 8, 128)
    module = torch.nn.Module()
    module.table = torch.nn.Parameter(torch.rand(levels.total, 2))
    before = module.table.detach().clone()
    optimizer = RowAdam(module.named_parameters(), lr=0.1)
    x = torch.rand(5, 3)
    addresses = set()
    for _ in range(3):
        native.encode(x, module.table, levels).square().sum().backward()
        addresses.add(module.table.grad.data_ptr())
        live = module.table.grad.any(dim=1)
        lent = POOL._lent
        assert lent is not None
        assert int(lent[3].sum()) < len(lent[3])  # the flags say that most blocks are untouched
        optimizer.step()
        optimizer.zero_grad()
    assert len(addresses) == 1
    moved = (module.table.detach() != before).any(dim=1)
    assert torch.equal(moved, live)
    assert 0 < int(live.sum()) < levels.total


def test_a_changed_gradient_is_read_in_full():
    """Flags are only trusted for a gradient that nobody else has written to."""
    table = torch.nn.Parameter(torch.zeros(64, 2))
    gradient, flags, fresh = POOL.take(table)
    assert fresh
    gradient[3] = 1.0
    assert POOL.flags(gradient).all()
    assert not flags.any()


def test_gradients_accumulate_over_several_backwards():
    levels = Levels.geometric(3, 2, 8, 4, 32)
    start = torch.rand(levels.total, 2)
    first, second = torch.rand(20, 3), torch.rand(20, 3)
    results = []
    for parts in ([first, second], [torch.cat([first, second])]):
        module = torch.nn.Module()
        module.table = torch.nn.Parameter(start.clone())
        optimizer = RowAdam(module.named_parameters(), lr=0.1)
        for part in parts:
            native.encode(part, module.table, levels).sum().backward()
        optimizer.step()
        results.append(module.table.detach())
    torch.testing.assert_close(*results)


def test_row_adam_needs_names():
    with pytest.raises(ConfigError, match=r"\(name, parameter\) pairs"):
        RowAdam([torch.nn.Parameter(torch.zeros(1))])
