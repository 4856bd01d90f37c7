"""Whole images, in chunks of rays, with early stop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from potstill.nerf.cameras import Cameras
from potstill.nerf.render.composite import OPAQUE, Rendered, composite, weights
from potstill.nerf.render.march import Samples, march
from potstill.nerf.render.occupancy import Occupancy
from potstill.nerf.space import Rays, Space

_SLAB = 16  # samples of a ray between two looks at what is still visible

__all__ = ["Query", "render_image", "render_rays"]


class Query(Protocol):
    """What the renderer needs of a field: density now, colour of what is visible later."""

    def query(self, points: Tensor) -> tuple[Tensor, Callable[[Tensor, Tensor], Tensor]]:
        """Density [P], and a function of (indices [K], views [K 3]) that gives colours [K 3]."""
        ...


def render_rays(
    field: Query, rays: Rays, samples: Samples, background: Tensor | float = 1.0
) -> Rendered:
    """Composite a field along rays; colours of invisible samples are not computed.

    Without gradients rays are followed front to back, so that what is hidden is never evaluated.
    """
    if torch.is_grad_enabled():
        seen, _ = _composite(field, rays, samples, torch.ones_like(rays.base))
    else:
        seen = _front_to_back(field, rays, samples)
    return seen._replace(rgb=seen.rgb + (1 - seen.opacity[:, None]) * background)


def _composite(
    field: Query, rays: Rays, samples: Samples, light: Tensor
) -> tuple[Rendered, Tensor]:
    """What samples add to rays that have so much light left, and their optical depth."""
    sigma, color = field.query(samples.points)
    weight = weights(sigma, samples) * light[samples.ray]
    seen = (~(weight.detach() <= OPAQUE)).nonzero()[:, 0]  # NaN stays visible
    rgb = color(seen, rays.views[samples.ray[seen]])
    chosen = samples._replace(t=samples.t[seen], ray=samples.ray[seen])
    rendered = composite(weight[seen], rgb, chosen, 0.0)
    return rendered._replace(weight=weight), sigma * samples.dt


def _front_to_back(field: Query, rays: Rays, samples: Samples) -> Rendered:
    starts = samples.counts.cumsum(0) - samples.counts
    place = torch.arange(len(samples.t), device=samples.t.device) - starts[samples.ray]
    depth = torch.zeros_like(rays.base)  # optical, so far
    rgb, opacity, distance = torch.zeros_like(rays.views), depth.clone(), depth.clone()
    for first in range(0, int(samples.counts.max()) if len(rays) else 0, _SLAB):
        light = torch.exp(-depth)
        slab = (place >= first) & (place < first + _SLAB) & (light > OPAQUE)[samples.ray]
        part = samples.some(slab)
        seen, tau = _composite(field, rays, part, light)
        rgb, opacity, distance = rgb + seen.rgb, opacity + seen.opacity, distance + seen.depth
        depth.index_add_(0, part.ray, tau)
    return Rendered(rgb, opacity, distance)


@torch.no_grad()
def render_image(
    field: Query,
    cameras: Cameras,
    view: int,
    space: Space,
    occupancy: Occupancy,
    *,
    background: float = 1.0,
    chunk: int = 8192,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """One image: colour [H W 3], opacity [H W] and depth [H W] (0 where nothing is).

    Depth is the expected distance divided by the opacity, in marching coordinates.
    """
    origins, directions = cameras.view(view)
    device = occupancy.binaries.device
    parts = []
    for o, d in zip(origins.split(chunk), directions.split(chunk), strict=True):
        rays = space.trace(o.to(device), d.to(device))
        samples = march(rays, space, occupancy, backend=backend)
        parts.append(render_rays(field, rays, samples, background))
    width, height = cameras.size(view)
    size = (height, width)
    columns = zip(*(part[:3] for part in parts), strict=True)
    rgb, opacity, depth = (torch.cat(column).cpu() for column in columns)
    mean = torch.where(opacity > 0.05, depth / opacity.clamp(min=1e-6), torch.zeros_like(depth))
    return rgb.clamp(0, 1).reshape(*size, 3), opacity.reshape(size), mean.reshape(size)
