"""`inject`: a model continues from a given state."""

import pytest
import torch
from torch import nn

from potstill.core import Frozen, inject, tap
from potstill.core.errors import TapError


@pytest.fixture
def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))


def hooks(net: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules())


def test_its_own_state_changes_nothing_and_gradient_reaches_the_value(net: nn.Sequential) -> None:
    teacher, x = Frozen(net), torch.randn(4, 2)
    with tap(net, "1") as readings:
        before = net(x)
    value = readings["1"].output.detach().clone().requires_grad_()
    with inject(teacher, "1", value):
        after = teacher.model(torch.zeros(4, 2))
    assert torch.equal(after, before)
    after.sum().backward()
    assert value.grad is not None
    assert bool(value.grad.any())
    assert all(p.grad is None for p in net.parameters())
    assert hooks(net) == 0


def test_what_is_wrong_is_said_and_no_hook_stays(net: nn.Sequential) -> None:
    with pytest.raises(TapError, match="no module '3'; "), inject(net, "3", torch.zeros(1)):
        pass
    wrong = inject(net, "1", torch.zeros(5, 3))
    with pytest.raises(TapError, match=r"value must be \[4, 3\] like the output of '1'"), wrong:
        net(torch.randn(4, 2))
    unused = inject(net, "1", torch.zeros(4, 3))
    with pytest.raises(TapError, match="never reached '1', so nothing was replaced"), unused:
        pass
    with pytest.raises(ZeroDivisionError), inject(net, "1", torch.zeros(4, 3)):
        raise ZeroDivisionError
    assert hooks(net) == 0
