"""The family against a network written from the paper, which is the baseline of the benchmarks."""

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.sr.naive import NaiveIMDN
from potstill.core.store import root
from potstill.core.testing import requires_data
from potstill.sr import IMDN, load_model
from potstill.sr.backends.staged import Staged
from potstill.sr.models.weights import renamed


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_equals_the_naive_network(scale):
    torch.manual_seed(scale)
    reference = NaiveIMDN(scale, n=16, blocks=3).eval()
    model = IMDN(scale, 16, 3).eval()
    model.load_state_dict(renamed(reference.state_dict()))
    x = torch.rand(2, 3, 11, 14)
    with torch.no_grad():
        torch.testing.assert_close(model(x), reference(x), rtol=0, atol=1e-5)
        torch.testing.assert_close(Staged(model)(x[:1]), reference(x[:1]), rtol=0, atol=1e-5)


@requires_data("sr/safetensors")
@pytest.mark.parametrize("name", ["IMDN_x2", "IMDN_x3", "IMDN_x4", "IMDN_AS"])
def test_official_weights_equal_the_naive_network(name):
    path = root() / "sr" / "safetensors" / f"{name}.safetensors"
    strided = name == "IMDN_AS"
    reference = NaiveIMDN(4 if strided else int(name[-1]), strided=strided).eval()
    reference.load_state_dict(load_file(path))
    model = load_model(path)
    x = torch.rand(1, 3, 44, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = reference(x)
        torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(Staged(model)(x), expected, rtol=0, atol=1e-5)
