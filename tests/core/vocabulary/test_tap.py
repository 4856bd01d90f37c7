"""Taps: they read what was asked, refuse what is not there, and leave nothing behind."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from potstill.core import Frozen, tap
from potstill.core.errors import TapError


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(3, 3) for _ in range(4))
        self.unused = nn.Linear(3, 3)
        self.calls = 0

    def forward(self, x, scale=1.0):
        for block in self.blocks:
            x = block(x) * scale
            self.calls += 1
        return x


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


X = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))


def test_it_reads_input_and_output_and_the_model_is_as_before():
    net = Net()
    with tap(net, "blocks.1", "blocks.2") as readings:
        net(X)
    torch.testing.assert_close(readings["blocks.1"].output, readings["blocks.2"].input)
    torch.testing.assert_close(readings["blocks.1"].input, net.blocks[0](X))
    assert list(readings) == ["blocks.1", "blocks.2"]
    assert hooks(net) == 0


def test_readings_carry_gradients():
    net = Net()
    with tap(net, "blocks.1") as readings:
        net(X)
    readings["blocks.1"].output.sum().backward()
    assert net.blocks[0].weight.grad is not None
    assert net.blocks[2].weight.grad is None


def test_stop_ends_the_forward_behind_the_last_tap():
    net = Net()
    with tap(net, "blocks.0", "blocks.1", stop=True) as readings:
        assert net(X) is None
    assert net.calls == 1
    assert readings["blocks.1"].output.shape == (2, 3)
    assert "forward" not in vars(net)
    assert net(X).shape == (2, 3)


def test_stop_restores_a_forward_that_belonged_to_the_instance():
    net = Net()
    own = net.forward
    net.forward = own
    with tap(net, "blocks.0", stop=True):
        net(X)
    assert vars(net)["forward"] is own


def test_keyword_inputs_are_read():
    net = Net()
    with tap(net, "blocks.0") as readings:
        net(x=X)
    assert readings["blocks.0"].input is X


@pytest.mark.parametrize("stop", [False, True])
def test_no_hook_is_left_after_an_exception(stop):
    net = Net()
    with pytest.raises(RuntimeError), tap(net, "blocks.2", stop=stop):
        net(torch.zeros(2, 5))
    assert hooks(net) == 0
    assert "forward" not in vars(net)


def test_a_misspelt_module_is_refused_at_entry():
    net = Net()
    with (
        pytest.raises(TapError, match="Net has no module 'block.1'; did you mean 'blocks.1'"),
        tap(net, "block.1"),
    ):
        pass
    with pytest.raises(TapError, match="name at least one"), tap(net):
        pass
    assert hooks(net) == 0


def test_a_module_that_was_not_reached_is_refused_on_reading():
    net = Net()
    with tap(net, "unused") as readings:
        net(X)
    with pytest.raises(TapError, match="never reached 'unused'"):
        readings["unused"]
    with pytest.raises(TapError, match="'blocks.1' is not tapped"):
        readings["blocks.1"]


def test_a_teacher_is_tapped_by_the_paths_of_its_model():
    net = Net()
    with tap(Frozen(net), "blocks.1", stop=True) as readings:
        assert Frozen(net)(X) is None
    assert not readings["blocks.1"].output.requires_grad


def test_wrapper_prefixes_need_not_be_given():
    net = nn.Module()
    net.module = Net()
    net.forward = net.module.forward
    with tap(net, "blocks.1") as readings:
        net(X)
    assert readings["blocks.1"].output.shape == (2, 3)


def test_it_works_after_the_blocks_were_compiled_in_place():
    net = Net()
    for block in net.blocks:
        block.compile(backend="eager")
    net(X)
    with tap(net, "blocks.1") as readings:
        net(X)
    torch.testing.assert_close(readings["blocks.1"].input, net.blocks[0](X))


def test_a_module_that_runs_twice_gives_its_last_reading():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1] = net[0]
    with tap(net, "0") as readings:
        out = net(X)
    assert readings["0"].output is out


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.block, self.reentrant = nn.Sequential(nn.Linear(3, 3), nn.ReLU()), reentrant

    def forward(self, x):
        return checkpoint(self.block, x, use_reentrant=self.reentrant)


def test_a_reading_without_gradient_inside_reentrant_checkpointing_warns():
    x = X.clone().requires_grad_()
    net = Checkpointed(reentrant=True)
    with tap(net, "block", "block.0") as readings:
        net(x)
    with pytest.warns(UserWarning, match="'block.0' ran without gradient.*use_reentrant=False"):
        assert not readings["block.0"].output.requires_grad
    assert readings["block"].output.requires_grad  # the whole block has one, and no warning
    assert hooks(net) == 0


@pytest.mark.parametrize("case", ["not reentrant", "frozen", "no gradient wanted"])
def test_readings_that_are_meant_to_have_no_gradient_do_not_warn(case):
    net = Checkpointed(reentrant=case == "frozen")
    if case == "frozen":
        net.requires_grad_(False)
    x = X.clone().requires_grad_(case != "no gradient wanted")
    with tap(net, "block.0") as readings, torch.set_grad_enabled(case != "no gradient wanted"):
        net(x)
    assert readings["block.0"].output.requires_grad == (case == "not reentrant")
