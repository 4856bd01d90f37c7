"""Whole images, in chunks of rays, with early stop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from potstill.nerf.cameras import Cameras
from potstill.nerf.render.composite import Rendered, composite, weights
from potstill.nerf.render.march import Samples, march
from potstill.nerf.render.occupancy import Occupancy
from potstill.nerf.space import Rays, Space

__all__ = ["Query", "render_image", "render_rays"]

_OPAQUE = 1e-4  # transmittance below which nothing is seen any more


class Query(Protocol):
    """What the renderer needs of a field: density now, colour of what is visible later."""

    def query(self, points: Tensor) -> tuple[Tensor, Callable[[Tensor, Tensor], Tensor]]:
        """Density [P], and a function of (indices [K], views [K 3]) that gives colours [K 3]."""
        ...


def render_rays(
    field: Query, rays: Rays, samples: Samples, background: Tensor | float = 1.0
) -> Rendered:
    """Composite a field along rays; colours of invisible samples are not computed."""
    sigma, color = field.query(samples.points)
    weight = weights(sigma, samples)
    visible = (~(weight.detach() <= _OPAQUE)).nonzero()[:, 0]  # NaN stays visible
    rgb = color(visible, rays.views[samples.ray[visible]])
    seen = samples._replace(t=samples.t[visible], ray=samples.ray[visible])
    rendered = composite(weight[visible], rgb, seen, background)
    return rendered


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
    size = (cameras.height, cameras.width)
    rgb, opacity, depth = (torch.cat(x).cpu() for x in zip(*parts, strict=True))
    mean = torch.where(opacity > 0.05, depth / opacity.clamp(min=1e-6), torch.zeros_like(depth))
    return rgb.clamp(0, 1).reshape(*size, 3), opacity.reshape(size), mean.reshape(size)
