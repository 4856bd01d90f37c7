"""The student: one evaluation from noise to data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from potstill.core import ConfigError, generator
from potstill.flow.teachers.teacher import drawn, in_batches
from potstill.flow.teachers.velocity import Velocity

__all__ = ["Generator", "Phased", "Student", "Students", "partition"]


class Generator(nn.Module):
    """What draws items from noise: ``forward(noise, condition)`` gives them.

    Args:
        shape: Shape of an item.
        classes: Number of classes; 0 where there are none.
        about: Method and options, for the record.

    Attributes:
        evaluations: Evaluations of a network for each item.
    """

    evaluations = 1

    def __init__(
        self, shape: tuple[int, ...], classes: int, about: Mapping[str, Any] | None
    ) -> None:
        super().__init__()
        self.shape, self.classes, self.about = tuple(shape), classes, dict(about or {})

    @torch.no_grad()
    def sample(
        self, n: int, condition: Tensor | int | None = None, seed: int = 0, batch: int = 256
    ) -> Tensor:
        """Draw items.

        Args:
            n: How many.
            condition: Class of each, [n], or of all; random classes by default.
            seed: Seed of noise and classes: the same noise for every student and teacher.
            batch: Items at a time.

        Returns:
            [n ...], on the CPU.

        Raises:
            ConfigError: A class that is not there.
        """
        noise, labels = drawn(self.shape, self.classes, n, seed)
        if condition is not None:
            labels = torch.as_tensor(condition).expand(n)
            if not bool(((labels >= 0) & (labels < self.classes)).all()):
                raise ConfigError(
                    f"sample: condition must be a class from 0 to {self.classes - 1}, got "
                    f"{int(labels.min())} to {int(labels.max())}"
                )
        was, device = self.training, next(self.parameters()).device
        self.eval()
        try:
            parts = [
                self(z.to(device), None if c is None else c.to(device)).float().cpu()
                for z, c in in_batches(noise, labels, batch)
            ]
        finally:
            self.train(was)
        return torch.cat(parts)


class Student(Generator):
    """A one-step generator: ``x = z - F(z)``, where F is a network read as a velocity.

    ``average(z, delta)`` is the mean velocity of the path over [1, 1 - delta], which the network
    gives at time ``1 - delta``; ``jump(z, delta) = z - delta average(z, delta)`` is where the path
    is then. A student of distribution matching is asked at one time alone.

    Args:
        net: The network with its prediction and path.
        at: Time at which the network is asked for the whole jump: 0 after BOOT and FreeFlow, whose
            network knows all jumps; 1 after DMD, which starts as the teacher's own first step.
        shape: Shape of an item.
        classes: Number of classes; 0 where there are none.
        about: Method and options, for the record.

    Raises:
        ConfigError: A time outside [0, 1].
    """

    def __init__(
        self,
        net: Velocity,
        at: float = 1.0,
        *,
        shape: tuple[int, ...] = (2,),
        classes: int = 0,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(shape, classes, about)
        if not 0 <= at <= 1:
            raise ConfigError(f"Student: at must be a time in [0, 1], got {at}")
        self.net, self.at = net, at

    def forward(self, noise: Tensor, condition: Tensor | None = None) -> Tensor:
        """Items from noise, with gradient."""
        return noise - self.net(noise, self.at, condition)

    def average(
        self, noise: Tensor, delta: Tensor | float, condition: Tensor | None = None
    ) -> Tensor:
        """The mean velocity over [1, 1 - delta].

        Raises:
            ConfigError: delta outside [0, 1].
        """
        delta = torch.as_tensor(delta, dtype=noise.dtype, device=noise.device)
        if not noise.is_cuda and not bool(((delta >= 0) & (delta <= 1)).all()):
            raise ConfigError(
                f"Student: delta must be in [0, 1], got {float(delta.min())} to "
                f"{float(delta.max())}"
            )
        return self.net(noise, 1 - delta, condition)


class Phased(Generator):
    """Experts, one after another: each takes items from one noise level to the next.

    Source: Fan et al., Phased DMD, 2025.

    Args:
        experts: Networks, as velocities; the first begins with noise.
        levels: Times at which they begin, falling from 1; the last one ends at 0.
        shape: Shape of an item.
        classes: Number of classes; 0 where there are none.
        about: Method and options, for the record.

    Raises:
        ConfigError: Levels that do not fall from 1, or another number of them.
    """

    def __init__(
        self,
        experts: Sequence[Velocity],
        levels: Sequence[float],
        *,
        shape: tuple[int, ...] = (2,),
        classes: int = 0,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(shape, classes, about)
        ends = (*levels, 0.0)
        if len(levels) != len(experts) or ends[0] != 1 or not all(a > b for a, b in pairwise(ends)):
            raise ConfigError(
                f"Phased: levels must fall from 1 to above 0, one for each of the {len(experts)} "
                f"experts, got {list(levels)}"
            )
        self.experts, self.levels = nn.ModuleList(experts), ends
        self.evaluations = len(experts)

    def forward(self, noise: Tensor, condition: Tensor | None = None) -> Tensor:
        """Items from noise, through all experts."""
        return self.until(len(self.experts), noise, condition)

    def until(self, phase: int, noise: Tensor, condition: Tensor | None = None) -> Tensor:
        """Items at the level where the first ``phase`` experts end."""
        x = noise
        for number in range(phase):
            x = self.step(number, x, condition)
        return x

    def step(self, phase: int, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """One expert: from its level to the next."""
        begin, end = self.levels[phase : phase + 2]
        moved: Tensor = x + (end - begin) * self.experts[phase](x, begin, condition)
        return moved


class Students(Generator):
    """Several students, each for its own classes; the class of an item picks its student.

    Each item costs one evaluation of one student.

    Source: Song et al., Multi-student Diffusion Distillation, 2024.

    Args:
        students: The students, of one shape.
        router: Number of the student of each class, [classes].
        about: Method and options, for the record.

    Raises:
        ConfigError: A class without a student, or a student without a class.
    """

    router: Tensor

    def __init__(
        self, students: Sequence[Generator], router: Tensor, about: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(students[0].shape, len(router), about)
        if router.unique().tolist() != list(range(len(students))):
            raise ConfigError(
                f"Students: router must give every student a class, and every class one of the "
                f"{len(students)} students, got {router.tolist()}"
            )
        self.students = nn.ModuleList(students)
        self.register_buffer("router", router, persistent=False)

    def forward(self, noise: Tensor, condition: Tensor | None = None) -> Tensor:
        """Items from noise, each by the student of its class.

        Raises:
            ConfigError: No classes, or one outside of the partition.
        """
        if condition is None:
            raise ConfigError("Students: condition must be given, it picks the student; got none")
        if not bool(((condition >= 0) & (condition < self.classes)).all()):
            raise ConfigError(
                f"Students: condition must be in the partition, classes 0 to {self.classes - 1}, "
                f"got {int(condition.min())} to {int(condition.max())}"
            )
        found, owners = torch.empty_like(noise), self.router[condition]
        for number, student in enumerate(self.students):
            rows = (owners == number).nonzero().flatten()
            if len(rows):
                found[rows] = student(noise[rows], condition[rows])
        return found


def partition(classes: int, students: int, rule: str = "consecutive", seed: int = 0) -> Tensor:
    """Number of the student of each class, [classes]; parts differ by one class at most.

    Args:
        classes: Number of classes.
        students: Number of students.
        rule: ``consecutive`` classes, as in the paper, or ``random`` ones, to compare with.
        seed: Seed of random parts.

    Raises:
        ConfigError: More students than classes.

    Example:
        >>> partition(5, 2).tolist()
        [0, 0, 0, 1, 1]
    """
    if not 1 <= students <= classes:
        raise ConfigError(
            f"partition: students must be from 1 to the {classes} classes, got {students}"
        )
    owners = torch.arange(classes) * students // classes
    if rule == "consecutive":
        return owners
    return owners[torch.randperm(classes, generator=generator("partition", seed))]
