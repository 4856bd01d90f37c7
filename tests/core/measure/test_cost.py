import multiprocessing
import os
import time

import numpy as np
import pytest
import torch
from torch import nn

from potstill.core.errors import BackendError, ConfigError
from potstill.core.measure.counts import count_macs, count_parameters
from potstill.core.measure.machine import Load, copy_bandwidth, gemm_peak
from potstill.core.measure.memory import peak_memory
from potstill.core.measure.timing import Timing, latency, time_block
from potstill.core.testing import requires_cuda

MIB = 2**20


def test_parameters_count_shared_ones_once():
    layer = nn.Linear(3, 3)
    model = nn.Sequential(layer, nn.BatchNorm1d(3), layer)
    assert count_parameters(model) == 12 + 6
    layer.weight.requires_grad_(False)
    assert count_parameters(model, trainable=True) == 3 + 6


@pytest.mark.parametrize(
    ("model", "shape", "macs"),
    [
        (nn.Linear(5, 7), (2, 5), 2 * 5 * 7),
        (nn.Conv2d(3, 8, 3, padding=1), (1, 3, 10, 12), 10 * 12 * 8 * 27),
        (nn.Conv2d(8, 8, 3, padding=1, groups=8), (1, 8, 10, 12), 10 * 12 * 8 * 9),
        (nn.Sequential(nn.ReLU(), nn.BatchNorm1d(5), nn.Linear(5, 1)), (4, 5), 20),
        (torch.relu, (4, 5), 0),
        (lambda x: torch.ones(4, 3).addmm_(x, torch.ones(5, 3)), (4, 5), 60),
        (lambda x: torch.ones(2, 4, 3).baddbmm_(x, torch.ones(2, 5, 3)), (2, 4, 5), 120),
    ],
)
def test_macs_in_closed_form(model, shape, macs):
    assert count_macs(model, torch.zeros(shape)) == macs


def test_macs_see_through_the_fused_transformer_layer():
    n, d, h = 6, 8, 16
    layer = nn.TransformerEncoderLayer(d, 2, h, batch_first=True)
    expected = n * d * (4 * d + 2 * h) + 2 * n * n * d
    assert count_macs(layer, torch.zeros(1, n, d)) == expected
    assert torch.backends.mha.get_fastpath_enabled()


def test_macs_leave_the_model_as_it_was():
    model = nn.Sequential(nn.BatchNorm1d(5), nn.Dropout().eval())
    count_macs(model, torch.randn(4, 5))
    assert (model.training, model[0].training, model[1].training) == (True, True, False)
    assert model[0].num_batches_tracked == 0


def test_timing_quantiles():
    timing = Timing(tuple(float(v) for v in (5, 1, 4, 2, 3, 6)), calls=1)
    values = np.quantile([1, 2, 3, 4, 5, 6], [0.2, 0.5, 0.8])
    np.testing.assert_allclose((timing.p20, timing.median, timing.p80), values)
    assert "ms" in str(timing)


@pytest.mark.parametrize("clock", ["wall", "cpu"])
def test_latency_fills_its_blocks(clock):
    timing = latency(sum, range(2000), blocks=4, block_seconds=0.004, clock=clock)
    assert len(timing.seconds) == 4
    assert timing.calls > 1
    assert 0 < timing.p20 <= timing.median <= timing.p80


def test_latency_of_a_sleep_is_its_length_and_no_cpu_time():
    assert latency(time.sleep, 0.01, blocks=3, block_seconds=0.01, warmup=0).median >= 0.01
    start = time.process_time()
    assert time_block(lambda: time.sleep(0.05), 1, "cpu") <= time.process_time() - start + 1e-9


def test_latency_counts_its_calls():
    seen = []
    timing = latency(lambda x, y=0: seen.append((x, y)), 1, y=2, blocks=2, block_seconds=1e-5)
    assert set(seen) == {(1, 2)}
    assert len(seen) >= 3 + 2 * timing.calls


@pytest.mark.parametrize("options", [{"blocks": 0}, {"block_seconds": 0}, {"clock": "sundial"}])
def test_latency_refuses_bad_options(options):
    with pytest.raises(ConfigError):
        latency(sum, [1], **options)


def test_peak_memory_of_an_allocation():
    memory = peak_memory(np.ones, 8 * MIB)  # 64 MiB, touched
    assert 63 * MIB <= memory.extra < 80 * MIB  # the kernel's count lags by some pages
    assert "MiB" in str(memory)


def test_peak_memory_does_not_see_the_parent_or_the_inputs():
    ballast = np.ones(40 * MIB)  # 320 MiB here must not hide 16 MiB there
    memory = peak_memory(torch.add, 2, 4 * MIB, prepare=torch.ones)  # two rows of 16 MiB
    assert 15 * MIB <= memory.extra < 30 * MIB
    assert ballast[0] == 1


def test_peak_memory_reports_what_goes_wrong():
    with pytest.raises(ConfigError, match="importable by name"):
        peak_memory(lambda: None)
    with pytest.raises(BackendError, match="ValueError"):
        peak_memory(np.ones, -1)
    with pytest.raises(BackendError, match="exit code 3"):
        peak_memory(os._exit, 3)
    assert not multiprocessing.active_children()


def test_peak_memory_without_cuda():
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(BackendError, match="install a CUDA build"):
        peak_memory(torch.zeros, 4, device="cuda")


@requires_cuda
def test_peak_memory_on_cuda():
    def double(x):
        return x + x

    memory = peak_memory(double, torch.ones(MIB, device="cuda"), device="cuda")
    assert memory.extra == 4 * MIB
    assert copy_bandwidth("cuda", 64) > 1e10
    assert gemm_peak("cuda", torch.float16) > 1e11


def test_limits_of_the_machine_are_measured_once():
    assert copy_bandwidth("cpu", 4) == copy_bandwidth("cpu", 4) > 1e8
    assert gemm_peak("cpu", torch.float32, 128) == gemm_peak("cpu", torch.float32, 128) > 1e8


def test_load_is_what_others_do(monkeypatch):
    readings = iter([(0.0, 10.0, 3.0), (2.0, 13.0, 4.5)])
    monkeypatch.setattr(Load, "_read", staticmethod(lambda: next(readings)))
    with Load() as load:
        pass
    assert load.others == pytest.approx((3.0 - 1.5) / 2.0)
