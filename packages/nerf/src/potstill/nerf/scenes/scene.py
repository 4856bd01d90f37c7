"""A scene: cameras, images where there are some, and the space that they look at."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from potstill.core import DataError, psnr
from potstill.nerf.cameras import Cameras
from potstill.nerf.scenes.similarity import scale_of
from potstill.nerf.space import Space

__all__ = ["Scene", "Split"]


@dataclass(frozen=True)
class Split:
    """Some views of a scene.

    Args:
        cameras: One a view.
        images: Bytes [V H W C] with 3 or 4 channels, smaller ones at the top left; None where only
            the poses are known.
        masks: True where images are to be learned from and scored; everywhere when None.
        depths: Distances along the rays in the units of the cameras, 0 where unknown.
    """

    cameras: Cameras
    images: UInt8[Tensor, "views height width channels"] | None = None
    masks: Bool[Tensor, "views height width"] | None = None
    depths: Float[Tensor, "views height width"] | None = None

    def __post_init__(self) -> None:
        if self.images is None:
            return
        size = (len(self.cameras), self.cameras.height, self.cameras.width)
        if self.images.shape[:3] != size:
            raise DataError(
                f"Split: images must be {list(size)} like the cameras, got "
                f"{list(self.images.shape[:3])}; pass rescale=True (--rescale-intrinsics) if the "
                "intrinsics are those of the images at another size"
            )

    def image(self, view: int, background: float = 1.0) -> Float[Tensor, "height width 3"]:
        """An image in [0, 1], over a background where it has alpha.

        Raises:
            DataError: There are no images.
        """
        if self.images is None:
            raise DataError("Split.image: images are needed, got poses only")
        width, height = self.cameras.size(view)
        pixels = self.images[view, :height, :width].float() / 255
        if pixels.shape[-1] == 3:
            return pixels
        return pixels[..., :3] * pixels[..., 3:] + background * (1 - pixels[..., 3:])

    def judged(self, view: int, rendered: Float[Tensor, "height width 3"]) -> Tensor:
        """A rendering whose masked pixels are those of the photo: they count as equal."""
        if self.masks is None:
            return rendered
        width, height = self.cameras.size(view)
        mask = self.masks[view, :height, :width, None]
        return torch.where(mask, rendered, self.image(view))

    def psnr(self, view: int, rendered: Float[Tensor, "height width 3"]) -> float:
        """Decibels of a rendering over the pixels that are not masked."""
        photo = self.image(view)
        if self.masks is None:
            return float(psnr(rendered, photo))
        width, height = self.cameras.size(view)
        mask = self.masks[view, :height, :width]
        return float(psnr(rendered[mask], photo[mask])) if bool(mask.any()) else math.nan

    def __getitem__(self, index: Tensor | slice | list[int]) -> Split:
        """Some of the views."""
        chosen = torch.arange(len(self.cameras))[index]
        images, masks, depths = (
            None if part is None else part[chosen]
            for part in (self.images, self.masks, self.depths)
        )
        return Split(self.cameras[chosen], images, masks, depths)

    def moved(self, similarity: Float[Tensor, "4 4"]) -> Split:
        """The views after a similarity of the world."""
        depths = None if self.depths is None else self.depths * scale_of(similarity)
        return replace(self, cameras=self.cameras.moved(similarity), depths=depths)


@dataclass(frozen=True)
class Scene:
    """Posed images, in the coordinates that a field is trained in.

    Args:
        name: For reports.
        layout: Name of the loader.
        train: Views to learn from.
        test: Views to be judged by.
        space: Region that the cameras look at.
        similarity: Map of the coordinates of the input to those of the scene, [4 4].
        notes: Remarks on unusual input, for ``potstill nerf inspect``.
        unused: Keys of the file that nothing is done with.
        points: Points of a sparse reconstruction in the coordinates of the scene, [P 3], or None.
    """

    name: str
    layout: str
    train: Split
    test: Split
    space: Space
    similarity: Float[Tensor, "4 4"] = field(default_factory=lambda: torch.eye(4))
    notes: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    points: Float[Tensor, "points 3"] | None = None

    def __post_init__(self) -> None:
        if len(self.train.cameras) < 2:
            raise DataError(
                f"Scene: {self.name} must have at least 2 training views, got "
                f"{len(self.train.cameras)}"
            )

    @property
    def has_alpha(self) -> bool:
        """Whether images say where the scene is empty."""
        return self.train.images is not None and self.train.images.shape[-1] == 4

    def shuffled(self, seed: int = 0) -> Scene:
        """The scene with its training poses permuted among the images: a control.

        Whatever a field learns from this has nothing to do with geometry.
        """
        order = torch.randperm(
            len(self.train.cameras), generator=torch.Generator().manual_seed(seed)
        )
        return replace(self, train=replace(self.train, cameras=self.train.cameras[order]))

    def aligned(self, similarity: Float[Tensor, "4 4"]) -> Scene:
        """The scene in other coordinates: ``similarity`` takes those of the input there."""
        wanted = torch.as_tensor(similarity).double()
        step = wanted @ torch.linalg.inv(self.similarity.double())
        points = self.points
        if points is not None:
            points = (points.double() @ step[:3, :3].T + step[:3, 3]).float()
        train, test = self.train.moved(step), self.test.moved(step)
        return replace(self, train=train, test=test, similarity=wanted.float(), points=points)
