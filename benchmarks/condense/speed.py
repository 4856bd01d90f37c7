"""A step of matching against the public loop over classes, and the memory of trajectories.

python -m benchmarks condense --check
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potstill.condense import (
    AttentionMatching,
    DistributionMatching,
    Siamese,
    SyntheticImages,
    make_network,
    rollout,
)
from potstill.core import peak_memory
from potstill.core.measure.bench import Figure, Pair, at_least, at_most, benchmark, close

CLASSES, REAL, NAME = 10, 64, "convnet-3-32-instance"
PROMISED = "issue 22: a step three times as fast as the loop over classes"


def step_pair(attention: bool) -> Pair:
    """One step on CIFAR-sized images: 10 classes, 64 real and 1 synthetic image of each."""
    rng = torch.Generator().manual_seed(0)
    real = torch.randn(CLASSES * REAL, 3, 32, 32, generator=rng)
    start = torch.randn(CLASSES, 3, 32, 32, generator=rng)
    student = SyntheticImages(start, torch.arange(CLASSES))
    network = make_network(NAME, CLASSES, (3, 32, 32))
    kind = AttentionMatching if attention else DistributionMatching
    distiller = kind(student, network, Siamese())

    def ours() -> Tensor:
        torch.manual_seed(1)
        student.images.grad = None
        losses = distiller(real, 0)
        losses.total.backward()
        return losses.total.detach()

    def baseline() -> Tensor:
        torch.manual_seed(1)
        student.images.grad = None
        total = loop_over_classes(network, student.images, real, CLASSES, attention)
        total.backward()
        return total.detach()

    return Pair(ours, baseline, close(1e-4, 1e-4), work=1, unit="steps/s")


def loop_over_classes(
    network: nn.Module, images: Tensor, real: Tensor, classes: int, attention: bool
) -> Tensor:
    """What the public programs do: new weights, then one class after another.

    Each class is augmented by itself and has a forward of its own for real and for synthetic
    images, with torch's pooling and, for DataDAM, powers, as the programs have them.
    """
    for module in network.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    siamese = Siamese()
    draw = siamese.draw(classes, size=(images.shape[-2], images.shape[-1]))
    each, ipc = len(real) // classes, len(images) // classes
    total = images.new_zeros(())
    for c in range(classes):
        own = type(draw)(*(part[c : c + 1] for part in draw))
        seen = siamese(real[c * each : (c + 1) * each], own, each)
        made = siamese(images[c * ipc : (c + 1) * ipc], own, ipc)
        layers, wanted = plain_forward(network, seen)
        found_layers, found = plain_forward(network, made)
        mean = (wanted.detach().mean(0) - found.mean(0)).square().sum()
        if not attention:
            total = total + mean
            continue
        maps = [
            (plain_map(a).detach().mean(0) - plain_map(b).mean(0)).square().sum()
            for a, b in zip(layers[:-1], found_layers[:-1], strict=True)
        ]
        total = total + 100 * torch.stack(maps).sum() + mean
    return total


def plain_forward(network: Any, x: Tensor) -> tuple[list[Tensor], Tensor]:
    """Activations and features of a `ConvNet`, written as the public programs do."""
    found = []
    for block in network.blocks:
        found.append(x := block(x))
        x = F.avg_pool2d(x, 2)
    return found, x.flatten(1)


def plain_map(activation: Tensor, power: float = 4.0) -> Tensor:
    """Attention map of DataDAM, written as in the authors' program."""
    return F.normalize(activation.abs().pow(power).sum(1).flatten(1), dim=1)


@benchmark(targets=at_least(3.0, PROMISED), threads=1)
def dm_step() -> Pair:
    """A step of DM."""
    return step_pair(False)


@benchmark(targets=at_least(3.0, PROMISED), threads=1)
def datadam_step() -> Pair:
    """A step of DataDAM."""
    return step_pair(True)


def roll(steps: int) -> Callable[[], None]:
    """Gradient of ``steps`` inner steps in the form of TESLA, a large batch each."""
    network = make_network("convnet-2-16-instance", 10, (3, 32, 32))
    from potstill.condense import SyntheticImages as Images

    images = Images(torch.randn(64, 3, 32, 32), torch.arange(10).repeat(7)[:64])
    theta = torch.cat([p.detach().flatten() for p in network.parameters()])

    def loss(weights: Tensor, _: int, x: Tensor, __: Tensor | None) -> Tensor:
        from torch.func import functional_call

        named, at = {}, 0
        for name, parameter in network.named_parameters():
            named[name] = weights[at : at + parameter.numel()].view_as(parameter)
            at += parameter.numel()
        logits = functional_call(network, named, (x,))
        return torch.nn.functional.cross_entropy(logits, images.labels)

    def run() -> None:
        rate = torch.tensor(0.01)
        end = rollout(loss, theta, images.images, None, rate, steps, exact=False)
        end.square().sum().backward()

    return run


def run_10() -> None:
    roll(10)()


def run_80() -> None:
    roll(80)()


@benchmark(targets={"growth": at_most(1.1, "issue 22: memory does not grow with the steps")})
def tesla_memory() -> dict[str, Figure]:
    """Peak memory of TESLA's gradient at 80 inner steps over that at 10."""
    ten, eighty = (peak_memory(call).peak for call in (run_10, run_80))
    return {
        "growth": Figure(eighty / ten, "x"), "10 steps": Figure(ten / 2**20, "MiB"),
        "80 steps": Figure(eighty / 2**20, "MiB"),
    }  # fmt: skip
