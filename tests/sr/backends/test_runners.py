"""Backends against the network, at sizes that exporters like to fix."""

import dataclasses
import shutil
import sys
import warnings
from types import SimpleNamespace

import pytest
import torch

from potstill.core.errors import BackendError, ConfigError
from potstill.core.testing import requires_cuda, requires_data, with_package
from potstill.sr import IMDN, IMDN_AS, IMDN_RTC, export_onnx, load_model, upscale
from potstill.sr.backends.onegraph import OneGraph
from potstill.sr.backends.precisions import exact_floats
from potstill.sr.backends.runners import BACKENDS, make_runner

pytestmark = pytest.mark.filterwarnings("ignore:upscale. bf16 has no instructions")

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++", "cl"))), reason="needs a C++ compiler"
)
SIZES = [(1, 1), (2, 2), (16, 16), (37, 53), (64, 9)]


@requires_data("sr/safetensors")
@with_package("onnx", "onnxscript", "onnxruntime")
def test_onnx_equals_the_network_at_any_size(official):
    model = load_model(official("IMDN_x2"))
    runner = make_runner(model, "onnx")
    for size in SIZES:
        x = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            assert (runner(x) - model(x)).abs().max() <= 2e-5, size


@with_package("onnx", "onnxscript", "onnxruntime")
def test_onnx_takes_gates_and_batches(tiny, tmp_path):
    import onnxruntime

    gates = torch.rand(2, 8)
    x = torch.rand(3, 3, 9, 11)
    path = export_onnx(tiny, tmp_path / "net.onnx", gates=True)
    session = onnxruntime.InferenceSession(path)
    names = [slot.name for slot in session.get_inputs()]
    found = session.run(None, dict(zip(names, (x.numpy(), gates.numpy()), strict=True)))[0]
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), tiny(x, gates), rtol=0, atol=2e-5)


@with_package("onnx", "onnxscript", "onnxruntime")
def test_onnx_tiles_share_gates(tiny):
    x = torch.rand(1, 3, 40, 41)
    whole = upscale(x, tiny).image
    made = upscale(x, tiny, backend="onnx", tile=16, tile_mode="recompute")
    torch.testing.assert_close(made.image, whole, rtol=0, atol=2e-5)


@with_package("onnx", "onnxscript", "openvino")
def test_openvino_equals_the_network(tiny):
    runner = make_runner(tiny, "openvino")
    for size in SIZES[:4]:
        x = torch.rand(1, 3, *size)
        with torch.no_grad():
            torch.testing.assert_close(runner(x), tiny(x), rtol=0, atol=2e-5)


def test_mixed_bf16_is_near(tiny):
    x = torch.rand(1, 3, 20, 24)
    with torch.no_grad():
        whole = tiny(x)
    gap = (make_runner(tiny, "torch", "bf16")(x) - whole).abs().max()
    assert 0 < gap < 0.02 * whole.abs().max()


@requires_data("sr/safetensors", "sr/Set5")
@pytest.mark.slow  # Set5 twice with the published network
def test_mixed_bf16_costs_less_than_a_hundredth_of_a_decibel(official):
    from potstill.sr.evaluation.scores import evaluate, find_set, mean

    model = load_model(official("IMDN_x4"))
    full, mixed = (
        mean(evaluate(model, find_set("Set5"), precision=p)).ours.psnr for p in ("fp32", "bf16")
    )
    assert abs(full - mixed) <= 0.01


@pytest.mark.parametrize("fast", [True, False])
def test_a_precision_that_does_not_pay_or_does_not_run_says_so(tiny, monkeypatch, fast):
    monkeypatch.setattr("potstill.sr.backends.precisions.fast_bf16", lambda: fast)
    x = torch.rand(1, 3, 8, 8)
    assert upscale(x, tiny, precision="auto", device="cpu").precision == (
        "bf16" if fast else "fp32"
    )
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert upscale(x, tiny, precision="bf16", device="cpu").precision == "bf16"
    assert any("several times slower than fp32" in str(w.message) for w in said) == (not fast)
    with pytest.warns(UserWarning, match="IMDN_RTC runs in fp32 with backend 'torch'"):
        assert upscale(x, IMDN_RTC(8, 1), precision="bf16", device="cpu").precision == "fp32"


@with_package("openvino", "onnx", "onnxscript")
def test_openvino_without_bfloat16_says_so(tiny, monkeypatch):
    import openvino

    monkeypatch.setattr(
        openvino, "Core", lambda: SimpleNamespace(get_property=lambda *names: ["FP32", "INT8"])
    )
    with pytest.warns(UserWarning, match="has no bfloat16, so OpenVINO runs in fp32"):
        assert make_runner(tiny, "openvino", "bf16").precision == "fp32"
    assert make_runner(tiny, "openvino", "auto").precision == "fp32"


def test_float32_on_a_gpu_is_not_tf32():
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    with exact_floats(torch.device("cuda")):
        assert not torch.backends.cudnn.allow_tf32
        assert torch.get_float32_matmul_precision() == "highest"
    assert (torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()) == before


@requires_cuda
def test_cuda_equals_the_cpu(tiny):
    x = torch.rand(1, 3, 33, 47)
    for tile in ("none", 16):
        cpu = upscale(x, tiny, device="cpu", tile=tile).image
        gpu = upscale(x, tiny.to("cuda"), device="cuda", tile=tile).image
        torch.testing.assert_close(gpu.cpu(), cpu, rtol=0, atol=1e-4)


@with_package("onnx", "onnxscript", "onnxruntime", "openvino")
def test_bad_choices(tiny):
    with pytest.raises(ConfigError, match="got 'ncnn'; known: auto, torch, onnx, openvino"):
        make_runner(tiny, "ncnn")
    with pytest.raises(ConfigError, match="precision must be one of auto, .*, got 'int8'"):
        make_runner(tiny, precision="int8")
    with pytest.raises(ConfigError, match="precision fp16 needs a GPU, got the CPU"):
        make_runner(tiny, precision="fp16")
    with pytest.raises(ConfigError, match="device must be auto, cpu, cuda or mps, got 'tpu'"):
        make_runner(tiny, device="tpu")
    if not torch.cuda.is_available():
        with pytest.raises(BackendError, match="device='cuda' was requested, but no CUDA device"):
            make_runner(tiny, device="cuda")
    with pytest.raises(ConfigError, match="tile_mode 'exact' needs backend 'torch', got 'onnx'"):
        upscale(torch.rand(1, 3, 8, 8), tiny, backend="onnx", tile_mode="exact")
    with pytest.raises(ConfigError, match="backend 'onnx' runs in fp32 on the CPU, got bf16"):
        make_runner(tiny, "onnx", "bf16")
    with pytest.raises(BackendError, match="'openvino' .* runs on cpu, got tensors on meta; or"):
        BACKENDS.resolve("openvino", "meta")


def test_a_missing_package_is_named_with_what_installs_it(monkeypatch):
    backend = dataclasses.replace(BACKENDS["openvino"])  # which was not asked before
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert "openvino cannot be imported" in backend.missing
    assert "pip install 'potstill-sr[openvino]'" in backend.missing


def test_export_gates_of_a_network_without_them(tmp_path):
    with pytest.raises(ConfigError, match="IMDN_RTC has no gates"):
        export_onnx(IMDN_RTC(8, 1), tmp_path / "net.onnx", gates=True)


@needs_compiler
@pytest.mark.slow  # compiles five graphs
def test_compiled_equals_the_network(tiny, photograph):
    runner = make_runner(tiny, compiled=True)
    images = [torch.from_numpy(photograph).permute(2, 0, 1)[None] / 255]
    images += [torch.rand(1, 3, 21, 34), torch.full((1, 3, 16, 20), 0.7)]
    with torch.no_grad():
        for x in images:
            assert (runner(x) - tiny(x)).abs().max() <= 1e-5
        gates = torch.rand(2, 8)
        torch.testing.assert_close(
            runner(images[0], gates), tiny(images[0], gates), rtol=0, atol=1e-5
        )
        whole = tiny(images[0])
        mixed = make_runner(tiny, "torch", "bf16", compiled=True)(images[0])
    assert 0 < (mixed - whole).abs().max() < 0.02 * whole.abs().max()


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("kind", [IMDN, IMDN_AS])
def test_the_graph_before_compiling(kind, bf16):
    torch.manual_seed(0)
    skip = {} if kind is IMDN_AS else {"global_skip": "bicubic"}
    model = kind(**({} if kind is IMDN_AS else {"scale": 3}), channels=16, blocks=2, **skip).eval()
    x = torch.rand(1, 3, 24, 20)
    with torch.no_grad():
        whole, made = model(x), OneGraph(model, bf16=bf16)(x)
        assert (made - whole).abs().max() <= (0.02 * whole.abs().max() if bf16 else 1e-5)
        flat = torch.full_like(x, 0.3)  # no deviation: squares and mean must cancel
        if not bf16:
            assert (OneGraph(model)(flat) - model(flat)).abs().max() <= 1e-5
    assert model.blocks[0].conv2.weight.shape[1] == 12, "the network itself is left alone"
    assert all(p.dtype == torch.float32 for p in model.parameters())


@with_package("onnx", "onnxscript", "onnxruntime")
def test_a_network_is_exported_once_until_its_weights_change(tiny, monkeypatch):
    import potstill.sr.backends.runners as backends

    real, exports = backends.export_onnx, []

    def counted(*args, **kwargs):
        exports.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(backends, "export_onnx", counted)
    x = torch.rand(1, 3, 9, 11)
    first = upscale(x, tiny, backend="onnx").image
    assert torch.equal(upscale(x, tiny, backend="onnx").image, first)
    assert len(exports) == 1
    with torch.no_grad():
        tiny.upsampler.bias.add_(0.25)
    moved = upscale(x, tiny, backend="onnx").image
    torch.testing.assert_close(moved, first + 0.25, rtol=0, atol=2e-5)
    assert len(exports) == 2
