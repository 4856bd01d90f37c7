import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.acm import Gate
from potstill.acm.layers.gate import gate_width, tail_sums
from potstill.core.errors import ConfigError


def test_width_is_the_smallest_multiple_of_8_above_half_a_percent():
    for inputs, macs in [(384, 2 * 384 * 1536), (768, 2 * 768 * 3072), (192, 192**2)]:
        width = gate_width(inputs, 5, macs)
        assert width % 8 == 0
        assert width * (inputs + 5) >= 0.005 * macs
        assert width == 8 or (width - 8) * (inputs + 5) < 0.005 * macs


@settings(deadline=None)
@given(st.integers(0, 4), st.integers(0, 2))
def test_tail_sums_count_learners(k, least):
    k = max(k, least)
    one_hot = torch.zeros(5 - least)
    one_hot[k - least] = 1
    assert tail_sums(one_hot, least).tolist() == [1.0] * k + [0.0] * (4 - k)


def test_a_larger_tilt_never_takes_more():
    gate = Gate(6, 5)
    with torch.no_grad():
        gate.choose.weight.normal_()
        gate.choose.bias.zero_()
    x = torch.randn(200, 6)
    before = None
    for tilt in (-2.0, -0.3, 0.0, 0.1, 0.5, 30.0):
        gate.tilt.fill_(tilt)
        k = gate.pick(x)
        assert before is None or bool((k <= before).all())
        before = k
    assert int(k.max()) == 0


def test_samples_are_one_hot_and_follow_the_logits():
    gate = Gate(4, 3, temperature=0.8)
    with torch.no_grad():
        gate.choose.weight.zero_()
        gate.choose.bias.copy_(torch.tensor([0.2, 0.5, 0.3]).log())
    one_hot = gate.sample(torch.zeros(20_000, 4)).detach()
    assert bool((one_hot.sum(-1) == 1).all())
    torch.testing.assert_close(one_hot.mean(0), torch.tensor([0.2, 0.5, 0.3]), atol=0.02, rtol=0)


def test_the_certain_choice_is_what_inference_picks():
    gate = Gate(4, 3)
    with torch.no_grad():
        gate.choose.weight.normal_(std=2.0)
    x = torch.randn(50, 4)
    one_hot = gate.certain(x)
    assert torch.equal(one_hot.argmax(-1), gate.pick(x))
    torch.testing.assert_close(one_hot.sum(-1), torch.ones(50))
    aim = torch.randn(50, 3)
    (mine,) = torch.autograd.grad((one_hot * aim).sum(), gate.choose.bias)
    soft = (gate(x) / gate.temperature).softmax(-1)
    (theirs,) = torch.autograd.grad((soft * aim).sum(), gate.choose.bias)
    torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_temperature_must_be_positive(temperature):
    with pytest.raises(ConfigError, match="temperature must be positive"):
        Gate(4, 3, temperature=temperature)


def test_a_gate_needs_a_choice():
    with pytest.raises(ConfigError, match="choices must be at least 1, got 0"):
        Gate(4, 0)
