"""Data: images in class folders as numbers from -1 to 1, or points of a known mixture."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from potstill.core import BackendError, ConfigError, generator
from potstill.core.images import load_images
from potstill.flow.methods.draws import Items
from potstill.flow.teachers.analytic import ring

__all__ = ["Data", "load_data", "pixels"]

_POINTS = 20_000


class Data(NamedTuple):
    """Real items.

    Attributes:
        items: Values, and labels where there are classes.
        classes: Names of the classes.
    """

    items: Items
    classes: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of an item."""
        return tuple(self.items.values.shape[1:])

    def split(self, share: float, seed: int = 0) -> tuple[Data, Data]:
        """Two disjoint random parts, the first with ``share`` of the items."""
        count = len(self.items.values)
        order = torch.randperm(count, generator=generator("split", seed))
        cut = round(share * count)
        return self.take(order[:cut]), self.take(order[cut:])

    def take(self, rows: Tensor) -> Data:
        """The items of some rows."""
        values, labels, _ = self.items
        return Data(Items(values[rows], None if labels is None else labels[rows]), self.classes)


def load_data(source: str | Path, *, size: int | None = None) -> Data:
    """Read images from class folders, or draw points of a mixture.

    Args:
        source: A folder or ``.zip`` file, see `potstill.core.images.load_images`; or ``mixture``,
            20,000 points of eight Gaussians around a circle; or ``digits``, the 1,797 images of 8x8
            pixels that come with scikit-learn. Images that are grey have one channel.
        size: Side of the square to which images are resized and cropped.

    Raises:
        DataError: Nothing there, or images that cannot be read.
        ConfigError: Images of several sizes, and no ``size``.
        BackendError: ``digits`` without scikit-learn.
    """
    if str(source) == "mixture" and not Path(source).exists():
        points, _ = ring().draw(_POINTS, generator("mixture"))
        return Data(Items(points), ())
    if str(source) == "digits" and not Path(source).exists():
        return _digits()
    found = load_images(source, size=size)
    bytes_ = found.pixels
    if bool((bytes_ == bytes_[:, :1]).all()):
        bytes_ = bytes_[:, :1]
    values = bytes_.float() / 127.5 - 1
    return Data(Items(values, found.labels if found.classes else None), found.classes)


def _digits() -> Data:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise BackendError(
            "load_data: digits needs scikit-learn, which is not installed: pip install "
            '"potstill-flow[digits]"'
        ) from error
    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32)[:, None] / 8 - 1
    return Data(Items(images, torch.tensor(found.target)), tuple("0123456789"))


def pixels(values: Tensor) -> Tensor:
    """Images from -1 to 1 as bytes, [images channels height width].

    Raises:
        ConfigError: Values that are no images.
    """
    if values.ndim != 4 or values.shape[1] not in (1, 3):
        raise ConfigError(
            "pixels: values must be [images, 1 or 3, height, width] to become pictures, got "
            f"{list(values.shape)}"
        )
    return ((values + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
