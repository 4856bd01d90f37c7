"""How near a student is: scores, pictures, and a clock that does not count their time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property

import torch
from torch import Tensor, nn

from potstill.core import ConfigError, Mean, Validation, generator, psnr
from potstill.core.measure import Clock
from potstill.nerf.cameras import Cameras
from potstill.nerf.distill.priors import PosePrior
from potstill.nerf.distill.results import picture
from potstill.nerf.fields.base import Field
from potstill.nerf.from_images import score_of_views
from potstill.nerf.render.image import render_image
from potstill.nerf.scenes.scene import Split

__all__ = ["Evaluation", "Stopwatch", "on"]


class Stopwatch:
    """A clock for `fit` that can be paused, so that evaluating a student costs it no budget.

    Args:
        kind: "wall", or "cpu" for the CPU-seconds of this process.

    Example:
        >>> watch = Stopwatch("cpu")
        >>> with watch.paused():
        ...     before = watch()
        >>> watch() >= before
        True
    """

    def __init__(self, kind: Clock = "wall") -> None:
        if kind not in ("wall", "cpu"):
            raise ConfigError(f"Stopwatch: kind must be wall or cpu, got {kind!r}")
        self._now = time.monotonic if kind == "wall" else time.process_time
        self._lost = 0.0
        self._since: float | None = None

    def __call__(self) -> float:
        """Seconds that counted."""
        return (self._now() if self._since is None else self._since) - self._lost

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time that does not count."""
        self._since = self._now()
        try:
            yield
        finally:
            self._lost += self._now() - self._since
            self._since = None


@contextmanager
def on(device: torch.device, *fields: Field) -> Iterator[None]:
    """Fields on a device, and afterwards where they were."""
    homes = [field.occupancy.occs.device for field in fields]
    try:
        for field in fields:
            field.to(device)
        yield
    finally:
        for field, home in zip(fields, homes, strict=True):
            field.to(home)


class Evaluation:
    """PSNR of a student to its teacher, from fixed poses, and to images.

    Args:
        teacher: Reference field.
        prior: Distribution of the poses.
        truth: Views with images, if there are any.
        seed: Seed of the poses.
        views: Number of poses, and of images at most.
    """

    def __init__(
        self, teacher: Field, prior: PosePrior, truth: Split | None, seed: int, views: int = 3
    ) -> None:
        self.teacher, self.truth, self.views = teacher, truth, views
        self.cameras = prior.cameras(views, generator("judge", seed))

    def __call__(self, student: Field) -> dict[str, float]:
        """PSNR to the teacher, and to the images where there are some, in dB."""
        return {name: float(value) for name, value in self._scores(student).items()}

    def _scores(self, student: Field, part: slice = slice(None)) -> dict[str, Mean]:
        views = range(self.views)[part]
        ours = ((_render(student, self.cameras, view), self.targets[view]) for view in views)
        scores = {"teacher": Mean.of([float(psnr(a, b)) for a, b in ours])}
        if self.truth is not None:
            scores["truth"] = score_of_views(student, self.truth, self.views, part)
        return scores

    @cached_property
    def targets(self) -> list[Tensor]:
        """The teacher's images, rendered once."""
        return self._images(self.teacher)

    def validation(self, every: int, watch: Stopwatch) -> Validation | None:
        """For `fit`: the student nearest to its teacher is kept, and the watch is paused."""
        if not every:
            return None

        def evaluated(student: nn.Module, part: slice) -> dict[str, Mean]:
            assert isinstance(student, Field)
            with watch.paused():
                return self._scores(student, part)

        return Validation(evaluated, every, key="teacher", ties="latest", split=True)

    def pictures(self, student: Field) -> list[dict[str, str]]:
        """Teacher and student from each pose, and the images with both, as PNG in text."""
        rows = [
            {"teacher": picture(theirs), "student": picture(ours)}
            for theirs, ours in zip(self.targets, self._images(student), strict=True)
        ]
        if self.truth is None:
            return rows
        for view in range(min(self.views, len(self.truth.cameras))):
            images = {"truth": self.truth.image(view)}
            for name, field in (("teacher", self.teacher), ("student", student)):
                images[name] = _render(field, self.truth.cameras, view)
            rows.append({name: picture(image) for name, image in images.items()})
        return rows

    def _images(self, field: Field) -> list[Tensor]:
        return [_render(field, self.cameras, view) for view in range(self.views)]


def _render(field: Field, cameras: Cameras, view: int) -> Tensor:
    return render_image(field, cameras, view, field.space, field.occupancy)[0]
