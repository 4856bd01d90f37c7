"""Fields from posed images: rays, the distiller, and how every kind is trained and scored."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
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
    Losses,
    Mean,
    Objective,
    Run,
    Schedule,
    Validation,
    fit,
    generator,
)
from potstill.core.engine import MakeOptimizer
from potstill.nerf import regularizers
from potstill.nerf.fields.base import Field
from potstill.nerf.fields.grid import GridField
from potstill.nerf.optim import RATES, row_adam
from potstill.nerf.render.image import render_image, render_rays
from potstill.nerf.render.march import EmptyBatches, march_within
from potstill.nerf.scenes.scene import Scene, Split

__all__ = ["ImagesToField", "RayBatch", "RaySource", "decaying", "score", "train_field"]

Background = Literal["auto", "white", "black", "random"]


class RayBatch(NamedTuple):
    """Rays of the world with what the photos show there.

    Attributes:
        origins: [R 3].
        directions: Unit, [R 3].
        rgb: Colour over the background, [R 3].
        background: [R 3].
        jitter: Place of samples in their intervals, [R].
        depth: Distance that a depth map gives, 0 where it is unknown, [R].
    """

    origins: Tensor
    directions: Tensor
    rgb: Tensor
    background: Tensor
    jitter: Tensor
    depth: Tensor


class RaySource:
    """Rays through random pixels of random views: a pure function of (seed, step).

    Those of a step are drawn for all processes, each of which takes every W-th.

    Pixels that are masked are never drawn.

    Args:
        split: Views with images.
        rays: Rays per batch; the distiller takes as many of them as its samples allow.
        background: Colour behind transparent pixels; "auto" is white for images with alpha. Behind
            images without it lies noise, or a field would leave bright parts to the background.
        seed: Seed of the draws.

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
        self.cameras, self.images = split.cameras, split.images
        has_alpha = split.images.shape[-1] == 4
        self.noise = background == "random" or (background == "auto" and not has_alpha)
        self.level = 0.0 if background == "black" else 1.0
        self.rays, self.seed, self.depths = rays, seed, split.depths
        self.free = None if split.masks is None else split.masks.flatten().nonzero()[:, 0]

    def __call__(self, step: int, rank: int = 0, world: int = 1) -> RayBatch:
        """The batch of a step for one process."""
        draw, mine = generator("rays", self.seed, step, 0), slice(rank, None, world)
        n, total = self.rays, self.rays * world
        views, height, width = self.images.shape[:3]
        if self.free is not None:
            place = self.free[torch.randint(len(self.free), (total,), generator=draw)[mine]]
            view, y, x = place // (height * width), place // width % height, place % width
        else:
            pick = torch.rand(3, total, generator=draw)[:, mine]
            view = (pick[0] * views).long().clamp(max=views - 1)
            x = (pick[1] * width).long().clamp(max=width - 1)
            y = (pick[2] * height).long().clamp(max=height - 1)
        origins, directions = self.cameras.rays(view, x + 0.5, y + 0.5)
        pixels = self.images[view, y, x].float() / 255
        behind = torch.full((n, 3), self.level)
        if self.noise:
            behind = torch.rand(total, 3, generator=draw)[mine]
        alpha = pixels[:, 3:] if pixels.shape[1] == 4 else torch.ones(n, 1)
        rgb = pixels[:, :3] * alpha + behind * (1 - alpha)
        depth = torch.zeros(n) if self.depths is None else self.depths[view, y, x]
        jitter = torch.rand(total, generator=draw)[mine]
        return RayBatch(origins, directions, rgb, behind, jitter, depth)


class ImagesToField(Distiller):
    """A field learns to render the photos.

    As many of a batch's rays are used as fill the budget of samples.

    Args:
        field: The student of this distiller, the teacher of later ones.
        samples: Budget of samples a step.
        objective: Terms out of pixel, depth, distortion and variation; the mean squared error of
            colours by default.
        refresh: Let the occupancy grid follow the field (`Field.follow`); else it stays as it is,
            for one that came from a teacher.
    """

    student: Field

    def __init__(
        self,
        field: Field,
        samples: int = 6144,
        objective: Objective | None = None,
        refresh: bool = True,
    ) -> None:
        super().__init__(field, objective or Objective(pixel=(1.0, F.mse_loss)))
        self.samples, self.refresh = samples, refresh
        self.empty = EmptyBatches(
            "ImagesToField", "do the cameras look at the box? `potstill nerf inspect DATA` tells"
        )

    def forward(self, batch: RayBatch, step: int) -> Losses:
        """Colour of the rays against the photos."""
        field, wanted = self.student, self.objective.at(step)
        if self.refresh:
            field.follow(step)
        rays = field.space.trace(batch.origins, batch.directions)
        samples = march_within(rays, field.space, field.occupancy, batch.jitter, self.samples)
        self.empty.check(len(samples.t))
        count = len(samples.counts)
        rendered = render_rays(field, rays[:count], samples, batch.background[:count])
        tensors: dict[str, tuple[Any, ...]] = {"pixel": (rendered.rgb, batch.rgb[:count])}
        if "depth" in wanted:
            tensors["depth"] = (rendered.depth, batch.depth[:count])
        if "distortion" in wanted:
            tensors["distortion"] = (rendered.weight, samples, field.space)
        if "variation" in wanted:
            tensors["variation"] = tuple(field.differences(generator("variation", step)))
        return self.objective(step, tensors)


def train_field(
    field: Field,
    scene: Scene,
    *,
    steps: int | None = None,
    seconds: float | None = None,
    lr: float | None = None,
    optimizer: Callable[[Distiller], MakeOptimizer] = row_adam,
    schedule: Schedule | None = None,
    samples: int = 6144,
    rays: int = 2048,
    background: Background = "auto",
    depth: float = 0.0,
    distortion: float = 0.0,
    variation: float = 0.0,
    refresh: bool = True,
    every: int = 0,
    run: Run | Path | str | None = None,
    seed: int = 0,
    **options: Any,
) -> tuple[Field, Sequence[dict[str, float]]]:
    """Train a field on the images of a scene.

    A ``grid`` is trained twice: dense and coarse for a quarter of the budget, then at its own
    resolution around what turned out to be occupied.

    Args:
        field: A fresh field in the space of the scene, or one to continue.
        scene: A scene with images.
        steps: Budget in steps; and/or
        seconds: in seconds.
        lr: Learning rate of tables and factors, scaled for networks (`Field.rate`); that of the
            kind when None.
        optimizer: Function of a distiller that gives its optimizer factory.
        schedule: Factor of the learning rate; `decaying` with its defaults when None.
        samples: Samples a step.
        rays: Rays drawn a step, of which as many are used as ``samples`` allow.
        background: Colour behind transparent pixels.
        depth: Weight of `regularizers.depth`, where the scene has depth maps.
        distortion: Weight of `regularizers.distortion`, against fog
            (nerfstudio's nerfacto takes 2e-3, published).
        variation: Weight of `regularizers.variation`, for vm, cp and grid.
        refresh: Let the occupancy grid follow the field; else it stays as it is.
        every: Steps between validations on the test views; 0 for none.
        run: Folder of checkpoints, history and curves.
        seed: Seed of rays and occupancy.
        **options: Other options of `potstill.core.fit`, such as ``clock`` and ``engine``.

    Returns:
        The trained field, and the history of `fit`.

    Raises:
        DataError: No images, rays that never meet the space; or depth without depth maps.
        ConfigError: No budget; or variation of a kind without neighbours.
    """
    objective = Objective(
        pixel=(1.0, F.mse_loss),
        depth=(depth, regularizers.depth),
        distortion=(distortion, regularizers.distortion),
        variation=(variation, regularizers.variation),
    )
    source = RaySource(scene.train, rays, background, seed)
    if depth and (scene.train.depths is None or field.space.kind == "ndc"):
        raise DataError(
            "train_field: depth needs depth maps, of a scene that is not in normalised device "
            f"coordinates, got {'none' if scene.train.depths is None else 'these'}; leave it 0"
        )
    run = Run(Path(run)) if isinstance(run, str | Path) else run

    def learn(field: Field, share: float, part: str, every: int) -> Sequence[dict[str, float]]:
        distiller = ImagesToField(field, samples, objective, refresh)
        history = fit(
            distiller,
            source,
            **budget(share, steps, seconds),
            lr=lr or RATES[field.kind],
            optimizer=optimizer(distiller),
            schedule=schedule or decaying(),
            validation=_validation(scene, every),
            run=run and replace(run, folder=run.folder / part),
            seed=seed,
            **options,
        )
        if refresh:
            field.refresh(generator("occupancy", "last"), everywhere=True)
        return history

    if not isinstance(field, GridField) or not field.is_dense or field.config.resolution < 16:
        return field, learn(field, 1.0, "", every)
    refresh, final = True, field.config
    coarse = GridField(
        replace(final, resolution=max(final.resolution // 2, 8)), field.space, **field.options
    )
    history = learn(coarse, 0.25, "coarse", 0)
    field = coarse.refined(final.resolution)
    return field, [*history, *learn(field, 0.75, "fine", every)]


def budget(share: float, steps: int | None, seconds: float | None) -> dict[str, Any]:
    """A share of a budget, of steps at least one, as options of `fit`."""
    return {
        "steps": steps and max(round(steps * share), 1),
        "seconds": seconds and seconds * share,
    }


def decaying(final: float = 0.1, warmup: float = 0.02375) -> Schedule:
    """Exponential decay to ``final``, with a rise from a twentieth over a share ``warmup``."""
    slope = 0.95 / warmup if warmup else 0.0
    return lambda progress: final**progress * (min(1.0, 0.05 + slope * progress) if warmup else 1.0)


def _validation(scene: Scene, every: int) -> Validation | None:
    if not every:
        return None
    score = partial(_score, split=scene.test)
    return Validation(score, every, key="psnr", ties="latest", split=True)


def _score(student: nn.Module, part: slice, split: Split) -> dict[str, Mean]:
    assert isinstance(student, Field)
    return {"psnr": score_of_views(student, split, 2, part)}


def score(field: Field, split: Split, views: int | None = None) -> float:
    """Mean PSNR in dB over the first ``views`` views of a split, on white, where not masked.

    Raises:
        DataError: There are no views, or no images.
    """
    return float(score_of_views(field, split, views))


@torch.no_grad()
def score_of_views(
    field: Field, split: Split, views: int | None = None, part: slice = slice(None)
) -> Mean:
    """`score` over a part of the views."""
    count = min(views or len(split.cameras), len(split.cameras))
    values = []
    for view in range(count)[part]:
        rgb, _, _ = render_image(field, split.cameras, view, field.space, field.occupancy)
        values.append(split.psnr(view, rgb))
    return Mean.of([value for value in values if not math.isnan(value)])  # nan: all is masked
