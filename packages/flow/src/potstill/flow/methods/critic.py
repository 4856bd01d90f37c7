"""The critic: a velocity of the student's samples, with a head that knows real ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potstill.core import ConfigError, tap
from potstill.flow.methods.draws import Batch, noise_like, times_like
from potstill.flow.teachers.velocity import Velocity

__all__ = ["Critic", "bottleneck", "discriminator_loss", "generator_loss", "matching_loss"]


class Critic(nn.Module):
    """A network that learns the student's distribution, and to tell it from the real one.

    Args:
        net: The velocity, which trains; the teacher's weights are its start.
        head: Path of a module of the network whose output tells real from made items; None for no
            head.
        shape: Shape of an item, to measure the width of that output.
        condition: Condition of one item, where the network needs one.

    Raises:
        ConfigError: The module gives no tensor.
        TapError: There is no such module.
    """

    def __init__(
        self,
        net: Velocity,
        head: str | None = None,
        shape: tuple[int, ...] = (2,),
        condition: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.net, self.path = net, head
        if head is not None:
            device = next(net.parameters()).device
            one = None if condition is None else condition.to(device)
            with torch.no_grad(), tap(net.model, head) as readings:
                net(torch.zeros(1, *shape, device=device), 0.5, one)
            width = _pooled(readings[head].output).shape[1]
            layers = nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1)
            self.head = nn.Sequential(*layers).to(device)

    def judge(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """Scores of noised items, [items]: large where they look real."""
        assert self.path is not None
        with tap(self.net.model, self.path) as readings:
            self.net(x, t, condition)
        scores: Tensor = self.head(_pooled(readings[self.path].output)).squeeze(1)
        return scores

    def lessons(
        self, made: Tensor, batch: Batch, noised: Callable[[Tensor], Any] | None
    ) -> dict[str, tuple[Any, ...]]:
        """Terms of a step: the student's samples and, with ``noised``, how real ones differ.

        Raises:
            ConfigError: There are no real items to tell them from.
        """
        times, noise = times_like(made), noise_like(made)
        terms: dict[str, tuple[Any, ...]] = {
            "denoise": self.net.target(made, noise, times, batch.condition)
        }
        if noised is not None:
            if batch.real is None:
                raise ConfigError("OneStep: the discriminator needs real items, got none")
            t, x = noised(torch.cat([made, batch.real]))
            both = None if batch.condition is None else batch.condition.repeat(2)
            terms["discriminator"] = tuple(self.judge(x, t, both).chunk(2))
        return terms


def _pooled(output: Any) -> Tensor:
    """[items width]: the mean over places of images, or over tokens."""
    if not isinstance(output, Tensor):
        raise ConfigError(f"Critic: the head's module must give a tensor, got {type(output)}")
    if output.ndim == 4:
        return output.mean((2, 3))
    return output.mean(1) if output.ndim == 3 else output


def bottleneck(model: nn.Module) -> str:
    """Where the head of a known network reads: the middle of a UNet, the last block of a DiT.

    Raises:
        ConfigError: Another kind of network.
    """
    for name in ("mid_block", "transformer_blocks", "hidden"):
        part = getattr(model, name, None)
        if isinstance(part, nn.ModuleList):
            return f"{name}.{len(part) - 1}"
        if part is not None:
            return name
    raise ConfigError(
        f"bottleneck: the module that tells real from made items must be named for "
        f"{type(model).__name__}; pass head="
    )


def matching_loss(made: Tensor, fake: Tensor, real: Tensor) -> Tensor:
    """Distribution matching: half the squared distance to ``x - g``, of which g is the gradient.

    ``g = (x_fake - x_real) / mean |x - x_real|``, the mean over each item: the difference of two
    scores, in the form of what critic and teacher make of the same noised sample.

    Source: Yin et al., DMD, CVPR 2024, Eqs. (7) and (8).

    Args:
        made: Samples x of the student, [items ...].
        fake: Clean items that the critic sees in them, noised.
        real: Clean items that the teacher sees in them.
    """
    rest = tuple(range(1, made.ndim))
    scale = (made - real).abs().mean(rest, keepdim=True).clamp_min(1e-6)
    gradient = ((fake - real) / scale).detach()
    return 0.5 * F.mse_loss(made, (made - gradient).detach())


def discriminator_loss(made: Tensor, real: Tensor) -> Tensor:
    """``softplus(made) + softplus(-real)``, means over items; scores [items] each."""
    return F.softplus(made).mean() + F.softplus(-real).mean()


def generator_loss(made: Tensor) -> Tensor:
    """``softplus(-made)``, the mean over items; scores [items]."""
    return F.softplus(-made).mean()
