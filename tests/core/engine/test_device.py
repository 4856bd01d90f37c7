"""One function turns the word of a user into a device."""

import pytest
import torch

from potstill.core.engine import Engine, resolve_device
from potstill.core.errors import BackendError, ConfigError


def machine(monkeypatch, cuda=0, mps=False):
    """Pretend a machine with so many GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"), [(1, True, "cuda"), (0, True, "mps"), (0, False, "cpu")]
)
def test_auto_is_cuda_else_mps_else_the_cpu(cuda, mps, expected, monkeypatch):
    machine(monkeypatch, cuda, mps)
    assert resolve_device("auto") == torch.device(expected)
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device(expected) == torch.device(expected)


@pytest.mark.parametrize("build", ["12.8", None])
def test_cuda_that_is_not_there_is_refused(build, monkeypatch):
    machine(monkeypatch)
    monkeypatch.setattr(torch.version, "cuda", build)
    why = "finds no GPU and driver" if build else "was built without CUDA"
    with pytest.raises(
        BackendError,
        match=f"device='cuda' was requested, but no CUDA device is available; .*{why}.*'cpu'",
    ):
        resolve_device("cuda")


def test_mps_that_is_not_there_is_refused(monkeypatch):
    machine(monkeypatch, cuda=1)
    with pytest.raises(BackendError, match="device='mps' was requested, but no MPS device"):
        resolve_device("mps")


def test_one_of_several_gpus_can_be_named_outside_of_an_engine(monkeypatch):
    machine(monkeypatch, cuda=2)
    assert resolve_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(BackendError, match="device='cuda:2' was requested, but there are 2 CUDA"):
        resolve_device("cuda:2")
    with pytest.raises(ConfigError, match="got 'cuda:1'; choose a single GPU with CUDA_VISIBLE"):
        Engine(device="cuda:1")


@pytest.mark.parametrize("word", ["tpu", "gpu", "cuda:", "cuda:-1", "cpu:0", "", "cuda:1234"])
def test_other_words_are_refused(word):
    with pytest.raises(ConfigError, match=f"must be auto, cpu, cuda or mps, got '{word}'"):
        resolve_device(word)
