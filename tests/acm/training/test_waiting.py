"""The host waits for the device in no step: nothing is read back, and nothing small is copied."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from potstill.acm import EndToEnd, GatePretraining, ModuleDistillation, acmize, acms

WAITS = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "lift_fresh", "bincount"}
"""Operators that read a value back or send one over: ``item``, ``bool``, ``torch.tensor``."""


class Watch(TorchDispatchMode):
    """Which operators made the host wait, were the tensors on a GPU."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        self.found += [name] if name in WAITS else []
        return function(*args, **(kwargs or {}))


def waits(call):
    call()  # what is copied once for each shape
    with Watch() as watch:
        call()
    return watch.found


def test_the_watch_sees_what_it_looks_for():
    x = torch.ones(2)
    assert waits(lambda: float(x.sum())) == ["_local_scalar_dense"]
    assert waits(lambda: bool(x.isfinite().all())) == ["_local_scalar_dense"]
    assert waits(lambda: torch.tensor([1, 2])) == ["lift_fresh"]
    assert waits(lambda: x.sum()) == []


@pytest.mark.parametrize("learners", [4, 5])  # 5 do not divide 96 hidden units
@pytest.mark.filterwarnings("ignore:acmize.*remainder")
@pytest.mark.parametrize("phase", [ModuleDistillation, GatePretraining, EndToEnd])
def test_a_step_of_training_does_not_wait(vit, images, phase, learners):
    student = acmize(vit, learners=learners).train()
    distiller = phase(student, 0.5 if phase is EndToEnd else vit).train()
    batch = images, torch.zeros(len(images), dtype=torch.long)
    assert waits(lambda: distiller(batch, 0).total.backward()) == []


@pytest.mark.parametrize("mode", ["gated", 2])
def test_inference_without_sorting_on_the_host_does_not_wait(vit, images, mode):
    model = acmize(vit, backend="grouped_mm").eval()
    for acm in acms(model).values():
        acm.mode = mode
    with torch.no_grad():
        assert waits(lambda: model(images)) == []
