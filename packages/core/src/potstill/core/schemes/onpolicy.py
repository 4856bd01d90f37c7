"""Batches that the student draws itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from potstill.core.engine.batches import Shard
from potstill.core.errors import ConfigError
from potstill.core.seed import generator

__all__ = ["OnPolicy"]


class OnPolicy:
    """A source for `fit` whose inputs are samples of the student, drawn anew every so often.

    Source: Agarwal et al., On-Policy Distillation (GKD), ICLR 2024; Zhou et al., DistillSpec, ICLR
    2024. Use it with any criterion. A pool is drawn by the student as it is at steps 0,
    ``refresh``, 2 ``refresh``, ...; batches are random rows of it, a pure function of seed and
    step. The pool is kept in checkpoints, so a resumed run is bit-equal.

    Args:
        student: The module that is trained.
        draw: ``draw(student, size, rng) -> pool``, [size ...], called without gradient and with the
            student in eval mode.
        refresh: Steps between two pools.
        size: Rows of a pool.
        batch: Rows of a batch, per process.

    Raises:
        ConfigError: A number below 1.

    Example:
        >>> from potstill.core import Distiller, Objective, fit
        >>> import torch.nn.functional as F
        >>> class Match(Distiller):
        ...     def forward(self, batch, step):
        ...         return self.objective(step, soft=(self.student(batch), self.teacher(batch)))
        >>> student = nn.Linear(2, 2)
        >>> source = OnPolicy(
        ...     student, lambda s, n, rng: s(torch.randn(n, 2, generator=rng)), refresh=5, size=32
        ... )
        >>> rows = fit(
        ...     Match(student, Objective(soft=(1.0, F.mse_loss)), nn.Linear(2, 2)), source,
        ...     steps=10, progress=False,
        ... )
        >>> len(rows), source.pool.shape
        (10, torch.Size([32, 2]))
    """

    def __init__(
        self,
        student: nn.Module,
        draw: Callable[[nn.Module, int, torch.Generator], Tensor],
        *,
        refresh: int = 25,
        size: int = 256,
        batch: int = 32,
    ) -> None:
        if min(refresh, size, batch) < 1:
            raise ConfigError(
                "OnPolicy: refresh, size and batch must be at least 1, got "
                f"{(refresh, size, batch)}"
            )
        self.student, self.draw = student, draw
        self.refresh, self.size, self.batch_size = refresh, size, batch
        self.pool: Tensor | None = None

    def steps_per_epoch(self, world: int) -> int | None:
        """None: there is no end of samples."""
        return None

    def stream(self, start: int, shard: Shard) -> Iterator[Tensor]:
        """Batches from step ``start`` on."""
        for step in count(start):
            if self.pool is None or step % self.refresh == 0:
                self.pool = self._drawn(step, shard.seed)
            rng = generator("on policy", shard.seed, step)
            rows = torch.randint(self.size, (self.batch_size * shard.world,), generator=rng)
            yield self.pool[rows[shard.rank :: shard.world]]

    def fingerprint(self) -> str:
        """Sizes: the samples are of the student, which trains."""
        return f"on policy, {self.size} rows every {self.refresh} steps"

    def state_dict(self) -> dict[str, Any]:
        """The pool."""
        return {"pool": self.pool}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the pool of a checkpoint."""
        self.pool = state["pool"]

    @torch.no_grad()
    def _drawn(self, step: int, seed: int) -> Tensor:
        training = self.student.training
        self.student.eval()
        try:
            return self.draw(self.student, self.size, generator("pool", seed, step)).cpu()
        finally:
            self.student.train(training)
