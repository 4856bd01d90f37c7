"""Teachers: fields trained on posed images."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potstill.core import (
    ConfigError,
    DataError,
    Distiller,
    Engine,
    Losses,
    Objective,
    Run,
    Schedule,
    Validation,
    fit,
    generator,
    psnr,
)
from potstill.nerf import regularizers
from potstill.nerf.cameras import Cameras
from potstill.nerf.fields.base import Field
from potstill.nerf.fields.grid import GridField
from potstill.nerf.optim import RowAdam
from potstill.nerf.render.image import render_image, render_rays
from potstill.nerf.render.march import Samples, march
from potstill.nerf.scenes.scene import Scene, Split
from potstill.nerf.space import Rays

__all__ = ["ImagesToField", "RayBatch", "RaySource", "score", "train_field"]

Background = Literal["auto", "white", "black", "random"]
RATES = {  # learning rates by kind; networks scale them
    "hash": 1e-2,
    "mlp": 1e-2,
    "vm": 2e-2,
    "cp": 2e-2,
    "grid": 0.3,
    "composite": 1e-2,
}


class RayBatch(NamedTuple):
    """Rays of the world with what the photos show there.

    Attributes:
        origins: [R 3].
        directions: Unit, [R 3].
        rgb: Colour over the background, [R 3].
        background: [R 3].
        jitter: Place of samples in their intervals, [R].
    """

    origins: Tensor
    directions: Tensor
    rgb: Tensor
    background: Tensor
    jitter: Tensor


class RaySource:
    """Rays through random pixels of random views: a pure function of (seed, step, rank).

    Args:
        split: Views with images.
        rays: How many a batch; the distiller takes as many of them as its samples allow.
        background: What is behind transparent pixels; "auto" is white for images with alpha. Behind
            images without it lies noise, or a field would leave bright parts to the background.
        seed: Of the draws.

    Raises:
        DataError: No images; or a random background where images have no alpha.
    """

    def __init__(
        self, split: Split, rays: int = 2048, background: Background = "auto", seed: int = 0
    ) -> None:
        if split.images is None:
            raise DataError("RaySource: images are needed to train, got poses only")
        if background not in ("auto", "white", "black", "random"):
            raise ConfigError(
                f"RaySource: background must be auto, white, black or random, got {background!r}"
            )
        if background == "random" and split.images.shape[-1] == 3:
            raise DataError(
                "RaySource: a random background needs images with alpha (RGBA), got RGB; choose "
                "background='white' or 'black'"
            )
        self.cameras: Cameras = split.cameras
        self.images: Tensor = split.images
        has_alpha = split.images.shape[-1] == 4
        self.noise = background == "random" or (background == "auto" and not has_alpha)
        self.level = 0.0 if background == "black" else 1.0
        self.count, self.seed = rays, seed

    def __call__(self, step: int, rank: int = 0, world: int = 1) -> RayBatch:
        """The batch of a step for one process."""
        draw = generator("rays", self.seed, step, rank)
        n, (views, height, width) = self.count, self.images.shape[:3]
        pick = torch.rand(3, n, generator=draw)
        view = (pick[0] * views).long().clamp(max=views - 1)
        x = (pick[1] * width).long().clamp(max=width - 1)
        y = (pick[2] * height).long().clamp(max=height - 1)
        origins, directions = self.cameras.rays(view, x + 0.5, y + 0.5)
        pixels = self.images[view, y, x].float() / 255
        behind = torch.full((n, 3), self.level)
        if self.noise:
            behind = torch.rand(n, 3, generator=draw)
        alpha = pixels[:, 3:] if pixels.shape[1] == 4 else torch.ones(n, 1)
        rgb = pixels[:, :3] * alpha + behind * (1 - alpha)
        return RayBatch(origins, directions, rgb, behind, torch.rand(n, generator=draw))


class ImagesToField(Distiller):
    """A field learns to render the photos.

    Every 16 steps the occupancy grid is refreshed, all of it during the first 128. As many of a
    batch's rays are used as fill the budget of samples, so the cost of a step hardly changes while
    the scene empties.

    Args:
        field: The student of this distiller, the teacher of later ones.
        samples: Budget of samples a step.
        objective: Its terms: pixel, distortion, variation; the mean squared error of colours by
            default.
        refresh: Whether the occupancy grid follows the field; else it stays as it is, for one that
            came from a teacher.
    """

    student: Field
    idle = 0

    def __init__(
        self,
        field: Field,
        samples: int = 6144,
        objective: Objective | None = None,
        refresh: bool = True,
    ) -> None:
        super().__init__(field, objective or Objective(pixel=(1.0, F.mse_loss)))
        self.samples, self.refresh = samples, refresh

    def forward(self, batch: RayBatch, step: int) -> Losses:
        """Colour of the rays against the photos."""
        field = self.student
        if self.refresh and step % 16 == 0 and torch.is_grad_enabled():
            field.refresh(generator("occupancy", step), everywhere=step < 128)
        rays = field.space.trace(batch.origins, batch.directions)
        samples = self._samples(rays, batch.jitter)
        count = len(samples.counts)
        rendered = render_rays(field, rays[:count], samples, batch.background[:count])
        tensors: dict[str, tuple[Any, ...]] = {"pixel": (rendered.rgb, batch.rgb[:count])}
        wanted = self.objective.at(step)
        if "distortion" in wanted:
            tensors["distortion"] = (rendered.weight, samples, field.space)
        if "variation" in wanted:
            tensors["variation"] = tuple(field.differences(generator("variation", step)))
        return self.objective(step, tensors)

    def _samples(self, rays: Rays, jitter: Tensor) -> Samples:
        """Samples of as many rays as fill the budget."""
        field, count = self.student, min(512, len(rays))
        while True:
            samples = march(rays[:count], field.space, field.occupancy, jitter[:count])
            if len(samples.t) >= self.samples or count == len(rays):
                break
            count = min(2 * count, len(rays))
        samples = samples.within(self.samples)
        self._check(len(samples.t))
        return samples

    def _check(self, count: int) -> None:
        self.idle = 0 if count else self.idle + 1
        if self.idle >= 100:
            raise DataError(
                "ImagesToField: rays must meet occupied space, got 100 batches without a sample; "
                "do the cameras look at the box? `potstill nerf inspect DATA` tells"
            )


def train_field(
    field: Field,
    scene: Scene,
    *,
    steps: int | None = None,
    seconds: float | None = None,
    clock: Callable[[], float] = time.monotonic,
    lr: float | None = None,
    samples: int = 6144,
    rays: int = 2048,
    background: Background = "auto",
    distortion: float = 0.0,
    variation: float = 0.0,
    refresh: bool = True,
    every: int = 0,
    run: Run | Path | str | None = None,
    engine: Engine | None = None,
    seed: int = 0,
    progress: bool | str | Callable[[dict[str, float], float], None] = True,
) -> tuple[Field, list[dict[str, float]]]:
    """Train a field on the images of a scene.

    A ``grid`` is trained twice: dense and coarse for a quarter of the budget, then at its own
    resolution around what turned out to be occupied.

    Args:
        field: A fresh field in the space of the scene, or one to continue.
        scene: With images.
        steps: Budget in steps; and/or
        seconds: in seconds.
        clock: Which seconds, as in `potstill.core.fit`.
        lr: Learning rate of tables and factors; networks scale it (`Field.rate`).
        samples: Samples a step.
        rays: Rays drawn a step, of which as many are used as ``samples`` allow.
        background: Behind transparent pixels.
        distortion: Weight of `regularizers.distortion`, against fog
            (nerfstudio's nerfacto takes 2e-3, published).
        variation: Weight of `regularizers.variation`, for vm, cp and grid.
        refresh: Whether the occupancy grid follows the field; else it stays as it is.
        every: Steps between validations on the test views; 0 for none.
        run: Folder of checkpoints, history and curves.
        engine: Device and processes.
        seed: Of rays and occupancy.
        progress: As in `potstill.core.fit`.

    Returns:
        The trained field, and the history of `fit`.

    Raises:
        DataError: No images, rays that never meet the space.
        ConfigError: No budget; or variation of a kind without neighbours.
    """
    objective = Objective(
        pixel=(1.0, F.mse_loss),
        distortion=(distortion, regularizers.distortion),
        variation=(variation, regularizers.variation),
    )
    if isinstance(field, GridField) and field.is_dense and field.config.resolution >= 16:
        return _train_grid(
            field, scene, steps, seconds, clock=clock, lr=lr, samples=samples, rays=rays,
            background=background, objective=objective, every=every, run=run, engine=engine,
            seed=seed, progress=progress,
        )  # fmt: skip
    source = RaySource(scene.train, rays, background, seed)
    history = fit(
        ImagesToField(field, samples, objective, refresh),
        source,
        steps=steps,
        seconds=seconds,
        clock=clock,
        lr=lr or RATES[field.kind],
        optimizer=partial(RowAdam, scale=lambda n: field.rate(n.removeprefix("student."))),
        schedule=_tenth(),
        validation=_validation(scene, every),
        run=run,
        engine=engine,
        seed=seed,
        progress=progress,
    )
    if refresh:
        field.refresh(generator("occupancy", "last"), everywhere=True)
    return field, history


def _train_grid(
    field: GridField, scene: Scene, steps: int | None, seconds: float | None, **options: Any
) -> tuple[Field, list[dict[str, float]]]:
    final = field.config.resolution
    coarse = GridField(
        type(field.config)(max(final // 2, 8), field.config.degree),
        field.space,
        occupancy=field.occupancy.size,
        activation=field.activation,
        backend=field.backend,
    )
    history: list[dict[str, float]] = []
    run = options.pop("run")
    for share, resolution in ((0.25, None), (0.75, final)):
        field = coarse if resolution is None else coarse.refined(resolution)
        part = None if run is None else _subfolder(run, "coarse" if resolution is None else "fine")
        source = RaySource(scene.train, options["rays"], options["background"], options["seed"])
        history += fit(
            ImagesToField(field, options["samples"], options["objective"]),
            source,
            steps=None if steps is None else max(round(steps * share), 1),
            seconds=None if seconds is None else seconds * share,
            clock=options["clock"],
            lr=options["lr"] or RATES["grid"],
            optimizer=RowAdam,
            schedule=_tenth(),
            validation=_validation(scene, options["every"] if resolution else 0),
            run=part,
            engine=options["engine"],
            seed=options["seed"],
            progress=options["progress"],
        )
        field.refresh(generator("occupancy", "last"), everywhere=True)
    return field, history


def _subfolder(run: Run | Path | str, name: str) -> Run:
    from dataclasses import replace

    run = run if isinstance(run, Run) else Run(Path(run))
    return replace(run, folder=run.folder / name)


def _tenth() -> Schedule:
    """Exponential decay to a tenth, after a short warm-up."""
    return lambda progress: 0.1**progress * min(1.0, 0.05 + 40 * progress)


def _validation(scene: Scene, every: int) -> Validation | None:
    if not every:
        return None
    return Validation(partial(_score, split=scene.test), every, key="psnr", ties="latest")


def _score(student: nn.Module, split: Split) -> dict[str, float]:
    assert isinstance(student, Field)
    return {"psnr": score(student, split, views=2)}


@torch.no_grad()
def score(field: Field, split: Split, views: int | None = None) -> float:
    """Mean PSNR in dB over the first ``views`` views of a split, on white.

    Raises:
        DataError: There are no views, or no images.
    """
    count = min(views or len(split.cameras), len(split.cameras))
    if not count:
        raise DataError("score: views must be at least 1, got none to compare with")
    values = []
    for view in range(count):
        rgb, _, _ = render_image(field, split.cameras, view, field.space, field.occupancy)
        values.append(float(psnr(rgb, split.image(view))))
    return sum(values) / count
