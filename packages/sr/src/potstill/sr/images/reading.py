"""Images from files: every kind that Pillow reads, 16-bit colour too, and folders of them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from potstill.core import DataError, PotstillError, is_leftover
from potstill.sr.images.picture import ORIENTATION, Kind, Picture, opencv, picture_of, stacked

__all__ = ["SUFFIXES", "find_photographs", "read_image"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".ppm", ".pgm", ".gif")
"""Suffixes that folders are searched for."""


def read_image(path: str | os.PathLike[str]) -> Picture:
    """Decode a file completely, upright, with everything that should survive enlarging.

    Palettes and one-bit images become RGB(A) or grey, CMYK becomes RGB through its embedded profile
    when there is one, floating TIFFs are taken as [0, 1] and become 16-bit. Of an animation the
    first frame is taken, with a warning.

    Raises:
        DataError: Nothing there, an empty, truncated or damaged file, or no image at all; the
            message names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"read_image: {path} must be a file, got nothing there")
    if path.stat().st_size == 0:
        raise DataError(f"read_image: {path} must be an image, got an empty file")
    try:
        with _large_images(), Image.open(path) as image:
            if getattr(image, "n_frames", 1) > 1:
                warnings.warn(
                    f"read_image: {path} is animated; its first frame is used", stacklevel=2
                )
                image.seek(0)
            wide = _holds_sixteen_bits(image)
            image.load()  # Pillow notices files that were cut off, OpenCV does not
            return _sixteen_bit(path, image) if wide else picture_of(image, str(path))
    except UnidentifiedImageError as error:
        raise DataError(
            f"read_image: {path} must be an image, got something else; is its suffix right?"
        ) from error
    except PotstillError:
        raise
    except Exception as error:  # decoders raise TypeError, MemoryError and others too
        raise DataError(
            f"read_image: {path} must be a whole image, got a damaged file: {error}"
        ) from error


def find_photographs(folder: str | os.PathLike[str]) -> list[Path]:
    """Image files below ``folder``, sorted; of DIV2K's layout the high-resolution training ones.

    Raises:
        DataError: No folder, or no image in it.
    """
    root = Path(folder)
    if (root / "DIV2K_train_HR").is_dir():
        root = root / "DIV2K_train_HR"
    found = sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    found = [path for path in found if not is_leftover(path)]
    if not found:
        raise DataError(
            f"find_photographs: {root} must be a folder with images ({', '.join(SUFFIXES)}), got "
            f"{'none' if root.is_dir() else 'nothing there'}"
        )
    return found


def _holds_sixteen_bits(image: Image.Image) -> bool:
    """Whether Pillow, before it loads, sees a 16-bit colour file, which it would cut to 8 bits."""
    packed = any(";16" in str(t[3]) for t in getattr(image, "tile", ()))
    return packed and image.format in ("PNG", "TIFF") and image.mode in ("RGB", "RGBA", "LA")


def _sixteen_bit(path: Path, image: Image.Image) -> Picture:
    """A 16-bit colour file, by OpenCV."""
    cv2 = opencv()
    # Not by path: OpenCV knows no names outside the system's code page, and limits sizes.
    values = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None or values.dtype != np.uint16:
        raise DataError(f"read_image: {path} must be a whole 16-bit image, got a damaged file")
    exif = image.getexif()
    turn = exif.pop(ORIENTATION, 1)
    alpha = values[..., 3] if values.ndim == 3 and values.shape[2] == 4 else None
    color = stacked(values) if values.ndim == 2 else values[..., 2::-1]
    kept = (image.info.get("icc_profile"), exif.tobytes() if len(exif) else None)
    kind: Kind = "L" if image.mode == "LA" else "RGB"
    color = np.ascontiguousarray(_upright(color, turn))
    return Picture(color, None if alpha is None else _upright(alpha, turn).copy(), kind, *kept)


def _upright(values: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Undo the EXIF orientation, 1 to 8."""
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    return values[:, ::-1] if orientation in (2, 3, 6, 7) else values


@contextmanager
def _large_images() -> Iterator[None]:
    """Lift Pillow's guard against decompression bombs: memory is planned before enlarging."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before
