"""The gate: how many learners a token gets."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from potstill.core import ConfigError, common_draws

__all__ = ["Gate", "gate_width", "tail_sums"]


def gate_width(inputs: int, choices: int, macs: int, share: float = 0.005) -> int:
    """Hidden width of a gate: the smallest multiple of 8 that costs ``share`` of the module.

    Args:
        inputs: Width of a token.
        choices: Number of choices.
        macs: Multiply-adds of the gated module a token.
        share: Cost of the gate relative to ``macs``.

    Example:
        >>> gate_width(384, 5, macs=2 * 384 * 1536)  # an MLP of ViT-S
        16
    """
    return 8 * max(1, math.ceil(share * macs / (8 * (inputs + choices))))


class Gate(nn.Module):
    """Two layers that choose the number of learners of each token.

    Source: Wójcik et al., "Adaptive Computation Modules", AAAI 2025 (the two-layer gate and the
    straight-through Gumbel softmax). While training it draws a hard one-hot choice whose gradient
    is that of the softmax; in eval mode it takes the largest logit, the lowest of equal ones.

    Args:
        inputs: Width of a token.
        choices: Number of choices; the last one is the dearest.
        width: Hidden units.
        temperature: Temperature of the Gumbel softmax, > 0.

    Raises:
        ConfigError: A temperature that is not positive, or no choice.

    The buffer ``tilt`` is subtracted from the logits in proportion to the choice, ``logit[n] -
    tilt * n``: a larger tilt never lets a token choose more. `calibrate` sets it.
    """

    tilt: Tensor

    def __init__(
        self, inputs: int, choices: int, width: int = 16, temperature: float = 0.8
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise ConfigError(
                f"Gate: temperature must be positive, got {temperature}; 0.8 is published"
            )
        if choices < 1:
            raise ConfigError(f"Gate: choices must be at least 1, got {choices}")
        self.temperature = temperature
        self.rise = nn.Linear(inputs, width)
        self.choose = nn.Linear(width, choices)
        self.register_buffer("tilt", torch.zeros(()))
        nn.init.zeros_(self.choose.bias)
        with torch.no_grad():  # untrained, it is safe: all learners
            self.choose.bias[-1] = 4.0

    @property
    def choices(self) -> int:
        """Number of choices."""
        return self.choose.out_features

    def forward(self, x: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows choices"]:
        """Logits of the choices, tilted."""
        steps = torch.arange(self.choices, device=x.device, dtype=self.tilt.dtype)
        bias = self.choose.bias - (self.tilt * steps).to(self.choose.bias.dtype)
        return F.linear(F.gelu(self.rise(x)), self.choose.weight, bias)

    def sample(self, x: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows choices"]:
        """A random one-hot choice of each token, with the gradient of the soft choice.

        The noise of an image does not depend on how many processes there are.
        """
        logits, draws = self(x).float(), common_draws(x.device)
        noise = logits.new_empty(draws.world * len(x), *logits.shape[1:])
        noise = -noise.exponential_(generator=draws.generator).log()[draws.mine]
        soft = ((logits + noise) / self.temperature).softmax(-1)
        hard = torch.zeros_like(soft).scatter_(-1, soft.argmax(-1, keepdim=True), 1.0)
        return (hard - soft.detach() + soft).to(x.dtype)

    def certain(self, x: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows choices"]:
        """What `pick` chooses, as one-hot, with the gradient of the soft choice: no noise."""
        soft = (self(x).float() / self.temperature).softmax(-1)
        hard = torch.zeros_like(soft).scatter_(-1, soft.argmax(-1, keepdim=True), 1.0)
        return (hard + soft - soft.detach()).to(x.dtype)

    def pick(self, x: Float[Tensor, "*rows in"]) -> Int[Tensor, "*rows"]:
        """The choice of each token, without noise; of equal logits the lowest index."""
        return self(x).argmax(dim=-1)


def tail_sums(
    one_hot: Float[Tensor, "*rows choices"], least: int
) -> Float[Tensor, "*rows learners"]:
    """Weight of each learner under a (soft) choice: ``m_n = sum over k >= n of one_hot_k``.

    With it ``sum_n m_n s_n(z) = sum_k one_hot_k h(z, k)``: the task loss reaches the gate without
    the outputs of all prefixes being kept.

    Args:
        one_hot: Choices ``least`` to N.
        least: The smallest choice; that many learners always run.

    Example:
        >>> tail_sums(torch.tensor([0.0, 0.0, 1.0, 0.0]), least=0)  # k = 2 of N = 3
        tensor([1., 1., 0.])
    """
    tails = one_hot.flip(-1).cumsum(-1).flip(-1)
    if least == 0:
        return tails[..., 1:]
    always = torch.ones_like(tails[..., :1]).expand(*tails.shape[:-1], least)
    return torch.cat([always, tails[..., 1:]], dim=-1)
