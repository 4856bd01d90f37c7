"""The module itself: modes, gradients that reach the gate, recording."""

import pytest
import torch

from potstill.acm import ACM, acms, forced, record_gates, set_mode
from potstill.core.errors import ConfigError, ShapeError


@pytest.fixture
def acm():
    module = ACM(8, 8, bounds=(0, 4, 8, 12, 16))
    with torch.no_grad():
        module.gate.choose.weight.normal_(std=2.0)
        module.gate.choose.bias.zero_()
        module.shift.normal_()
        module.bias.normal_()
    return module


def test_each_mode_gives_its_prefix(acm):
    x = torch.randn(3, 5, 8)
    prefixes = acm.eval().prefixes(x)
    assert prefixes.shape == (5, 3, 5, 8)
    assert not prefixes[0].any()
    for k in range(5):
        set_mode(acm, k)
        torch.testing.assert_close(acm(x), prefixes[k])
    set_mode(acm, "gated")
    k = acm.gate.pick(x)
    assert len(k.unique()) > 1
    expected = prefixes.permute(1, 2, 0, 3).gather(2, k[..., None, None].expand(-1, -1, 1, 8))
    torch.testing.assert_close(acm(x), expected.squeeze(2), atol=1e-5, rtol=1e-5)


def test_fractions_are_numbers_of_learners(acm):
    assert set_mode(acm, 0.5).mode == 2
    assert set_mode(acm, 1.0).mode == 4
    assert set_mode(acm, 1).mode == 1
    assert set_mode(acm, 0.0).mode == 0


def test_training_equals_the_paper_sum_over_choices(acm):
    """sum_k one_hot_k h(z, k), with the noise of the same seed."""
    x = torch.randn(2, 7, 8)
    acm.train()
    torch.manual_seed(5)
    y = acm(x)
    torch.manual_seed(5)
    one_hot = acm.gate.sample(x.reshape(-1, 8)).unflatten(0, (2, 7))
    expected = torch.einsum("btk,kbto->bto", one_hot, acm.prefixes(x))
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)
    aim = torch.randn_like(y)
    weights = list(acm.parameters())
    mine = torch.autograd.grad((y * aim).sum(), weights)
    theirs = torch.autograd.grad((expected * aim).sum(), weights)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_the_task_reaches_the_gate(acm):
    """Kills fault 2 of the public code, where no gradient of the task came to the gate."""
    acm.train()(torch.randn(2, 9, 8)).square().sum().backward()
    for parameter in acm.gate.parameters():
        assert parameter.grad is not None
        assert float(parameter.grad.abs().max()) > 0


def test_a_projection_always_runs_a_learner():
    acm = ACM(8, 6, bounds=(0, 2, 4), activation="identity", least=1)
    assert acm.gate.choices == 2
    x = torch.randn(4, 8)
    acm.train()(x).sum().backward()
    assert float(acm.gate.rise.weight.grad.abs().max()) > 0
    with record_gates(acm.eval()) as readings:
        acm(x)
    assert int(readings[""].choices.min()) >= 1
    with pytest.raises(ConfigError, match="must be from 1 to 2, got 0"):
        set_mode(acm, 0)


def test_recording_changes_nothing_and_counts(lively, images):
    with torch.no_grad():
        plain = lively(images)
        with record_gates(lively) as readings:
            recorded = lively(images)
    assert torch.equal(plain, recorded)
    assert list(readings) == list(acms(lively))
    for reading in readings.values():
        assert reading.choices.shape == (6, 17)
        assert reading.soft.shape == (6, 17, 5)
        per_token = torch.tensor([0, 24, 48, 72, 96]) * 48
        torch.testing.assert_close(reading.spent, per_token[reading.choices].sum(1).float())
    assert all(acm._recorder is None for acm in acms(lively).values())


def test_all_tokens_may_choose_nothing(acm):
    x = torch.randn(3, 8)
    with forced(acm.eval(), {"": torch.zeros(3, dtype=torch.long)}):
        assert not acm(x).any()
    acm.train()
    with torch.no_grad():
        acm.gate.choose.bias.copy_(torch.tensor([1e4, 0, 0, 0, 0]))
    y = acm(x)
    assert not y.any()
    y.sum().backward()  # nothing breaks


def test_a_single_token_and_higher_dimensions(acm):
    acm.eval()
    x = torch.randn(1, 8)
    torch.testing.assert_close(acm(x), acm(x[None, None])[0, 0])


def test_ties_go_to_the_lowest_index_in_half_precision(acm):
    half = acm.eval().bfloat16()
    with torch.no_grad():
        half.gate.choose.weight.zero_()
        half.gate.choose.bias.copy_(torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0]))
    assert half.gate.pick(torch.randn(50, 8).bfloat16()).unique().tolist() == [1]


def test_an_untrained_gate_takes_all():
    acm = ACM(8, 8, bounds=(0, 4, 8)).eval()
    assert acm.gate.pick(0.1 * torch.randn(20, 8)).unique().tolist() == [2]


def test_bad_input(acm, adaptive):
    with pytest.raises(ShapeError, match=r"x must be \[\.\.\., 8\], got \[2, 9\]"):
        acm(torch.randn(2, 9))
    with pytest.raises(ConfigError, match=r"learners of '' must be from 0 to 4, got 5"):
        set_mode(acm, 5)
    with pytest.raises(ConfigError, match=r"must be from 0 to 4, got -1"):
        set_mode(acm, -1)
    with pytest.raises(ConfigError, match=r"fraction must be in \[0, 1\], got 1.5"):
        set_mode(acm, 1.5)
    with pytest.raises(ConfigError, match="mode must be 'gated', 'image', a number of learners"):
        set_mode(acm, "dense")
    with pytest.raises(ConfigError, match="did you mean 'blocks.1.mlp'"):
        set_mode(adaptive, {"blocks.1.mpl": 2})
    with pytest.raises(ConfigError, match="must have adaptive modules, got a Linear without"):
        set_mode(torch.nn.Linear(2, 2), 1)
    with pytest.raises(ConfigError, match="temperature must be positive, got 0"):
        ACM(8, 8, bounds=(0, 4), temperature=0)
    with pytest.raises(ConfigError, match="least must be from 0 to 1 learners, got 2"):
        ACM(8, 8, bounds=(0, 4), least=2)
    with pytest.raises(ConfigError, match="activation must be one of .* did you mean 'gelu'"):
        ACM(8, 8, bounds=(0, 4), activation="gleu")
    with (
        pytest.raises(ConfigError, match="choices of '' must be from 0 to 4, got 0 to 7"),
        forced(acm, {"": torch.tensor([0, 7])}),
    ):
        pass
    with (
        pytest.raises(ShapeError, match="one for each of the 3 tokens, got"),
        forced(acm.eval(), {"": torch.tensor([1, 1])}),
    ):
        acm(torch.randn(3, 8))
    assert acm._forced is None


@pytest.mark.parametrize("shape", [(4, 5, 8), (4, 2, 3, 8), (1, 5, 8)])
def test_whole_images_choose_by_the_mean_of_their_tokens(shape):
    acm = ACM(8, 8, bounds=(0, 4, 8, 12)).eval()
    torch.nn.init.normal_(acm.gate.choose.weight, std=20.0)
    x = 4 * torch.randn(shape[0], *(1,) * (len(shape) - 2), 8) + 0.1 * torch.randn(shape)
    with torch.no_grad(), record_gates(acm) as readings:
        y = set_mode(acm, "image")(x)
        chosen = acm.gate(x).flatten(1, -2).mean(1).argmax(-1)
        expected = torch.stack([acm.prefixes(image)[k] for image, k in zip(x, chosen, strict=True)])
    torch.testing.assert_close(y, expected)
    assert shape[0] == 1 or len(chosen.unique()) > 1
    assert torch.equal(readings[""].choices.flatten(1)[:, 0], chosen)
    assert bool((readings[""].choices.flatten(1) == chosen[:, None]).all())
    whole = torch.compile(acm, backend="aot_eager")  # in a graph, by tokens
    if shape == (4, 5, 8):
        with torch.no_grad():
            torch.testing.assert_close(whole(x), expected)
