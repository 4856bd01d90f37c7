"""Backends against the network, at sizes that exporters like to fix."""

import pytest
import torch

from potstill.core.errors import BackendError, ConfigError
from potstill.core.testing import requires_cuda, with_package
from potstill.sr import IMDN_RTC, export_onnx, load_model, upscale
from potstill.sr.backends import make_runner

SIZES = [(1, 1), (2, 2), (16, 16), (37, 53), (64, 9)]


@pytest.mark.data
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


@pytest.mark.data
@pytest.mark.slow  # Set5 twice with the published network
def test_mixed_bf16_costs_less_than_a_hundredth_of_a_decibel(official):
    from potstill.sr.evaluate import evaluate, find_set, mean

    model = load_model(official("IMDN_x4"))
    full, mixed = (
        mean(evaluate(model, find_set("Set5"), precision=p)).ours.psnr for p in ("fp32", "bf16")
    )
    assert abs(full - mixed) <= 0.01


@requires_cuda
def test_cuda_equals_the_cpu(tiny):
    x = torch.rand(1, 3, 33, 47)
    for tile in ("none", 16):
        cpu = upscale(x, tiny, device="cpu", tile=tile).image
        gpu = upscale(x, tiny.to("cuda"), device="cuda", tile=tile).image
        torch.testing.assert_close(gpu.cpu(), cpu, rtol=0, atol=1e-4)


def test_bad_choices(tiny, monkeypatch):
    with pytest.raises(
        ConfigError, match="backend must be one of torch, onnx, openvino, got 'ncnn'"
    ):
        make_runner(tiny, "ncnn")
    with pytest.raises(ConfigError, match="precision must be fp32 or bf16, got 'fp16'"):
        make_runner(tiny, precision="fp16")
    with pytest.raises(ConfigError, match="device must be auto, cpu, cuda or mps, got 'tpu'"):
        make_runner(tiny, device="tpu")
    if not torch.cuda.is_available():
        with pytest.raises(BackendError, match="device 'cuda' is not available here; install"):
            make_runner(tiny, device="cuda")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        BackendError, match=r"needs openvino; pip install 'potstill-sr\[openvino\]'"
    ):
        make_runner(tiny, "openvino")
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="backend 'onnx' runs in fp32 on the CPU, got bf16"):
        make_runner(tiny, "onnx", "bf16")
    with pytest.raises(ConfigError, match="tile_mode 'exact' needs backend 'torch', got 'onnx'"):
        upscale(torch.rand(1, 3, 8, 8), tiny, backend="onnx", tile_mode="exact")


def test_export_gates_of_a_network_without_them(tmp_path):
    with pytest.raises(ConfigError, match="IMDN_RTC has no gates"):
        export_onnx(IMDN_RTC(8, 1), tmp_path / "net.onnx", gates=True)
