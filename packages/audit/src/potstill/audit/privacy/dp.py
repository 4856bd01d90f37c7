"""A teacher with differential privacy: Opacus under `fit`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potstill.core import BackendError, ConfigError, Objective, fit, generator
from potstill.core.schemes import LogitDistiller

__all__ = ["Private", "fit_private"]


class Private(NamedTuple):
    """What a private training promises.

    Attributes:
        epsilon: Privacy loss of the items that it was trained on, at ``delta``.
        delta: As given.
        history: Rows of `potstill.core.fit`.
    """

    epsilon: float
    delta: float
    history: Sequence[dict[str, Any]]


def fit_private(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    noise: float,
    clip: float = 1.0,
    batch: int = 64,
    steps: int = 300,
    lr: float = 3e-3,
    delta: float = 1e-3,
    seed: int = 0,
    **options: Any,
) -> Private:
    """Train a classifier so that no single item can be told from it: DP-SGD, in place.

    Source: Abadi et al., Deep Learning with Differential Privacy, CCS 2016, by Opacus: gradients of
    single items are clipped and noised, batches are Poisson samples. The promise is about ``x``
    alone. A *student* of a private teacher inherits it as far as the teacher's items go; a private
    student of an ordinary teacher protects only its own transfer set. Batches and noise come from
    seeded generators, so that runs repeat: that is for research, not for a release.

    Args:
        model: From inputs to logits, without batch normalisation (Opacus refuses it).
        x: Inputs.
        y: Classes.
        noise: Standard deviation of the noise, in units of ``clip``.
        clip: Largest norm of an item's gradient.
        batch: Expected number of items in a batch.
        steps: Steps of Adam.
        lr: Its learning rate.
        delta: Probability with which the promise may fail; less than one over the items.
        seed: Seed of batches and noise.
        **options: Other options of `potstill.core.fit`.

    Raises:
        BackendError: Opacus is not installed.
        ConfigError: Noise or clip not positive, a batch larger than the items, or a delta out of
            range.
    """
    try:
        from opacus import GradSampleModule
        from opacus.accountants import RDPAccountant
        from opacus.optimizers import DPOptimizer
    except ImportError as error:
        raise BackendError(
            "fit_private: opacus is needed; pip install 'potstill-audit[dp]'"
        ) from error
    if not (noise > 0 and clip > 0 and 0 < batch <= len(x) and 0 < delta < 1 / len(x)):
        raise ConfigError(
            "fit_private: noise and clip must be positive, batch from 1 to the items and delta "
            f"below one over them, got {(noise, clip, batch, delta)} and {len(x)} items"
        )
    rate = batch / len(x)

    def draw(step: int, rank: int, world: int) -> tuple[Tensor, Tensor]:
        chosen = torch.rand(len(x), generator=generator("poisson", seed, step)) < rate
        rows = chosen.nonzero().squeeze(1)
        rows = rows if len(rows) else torch.tensor([step % len(x)])  # Opacus takes no empty batch
        return x[rows], y[rows]

    def optimizer(named: Any, lr: float) -> Any:
        return DPOptimizer(
            torch.optim.Adam(named, lr=lr), noise_multiplier=noise, max_grad_norm=clip,
            expected_batch_size=batch, generator=generator("noise", seed),
        )  # fmt: skip

    wrapped = GradSampleModule(model)
    distiller = LogitDistiller(wrapped, Objective(task=(1.0, F.cross_entropy)))
    try:
        with warnings.catch_warnings():  # Opacus hooks modules whose inputs need no gradient
            warnings.filterwarnings("ignore", "Full backward hook is firing")
            history = fit(
                distiller, draw, steps=steps, lr=lr, optimizer=optimizer, seed=seed,
                **{"progress": False, **options},
            )  # fmt: skip
    finally:
        wrapped.to_standard_module()
    accountant = RDPAccountant()
    accountant.history = [(noise, rate, steps)]
    return Private(float(accountant.get_epsilon(delta)), delta, history)
