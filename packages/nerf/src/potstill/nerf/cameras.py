"""Cameras: poses, intrinsics and lens distortion, and the rays through their pixels."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from potstill.core import ConfigError, DataError
from potstill.nerf.lenses import COEFFICIENTS, LENSES, Lens, directions

__all__ = ["Cameras", "look_at", "looking", "orbit", "pinhole", "rotations"]


@dataclass(frozen=True)
class Cameras:
    """Cameras with the lens models of OpenCV and COLMAP, or whole panoramas.

    Axes are OpenGL's: x right, y up, the camera looks along -z. Pixel centres are at +0.5.

    Args:
        poses: Camera to world, [V 4 4].
        intrinsics: fx, fy, cx, cy in pixels, [V 4].
        width: Image width in pixels; the largest one where images differ in size.
        height: Image height in pixels, likewise.
        distortion: k1 k2 p1 p2, [V 4], or with k3 k4 k5 k6, [V 8]; k1 k2 k3 k4 of a fisheye; for
            the other lenses what COLMAP has, in its order; None for none.
        names: Names of the views, for messages.
        lens: ``perspective``; ``fisheye``, OpenCV's; ``equirectangular``, whose focal length is in
            pixels a radian; or COLMAP's ``thin-prism``, ``fisheye624``, ``fov``, ``division``,
            ``eucm``.
        sizes: Width and height of each image, [V 2]; None where all are equal.

    Raises:
        DataError: A pose is not finite or not rigid, a focal length is not positive, or a lens has
            another number of coefficients.
        ConfigError: An unknown lens.

    Example:
        >>> cameras = orbit(views=4, radius=3.0, width=8, height=6, angle=0.7)
        >>> origins, directions = cameras.view(0)
        >>> directions.shape
        torch.Size([48, 3])
    """

    poses: Float[Tensor, "views 4 4"]
    intrinsics: Float[Tensor, "views 4"]
    width: int
    height: int
    distortion: Float[Tensor, "views coefficients"] | None = None
    names: tuple[str, ...] = ()
    lens: Lens = "perspective"
    sizes: Integer[Tensor, "views 2"] | None = None

    def __post_init__(self) -> None:
        if self.lens not in LENSES:
            raise ConfigError(
                f"Cameras: lens must be one of {', '.join(LENSES)}, got {self.lens!r}"
            )

        def refuse(bad: Tensor, requirement: str, got: Tensor) -> None:
            if bool(bad.any()):
                view = int(bad.nonzero()[0, 0])
                name = self.names[view] if self.names else f"view {view}"
                values = [round(float(v), 4) for v in got[view].flatten()[:4]]
                raise DataError(f"Cameras: {name} must have {requirement}, got {values}")

        if self.poses.shape[1:] != (4, 4) or self.intrinsics.shape != (len(self.poses), 4):
            raise DataError(
                "Cameras: poses must be [views, 4, 4] and intrinsics [views, 4], got "
                f"{list(self.poses.shape)} and {list(self.intrinsics.shape)}"
            )
        if self.distortion is not None and self.distortion.shape[1] not in COEFFICIENTS[self.lens]:
            raise DataError(
                f"Cameras: distortion of {self.lens} must have "
                f"{' or '.join(map(str, COEFFICIENTS[self.lens])) or 'no'} coefficients, got "
                f"{self.distortion.shape[1]}"
            )
        refuse(~self.poses.isfinite().flatten(1).all(1), "a finite pose", self.poses)
        rotation = self.poses[:, :3, :3].double()
        error = (rotation.mT @ rotation - torch.eye(3, dtype=torch.float64)).abs().amax((1, 2))
        rigid = (error <= 1e-3) & (torch.linalg.det(rotation) > 0)
        refuse(~rigid, "a rigid pose (|R^T R - I| <= 1e-3, det > 0); is it a scaled one?", rotation)
        usable = self.intrinsics.isfinite().all(1) & (self.intrinsics[:, :2] > 0).all(1)
        refuse(~usable, "finite intrinsics and positive focal lengths", self.intrinsics)

    def __len__(self) -> int:
        return len(self.poses)

    def __getitem__(self, index: Tensor | slice | list[int]) -> Cameras:
        """Some of the cameras."""
        chosen = torch.arange(len(self))[index].tolist()
        return replace(
            self,
            poses=self.poses[chosen],
            intrinsics=self.intrinsics[chosen],
            distortion=None if self.distortion is None else self.distortion[chosen],
            names=tuple(self.names[i] for i in chosen) if self.names else (),
            sizes=None if self.sizes is None else self.sizes[chosen],
        )

    @property
    def extents(self) -> Integer[Tensor, "views 2"]:
        """Width and height of each image."""
        if self.sizes is not None:
            return self.sizes
        return torch.tensor([self.width, self.height]).expand(len(self), 2)

    def size(self, view: int) -> tuple[int, int]:
        """Width and height of an image."""
        width, height = self.extents[view].tolist()
        return width, height

    def resized(self, width: int, height: int) -> Cameras:
        """The same cameras with images of another size, and all of that one."""
        return self.fitted(torch.tensor([width, height]).expand(len(self), 2))

    def fitted(self, sizes: Integer[Tensor, "views 2"]) -> Cameras:
        """The same cameras with images of other sizes: width and height of each."""
        factors = (sizes.double() / self.extents).repeat(1, 2)
        intrinsics = (self.intrinsics * factors).to(self.intrinsics)
        width, height = sizes.amax(0).tolist()
        same = bool((sizes == sizes[0]).all())
        kept = None if same else sizes.clone()
        return replace(self, intrinsics=intrinsics, width=width, height=height, sizes=kept)

    def moved(self, similarity: Float[Tensor, "4 4"]) -> Cameras:
        """The cameras after a similarity of the world: rotations stay rotations."""
        poses = similarity.to(self.poses) @ self.poses
        scale = torch.linalg.det(similarity[:3, :3].double()) ** (1 / 3)
        poses[:, :3, :3] /= scale.to(poses)
        return replace(self, poses=poses)

    def rays(
        self, view: Integer[Tensor, " rays"], x: Tensor, y: Tensor
    ) -> tuple[Float[Tensor, "rays 3"], Float[Tensor, "rays 3"]]:
        """Origins and unit directions through image points.

        Args:
            view: Camera of each ray.
            x: Column in pixels; the centre of the first pixel is 0.5.
            y: Row in pixels, from the top.
        """
        local = self._local(view, x, y)[0] * x.new_tensor([1.0, -1.0, -1.0])
        pose = self.poses[view]
        turned = (pose[:, :3, :3] @ local[:, :, None])[..., 0]
        return pose[:, :3, 3], torch.nn.functional.normalize(turned, dim=1)

    def view(self, index: int) -> tuple[Tensor, Tensor]:
        """Rays of all pixels of one camera, row by row."""
        return self.rays(*self._pixels(index))

    def reached(self, index: int) -> Tensor:
        """Pixels [H W] of one camera that the lens reaches; its distortion folds over the others.

        The ray of such a pixel is that of the last one on the way to the centre which is reached.
        """
        width, height = self.size(index)
        if self.distortion is None and self.lens in ("perspective", "equirectangular"):
            return torch.ones(height, width, dtype=torch.bool)
        return self._local(*self._pixels(index))[1].reshape(height, width)

    def ahead(self, index: int) -> Tensor:
        """Share [H W] of a distance along each pixel's ray that lies along the optical axis."""
        width, height = self.size(index)
        local = self._local(*self._pixels(index))[0]
        return torch.nn.functional.normalize(local, dim=1)[:, 2].reshape(height, width)

    def _pixels(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        width, height = self.size(index)
        y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
        return torch.full((x.numel(),), index), x.flatten(), y.flatten()

    def _local(self, view: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        fx, fy, cx, cy = self.intrinsics[view].unbind(1)
        distortion = None if self.distortion is None else self.distortion[view]
        return directions(self.lens, (x - cx) / fx, (y - cy) / fy, distortion)


def look_at(position: Tensor, target: Tensor, up: Tensor) -> Tensor:
    """Pose [4 4] of a camera at ``position`` that looks at ``target``.

    Raises:
        ConfigError: Position and target coincide, or the view is along ``up``.
    """
    back = position - target
    right = torch.linalg.cross(up, back)
    if float(back.norm()) == 0 or float(right.norm()) < 1e-6 * float(back.norm()):
        raise ConfigError(
            f"look_at: position must differ from target and not lie along up, got "
            f"{position.tolist()} and {target.tolist()}"
        )
    back, right = back / back.norm(), right / right.norm()
    pose = torch.eye(4)
    pose[:3] = torch.stack([right, torch.linalg.cross(back, right), back, position], dim=1)
    return pose


def orbit(
    views: int,
    radius: float,
    width: int,
    height: int,
    angle: float,
    elevation: float = 0.5,
    center: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> Cameras:
    """Cameras on a circle around the z axis, looking at ``center``.

    Args:
        views: Number of cameras, evenly spaced.
        radius: Distance from ``center``.
        width: Image width.
        height: Image height.
        angle: Horizontal field of view, radians.
        elevation: Angle above the plane z = 0, radians.
        center: Point that they look at.
    """
    target, up = torch.tensor(center), torch.tensor([0.0, 0.0, 1.0])
    turns = [2 * math.pi * k / views for k in range(views)]
    flat, lift = radius * math.cos(elevation), radius * math.sin(elevation)
    positions = [
        target + torch.tensor([flat * math.cos(a), flat * math.sin(a), lift]) for a in turns
    ]
    return looking(positions, target, up, width / (2 * math.tan(angle / 2)), width, height)


def looking(
    positions: Iterable[Tensor], target: Tensor, up: Tensor, focal: float, width: int, height: int
) -> Cameras:
    """Cameras at positions [3] that look at ``target``, with a focal length in pixels."""
    poses = torch.stack([look_at(position, target, up) for position in positions])
    intrinsics = torch.tensor([focal, focal, width / 2, height / 2]).repeat(len(poses), 1)
    return Cameras(poses, intrinsics, width, height)


def pinhole(width: int, height: int, angle: float) -> Cameras:
    """One lens without distortion, from its horizontal field of view in radians.

    Raises:
        ConfigError: A size or an angle that no image has.
    """
    if width < 1 or height < 1 or not 0 < angle < math.pi:
        raise ConfigError(
            "pinhole: width and height must be at least 1 and angle in (0, pi), got "
            f"{width}, {height} and {angle}"
        )
    focal = width / (2 * math.tan(angle / 2))
    intrinsics = torch.tensor([[focal, focal, width / 2, height / 2]])
    return Cameras(torch.eye(4)[None], intrinsics, width, height)


def rotations(quaternions: Float[Tensor, "turns 4"]) -> Float[Tensor, "turns 3 3"]:
    """Rotations by quaternions (w, x, y, z), which need not be normalised."""
    w, x, y, z = torch.nn.functional.normalize(quaternions, dim=1).unbind(1)
    rows = [
        *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    ]
    return torch.stack(rows, dim=1).reshape(-1, 3, 3)
