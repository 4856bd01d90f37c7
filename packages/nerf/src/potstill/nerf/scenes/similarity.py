"""Similarities that bring a set of cameras to a standard place, direction and size."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["normalizing", "recentering", "scale_of"]


def normalizing(
    poses: Float[Tensor, "views 4 4"], points: Float[Tensor, "points 3"] | None = None
) -> Float[Tensor, "4 4"]:
    """Put what the cameras look at to the origin, their mean up to z, and them in the unit ball.

    The centre is the median of the points of the scene, and half of them lie in the ball too.
    Without points it is the point nearest to all viewing axes in the least-squares sense; where
    these are almost parallel it is kept from running away by a weak pull to the mean camera.
    """
    poses = poses.double()
    origins, axes = poses[:, :3, 3], -poses[:, :3, 2]
    project = torch.eye(3, dtype=torch.float64) - axes[:, :, None] * axes[:, None, :]
    pull = 1e-3 * len(poses) * torch.eye(3, dtype=torch.float64)
    right = (project @ origins[..., None]).sum(0)[:, 0] + pull @ origins.mean(0)
    center = torch.linalg.solve(project.sum(0) + pull, right)
    turn = _turning(poses[:, :3, 1].mean(0))
    reach = (origins - center).norm(dim=1).max()
    if points is not None:
        center = points.double().median(0).values
        reach = (origins - center).norm(dim=1).max()
        reach = torch.maximum(reach, (points - center).norm(dim=1).median())
    scale = 1 / reach.clamp(min=1e-6)
    similarity = torch.eye(4, dtype=torch.float64)
    similarity[:3, :3] = scale * turn
    similarity[:3, 3] = -scale * (turn @ center)
    return similarity.float()


def recentering(poses: Float[Tensor, "views 4 4"], scale: float) -> Float[Tensor, "4 4"]:
    """Bring the mean camera to the origin, looking along -z, and scale distances."""
    poses = poses.double()
    back = torch.nn.functional.normalize(poses[:, :3, 2].mean(0), dim=0)
    right = torch.linalg.cross(poses[:, :3, 1].mean(0), back)
    right = torch.nn.functional.normalize(right, dim=0)
    rotation = torch.stack([right, torch.linalg.cross(back, right), back], dim=1)
    similarity = torch.eye(4, dtype=torch.float64)
    similarity[:3, :3] = scale * rotation.T
    similarity[:3, 3] = -scale * (rotation.T @ poses[:, :3, 3].mean(0))
    return similarity.float()


def scale_of(similarity: Tensor) -> float:
    """Factor of lengths."""
    return float(torch.linalg.det(similarity[:3, :3].double()) ** (1 / 3))


def _turning(up: Tensor) -> Tensor:
    """The shortest rotation that takes ``up`` to the z axis."""
    up = torch.nn.functional.normalize(up, dim=0)
    z = torch.tensor([0.0, 0.0, 1.0], dtype=up.dtype)
    axis, cosine = torch.linalg.cross(up, z), float(up @ z)
    if cosine < -0.999999:
        return torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=up.dtype))
    a, b, c = axis.tolist()
    cross = torch.tensor([[0, -c, b], [c, 0, -a], [-b, a, 0]], dtype=up.dtype)
    return torch.eye(3, dtype=up.dtype) + cross + cross @ cross / (1 + cosine)
