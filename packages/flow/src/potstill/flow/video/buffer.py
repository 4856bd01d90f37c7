"""The buffer of StreamDiT: chunks of frames at rising noise levels, and frames without end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from potstill.core import ConfigError, common_draws

__all__ = ["Buffer", "stream"]


@dataclass(frozen=True)
class Buffer:
    """Frames at rising noise levels: chunks of them, the oldest nearly clean.

    Of ``N`` chunks of ``c`` frames, chunk i (from 0) is between the times i/N and (i + 1)/N. In
    ``s`` small steps every chunk falls by 1/N; then the first one is clean and leaves, and noise
    comes in at the end. ``c`` of all frames and N = 1 is ordinary sampling, c = 1 is the diagonal
    of FIFO-Diffusion.

    Source: Kodaira et al., StreamDiT, 2025.

    Args:
        chunks: Number of chunks N.
        frames: Frames of each, c.
        steps: Small steps s from one level to the next: evaluations for each chunk that leaves.
        reference: Clean frames kept before the chunks, K; the network sees them at time 0.

    Raises:
        ConfigError: A number below 1, or less than no reference.

    Example:
        >>> Buffer(chunks=2, frames=2).times(0).tolist()
        [0.5, 0.5, 1.0, 1.0]
    """

    chunks: int
    frames: int = 1
    steps: int = 1
    reference: int = 0

    def __post_init__(self) -> None:
        if min(self.chunks, self.frames, self.steps) < 1 or self.reference < 0:
            raise ConfigError(
                "Buffer: chunks, frames and steps must be at least 1 and reference not negative, "
                f"got {self.chunks}, {self.frames}, {self.steps} and {self.reference}"
            )

    def __len__(self) -> int:
        """Frames of the buffer, those of the reference included."""
        return self.reference + self.chunks * self.frames

    def times(self, step: int) -> Tensor:
        """Time of each frame before small step ``step``, [frames], float64."""
        levels = torch.arange(1, self.chunks + 1, dtype=torch.float64)
        moving = (levels - step / self.steps) / self.chunks
        still = torch.zeros(self.reference, dtype=torch.float64)
        return torch.cat([still, moving.repeat_interleave(self.frames)])

    def draw(self, x: Tensor) -> Tensor:
        """Times to train at, [clips frames]: one for each clip between two levels.

        Args:
            x: Clips, [clips frames ...]; only their number and device count.
        """
        draws = common_draws(x.device)
        size = draws.world * len(x), 1
        within = torch.rand(size, generator=draws.generator, device=x.device, dtype=x.dtype)
        ahead = self.times(0).to(x) - within[draws.mine] / self.chunks
        ahead[:, : self.reference] = 0
        return ahead


def stream(
    velocity: Callable[..., Tensor],
    buffer: Buffer,
    noise: Callable[[int], Tensor],
    condition: Tensor | None = None,
    reference: Tensor | None = None,
) -> Iterator[Tensor]:
    """Frames without end, a chunk after ``steps`` evaluations each.

    Chunks that would begin below the noise are not made up: the buffer fills first, with chunks
    that start as noise and are at their level when their turn comes.

    Args:
        velocity: ``u(x, t, condition)`` of clips, with a time for each frame, [clips frames].
        buffer: The buffer.
        noise: Noise of a chunk by its number from 0, [clips c ...].
        condition: Condition of each clip.
        reference: Clean frames before the first one, [clips K ...]; zeros by default.

    Yields:
        Chunks of clean frames, [clips c ...].
    """
    c, k = buffer.frames, buffer.reference
    fresh = noise(0)
    kept = fresh.new_zeros(len(fresh), k, *fresh.shape[2:]) if reference is None else reference
    x, number = fresh[:, :0], 0
    while True:
        x = torch.cat([x, noise(number)], 1)
        number += 1
        first = buffer.chunks - x.shape[1] // c  # chunks that are not there yet
        for step in range(buffer.steps):
            times = buffer.times(step).to(x)[k + first * c :]
            both = torch.cat([times.new_zeros(k), times]).expand(len(x), -1)
            u = velocity(torch.cat([kept, x], 1), both, condition)[:, k:]
            x = x - u / (buffer.chunks * buffer.steps)
        if first == 0:
            done, x = x[:, :c], x[:, c:]
            kept = torch.cat([kept, done], 1)[:, c:]
            yield done
