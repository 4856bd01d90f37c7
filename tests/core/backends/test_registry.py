"""One registry: what runs here, what is taken, and what a refusal says."""

import pytest
import torch

from potstill.core.backends import Backend, Backends
from potstill.core.errors import BackendError, ConfigError

GPU = torch.cuda.is_available()


def broken():
    raise BackendError("compiling failed")


def backends(**options):
    return Backends(
        "double",
        Backend("fused", "one kernel", lambda x: 2 * x, ("cuda",)),
        Backend("native", "C++", lambda x: x + x, ("cpu",), **options),
        Backend("torch", "the reference", lambda x: x * 2),
    )


def test_auto_takes_the_first_that_runs_on_the_device():
    assert backends().resolve("auto", "cpu").name == "native"
    assert backends().resolve("auto", torch.device("cuda:0")).name == ("fused" if GPU else "torch")
    assert backends().resolve("auto", "mps").name == "torch"
    with pytest.warns(UserWarning, match="'torch' runs instead of 'native': compiling failed"):
        assert backends(check=broken).resolve("auto", "cpu").name == "torch"
    assert backends(packages=("no_such_package",)).resolve("auto", "cpu").name == "torch"
    assert backends().resolve("native", "cpu").run(3) == 6


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"check": broken}, "compiling failed"),
        ({"packages": ("no_such_package",)}, r"No module .*\); pip install no_such_package"),
        ({"packages": ("no_such_package",), "install": "apt install it"}, "; apt install it"),
    ],
)
def test_a_named_one_is_refused_with_the_reason_and_never_replaced(options, why):
    with pytest.raises(
        BackendError, match=f"double: backend 'native' cannot run here: .*{why}; or use .*'torch'"
    ):
        backends(**options).resolve("native", "cpu")


def test_a_named_one_is_refused_on_another_device():
    with pytest.raises(BackendError, match="'native' .*: it runs on cpu, got tensors on mps; or"):
        backends().resolve("native", "mps")
    assert backends().resolve("native").name == "native", "no device, no question"
    assert backends().resolve("torch", "mps").name == "torch"


def test_what_a_backend_lacks_is_not_asked_of_it():
    double = backends(lacks=("float64",))
    assert double.resolve("auto", "cpu").name == double.resolve("native", "cpu").name == "native"
    assert double.resolve("auto", "cpu", ("float64",)).name == "torch"
    with pytest.raises(BackendError, match="it does not do float64; or use backend 'torch'"):
        double.resolve("native", "cpu", ("float64",))


def test_advice_is_made_for_this_machine_and_only_when_it_is_asked_for():
    made = Backend("x", "", abs, packages=("no_such_package",), install=lambda: "build for 89")
    assert made.missing.endswith("; build for 89")


@pytest.mark.skipif(GPU, reason="needs a machine without CUDA")
def test_a_cuda_backend_says_first_that_there_is_no_gpu():
    backend = Backend("fused", "one kernel", abs, ("cuda",), ("no_such_package",))
    assert backend.missing == "torch finds no CUDA device"


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="double: .* got 'nativ'; did you mean 'native'"):
        backends().resolve("nativ")
    with pytest.raises(ConfigError, match="got 'cpu'; known: auto, fused, native, torch"):
        backends()["cpu"]


def test_what_is_missing_is_looked_for_once():
    calls = []
    double = backends(check=lambda: calls.append(1))
    for _ in range(3):
        double.resolve("auto", "cpu")
    assert calls == [1]


def test_rows_say_what_runs_and_why_not():
    fused, native, torch_row = backends(check=broken).rows()
    assert torch_row == {
        "backend": "torch",
        "device": "any",
        "does": "double",
        "available": "yes",
        "about": "the reference",
    }
    assert (native["device"], native["available"], native["about"]) == (
        *("cpu", "no"),
        "compiling failed",
    )
    assert fused["available"] == ("yes" if GPU else "no")
