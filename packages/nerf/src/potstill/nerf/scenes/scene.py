"""A scene: cameras, images where there are some, and the space that they look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from potstill.core import DataError, reading
from potstill.nerf.cameras import Cameras
from potstill.nerf.scenes.similarity import normalizing
from potstill.nerf.space import Space

__all__ = ["Scene", "Split", "every_eighth", "read_images", "unbounded"]


@dataclass(frozen=True)
class Split:
    """Some views of a scene.

    Args:
        cameras: One a view.
        images: Bytes [V H W C] with 3 or 4 channels; None where only the poses are known.
    """

    cameras: Cameras
    images: UInt8[Tensor, "views height width channels"] | None = None

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
        pixels = self.images[view].float() / 255
        if pixels.shape[-1] == 3:
            return pixels
        return pixels[..., :3] * pixels[..., 3:] + background * (1 - pixels[..., 3:])


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
    """

    name: str
    layout: str
    train: Split
    test: Split
    space: Space
    similarity: Float[Tensor, "4 4"] = field(default_factory=lambda: torch.eye(4))
    notes: tuple[str, ...] = ()

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


def every_eighth(cameras: Cameras, images: Tensor | None) -> tuple[Split, Split]:
    """Training and test split where the files name none: every 8th view, from the first, tests."""
    index = torch.arange(len(cameras))

    def part(mask: Tensor) -> Split:
        chosen = index[mask]
        return Split(cameras[chosen], None if images is None else images[chosen])

    return part(index % 8 != 0), part(index % 8 == 0)


def unbounded(name: str, layout: str, views: Split, notes: tuple[str, ...]) -> Scene:
    """A scene without end: normalised, contracted, every 8th view tests."""
    similarity = normalizing(views.cameras.poses)
    train, test = every_eighth(views.cameras.moved(similarity), views.images)
    space = Space("contracted", (-1.0,) * 3, (1.0,) * 3, near=0.1, far=40.0, steps=128)
    return Scene(name, layout, train, test, space, similarity, notes)


def read_images(paths: Sequence[Path], downsample: int = 1) -> Tensor:
    """Images of one size as bytes [V H W C], reduced by an integer factor.

    Alpha is premultiplied while averaging, so that invisible pixels do not bleed.

    Raises:
        DataError: A file is missing or damaged; sizes or channels differ; the size is not a
            multiple of ``downsample``.
    """
    from PIL import Image

    images: list[np.ndarray] = []
    for path in paths:
        with reading(path, "an image"), Image.open(path) as image:
            mode = "RGBA" if image.mode in ("RGBA", "LA", "PA") else "RGB"
            images.append(np.asarray(image.convert(mode)))
        if images[-1].shape != images[0].shape:
            raise DataError(
                f"read_images: images must have one size, got {_size(images[0])} in "
                f"{paths[0].name} and {_size(images[-1])} in {path.name}; convert them first"
            )
    stack = torch.from_numpy(np.stack(images))
    if downsample == 1:
        return stack
    height, width = stack.shape[1:3]
    if downsample < 1 or height % downsample or width % downsample:
        raise DataError(f"read_images: downsample must divide {width} x {height}, got {downsample}")
    return torch.cat([_reduce(part, downsample) for part in stack.split(8)])


def _reduce(images: Tensor, factor: int) -> Tensor:
    pixels = images.float().permute(0, 3, 1, 2)
    if pixels.shape[1] == 4:
        pixels = torch.cat([pixels[:, :3] * pixels[:, 3:] / 255, pixels[:, 3:]], dim=1)
    pixels = torch.nn.functional.avg_pool2d(pixels, factor)
    if pixels.shape[1] == 4:
        alpha = pixels[:, 3:]
        pixels = torch.cat([pixels[:, :3] * 255 / alpha.clamp(min=1e-3), alpha], dim=1)
    return pixels.clamp(0, 255).round().byte().permute(0, 2, 3, 1).contiguous()


def _size(image: np.ndarray) -> str:
    return "x".join(map(str, (image.shape[1], image.shape[0], image.shape[2])))
