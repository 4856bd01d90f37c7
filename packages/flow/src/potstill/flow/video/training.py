"""Streaming in fewer evaluations, and consistency of motion."""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potstill.core import ConfigError, Distiller, Losses, Objective
from potstill.flow.methods.draws import Batch, noise_like, times_like
from potstill.flow.student import Student
from potstill.flow.teachers.teacher import Teacher
from potstill.flow.teachers.velocity import spread
from potstill.flow.video.buffer import Buffer
from potstill.flow.video.clips import motion

__all__ = ["Merging", "MotionConsistency", "MotionHead", "Streaming", "pseudo_huber"]


class Streaming(Distiller):
    """Train a network of clips at the times of a buffer.

    Term: ``denoise`` (the velocity of each frame, and what it should be).

    Source: Kodaira et al., StreamDiT, 2025: partitions of several chunk sizes are mixed.

    Args:
        student: ``model(x, t, condition)`` with a time for each frame, [clips frames].
        *buffers: Partitions of one number of frames; each step takes the next.

    Raises:
        ConfigError: Buffers of different length.
    """

    def __init__(self, student: nn.Module, *buffers: Buffer) -> None:
        if len({len(buffer) for buffer in buffers}) != 1:
            raise ConfigError(
                f"Streaming: buffers must have one number of frames, got {list(map(len, buffers))}"
            )
        super().__init__(student, Objective(denoise=(1.0, F.mse_loss)))
        self.partitions = buffers

    def forward(self, batch: Batch, step: int) -> Losses:
        """Losses of a batch of real clips, [clips frames ...]."""
        real, noise, buffer = batch.real, batch.noise, self.partitions[step % len(self.partitions)]
        assert real is not None
        times = buffer.draw(real)
        t = times.view(*times.shape, *[1] * (real.ndim - 2))
        predicted = self.student((1 - t) * real + t * noise, times, batch.condition)
        known = slice(buffer.reference, None)  # the reference is given, not asked for
        return self.objective(step, denoise=(predicted[:, known], (noise - real)[:, known]))


class Merging(Distiller):
    """Make the small steps of a buffer one: the student's velocity is the mean of the teacher's.

    Term: ``mean`` (the student's velocity, and the teacher's mean over the small steps).

    Source: Kodaira et al., StreamDiT, 2025: multistep distillation by segments.

    Args:
        student: ``model(x, t, condition)`` with a time for each frame.
        teacher: The same.
        buffer: The buffer, with the teacher's small steps; the student takes one.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, buffer: Buffer) -> None:
        super().__init__(student, Objective(mean=(1.0, F.mse_loss)), teacher)
        self.buffer = buffer

    def forward(self, batch: Batch, step: int) -> Losses:
        """Losses of a batch of real clips, at the levels where the small steps begin."""
        real, noise, buffer = batch.real, batch.noise, self.buffer
        assert real is not None
        assert self.teacher is not None
        known = slice(buffer.reference, None)
        t = buffer.times(0).to(real).view(-1, *[1] * (real.ndim - 2))
        begin = x = (1 - t) * real + t * noise
        total = torch.zeros_like(x)
        for small in range(buffer.steps):
            times = buffer.times(small).to(real).expand(len(real), -1)
            u = self.teacher(x, times, batch.condition)
            total = total + u / buffer.steps
            moved = x[:, known] - u[:, known] / (buffer.chunks * buffer.steps)
            x = torch.cat([x[:, : buffer.reference], moved], 1)
        times = buffer.times(0).to(real).expand(len(real), -1)
        mean = self.student(begin, times, batch.condition)
        return self.objective(step, mean=(mean[:, known], total[:, known]))


class MotionHead(nn.Module):
    """What of a clip is its motion, learned: a residual of each frame by 1x1 convolutions.

    It is the identity at first.

    Args:
        channels: Channels of a frame.
        width: Channels inside.
    """

    def __init__(self, channels: int, width: int = 16) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, 1), nn.SiLU(), nn.Conv2d(width, channels, 1)
        )
        for parameter in self.layers[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, frames: Tensor) -> Tensor:
        """As ``frames``, [clips frames channels height width]."""
        moved: Tensor = self.layers(frames.flatten(0, 1))
        return frames + moved.view_as(frames)


class MotionConsistency(Distiller):
    """Consistency of what moves: the clean clip that the student sees does not depend on the time.

    Term: ``motion`` (`pseudo_huber` of the motion of two clean clips, one step of the teacher
    apart). With the probability ``mixed`` a trajectory begins at the student's own sample, in place
    of a clip of the data: at inference there are no clips to begin at.

    Source: Zhai et al., Motion Consistency Model, NeurIPS 2024, without its image discriminator.

    Args:
        student: The generator, asked at time 1.
        teacher: The teacher.
        kind: Motion, as of `motion`; or ``learn``, by a `MotionHead` that trains with the student,
            whose frozen copy sees the target.
        mixed: Share of trajectories that begin at samples of the student.
        step: Step of the teacher in time, in (0, 1).

    Raises:
        ConfigError: A share or a step outside of its range.
    """

    def __init__(
        self,
        student: Student,
        teacher: Teacher,
        *,
        kind: Literal["raw", "diff", "low", "high", "learn"] = "diff",
        mixed: float = 0.5,
        step: float = 0.02,
    ) -> None:
        if not 0 <= mixed <= 1 or not 0 < step < 1:
            raise ConfigError(
                f"MotionConsistency: mixed must be in [0, 1] and step in (0, 1), got {mixed} and "
                f"{step}"
            )
        super().__init__(student, Objective(motion=(1.0, pseudo_huber)), teacher)
        self.kind: Any = kind
        self.mixed, self.step = mixed, step
        if kind == "learn":
            self.head = MotionHead(student.shape[1])
            self.still = copy.deepcopy(self.head).requires_grad_(False)

    def forward(self, batch: Batch, step: int) -> Losses:
        """Losses of a batch of real clips."""
        student, teacher, c = self.student, self.teacher, batch.condition
        assert batch.real is not None
        assert isinstance(student, Student)
        assert teacher is not None
        with torch.no_grad():
            own = spread((times_like(batch.real) < self.mixed).to(batch.real), batch.real)
            clean = own * student(batch.noise, c) + (1 - own) * batch.real
            times = times_like(clean, self.step, 1.0)
            t = spread(times, clean)
            x = (1 - t) * clean + t * noise_like(clean)
            earlier = x - self.step * teacher(x, times, c)
            target = student.net.denoise(earlier, times - self.step, c)
        seen = student.net.denoise(x, times, c)
        if self.kind == "learn":
            return self.objective(step, motion=(self.head(seen), self.still(target)))
        return self.objective(step, motion=(motion(seen, self.kind), motion(target, self.kind)))


def pseudo_huber(x: Tensor, target: Tensor, width: float = 0.001) -> Tensor:
    """``mean sqrt(d^2 + width^2) - width``: absolute far from zero, squared near it.

    Args:
        x: Any tensor.
        target: As ``x``.
        width: Where one becomes the other.
    """
    return ((x - target).square() + width**2).sqrt().mean() - width
