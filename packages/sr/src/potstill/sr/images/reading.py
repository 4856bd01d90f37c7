"""Images from files: every kind that Pillow reads, 16-bit colour too, and folders of them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from potstill.core import DataError, PotstillError
from potstill.sr.images.metadata import Kind, carried, fitting
from potstill.sr.images.picture import ORIENTATION, Picture, opencv, picture_of, sampled, stacked
from potstill.sr.images.tiff import read_samples

__all__ = [
    "MEGAPIXELS",
    "SUFFIXES",
    "check_size",
    "find_photographs",
    "is_picture",
    "opened",
    "read_image",
    "without_loss",
]

MEGAPIXELS = 1000.0
"""Most pixels of a file that are decoded unless more are allowed."""

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".ppm", ".pgm", ".gif")
"""Suffixes that folders are searched for."""


def read_image(path: str | os.PathLike[str], *, megapixels: float = MEGAPIXELS) -> Picture:
    """Decode a file completely, upright, with everything that should survive enlarging.

    Palettes and one-bit images become RGB(A) or grey, CMYK becomes RGB through its embedded profile
    when there is one, floating TIFFs are taken as [0, 1] and become 16-bit. Of an animation, or of
    several pictures in one file, the first is taken, with a warning. What cannot be kept is said in
    a warning.

    Args:
        path: File.
        megapixels: Most pixels that are decoded, in millions: a small file can unpack to any size.

    Raises:
        DataError: Nothing there, an empty, truncated or damaged file, no image at all, or one that
            is too large, a program (EPS), or of an unknown range; the message names the file.
    """
    path = _checked(path)
    try:
        with opened(path) as image:
            check_size(path, image, megapixels)
            if getattr(image, "n_frames", 1) > 1:
                _tell_frames(path, image)
                image.seek(0)
            if image.format == "TIFF":
                return _tiff(path, image)
            wide = _holds_sixteen_bits(image)
            image.load()  # Pillow notices files that were cut off, OpenCV does not
            picture = _sixteen_bit(path, image) if wide else picture_of(image, str(path))
            return replace(picture, lossless=image.format == "WEBP" and without_loss(path))
    except UnidentifiedImageError as error:
        return _unknown_to_pillow(path, megapixels, error)
    except PotstillError:
        raise
    except Exception as error:  # decoders raise TypeError, MemoryError and others too
        raise DataError(
            f"read_image: {path} must be a whole image, got a damaged file: {error}"
        ) from error


def _checked(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    if not path.is_file():
        raise DataError(f"read_image: {path} must be a file, got nothing there")
    if path.stat().st_size == 0:
        raise DataError(f"read_image: {path} must be an image, got an empty file")
    return path


def check_size(path: Path, image: Image.Image, megapixels: float, frames: int = 1) -> None:
    """Refuse by the header alone what would take too long or is no picture."""
    if image.format == "EPS":
        raise DataError(f"read_image: {path} must be made of pixels, got EPS, which is a program")
    _check_pixels(path, *image.size, megapixels, frames)


def _check_pixels(path: Path, w: int, h: int, megapixels: float, frames: int = 1) -> None:
    if w * h * frames > 1e6 * megapixels:
        many = f" in {frames} frames" if frames > 1 else ""
        raise DataError(
            f"read_image: {path} must have at most {megapixels:g} megapixels, got {w} x {h}{many}; "
            "megapixels allows more"
        )


def _tell_frames(path: Path, image: Image.Image) -> None:
    count = getattr(image, "n_frames", 1)
    if image.format in ("MPO", "TIFF"):
        text = f"holds {count} pictures ({image.format}); the first is used, the others are dropped"
    else:
        text = f"is animated; its first frame is used, {count - 1} others are not"
    warnings.warn(f"read_image: {path} {text}", stacklevel=3)


def _tiff(path: Path, image: Image.Image) -> Picture:
    """A TIFF, by Pillow where that holds its samples as they are."""
    kept, turn = carried(image, str(path)), image.getexif().get(ORIENTATION, 1)
    found = read_samples(path)
    if found is None:
        return picture_of(image, str(path), kept)
    values, alpha = found
    alpha = None if alpha is None else _upright(alpha, turn).copy()
    return sampled(np.ascontiguousarray(_upright(values, turn)), alpha, kept, str(path))


def _unknown_to_pillow(path: Path, megapixels: float, error: Exception) -> Picture:
    """Layouts of TIFF that Pillow does not know, such as floating colour."""
    with path.open("rb") as file:
        if file.read(4) not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            raise DataError(
                f"read_image: {path} must be an image, got something else; is its suffix right?"
            ) from error
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages.first
            _check_pixels(path, page.imagewidth, page.imagelength, megapixels)
            kept: dict[str, Any] = {"icc": page.iccprofile}
            more = [f"tag {tag}" for tag in (700, 33723, 34665, 34853) if tag in page.tags]
        found = read_samples(path)
    except PotstillError:
        raise
    except Exception as second:
        raise DataError(
            f"read_image: {path} must be a whole image, got a damaged file: {second}"
        ) from second
    if found is None:
        raise DataError(
            f"read_image: {path} must be a TIFF of a known layout, got another; convert it"
        ) from error
    if more:
        warnings.warn(f"read_image: {', '.join(more)} of {path} dropped", stacklevel=3)
    return sampled(*found, kept, str(path))


def without_loss(path: Path) -> bool:
    """Whether a WebP holds a picture without loss (RFC 9649, sections 2.6 and 2.7)."""
    with path.open("rb") as file:
        file.seek(12)
        while len(head := file.read(8)) == 8:
            if head[:4] in (b"VP8L", b"VP8 "):
                return head[:4] == b"VP8L"
            size = 16 if head[:4] == b"ANMF" else int.from_bytes(head[4:], "little")
            file.seek(size + size % 2, 1)
    return False


def find_photographs(folder: str | os.PathLike[str]) -> list[Path]:
    """Image files below ``folder``, sorted; of DIV2K's layout the high-resolution training ones.

    Raises:
        DataError: No folder, or no image in it.
    """
    root = Path(folder)
    if (root / "DIV2K_train_HR").is_dir():
        root = root / "DIV2K_train_HR"
    found = sorted(p for p in root.rglob("*") if is_picture(p, root))
    if not found:
        raise DataError(
            f"find_photographs: {root} must be a folder with images ({', '.join(SUFFIXES)}), got "
            f"{'none' if root.is_dir() else 'nothing there'}"
        )
    return found


def is_picture(path: Path, root: Path) -> bool:
    """A file with a suffix of images, neither it nor a folder below ``root`` being hidden.

    What is being written, or was when its writer was killed, has a hidden name.
    """
    shown = not any(part.startswith(".") for part in path.relative_to(root).parts)
    return shown and path.suffix.lower() in SUFFIXES and path.is_file()


def _holds_sixteen_bits(image: Image.Image) -> bool:
    """Whether Pillow, before it loads, sees a 16-bit colour file, which it would cut to 8 bits."""
    packed = any(";16" in str(t[3]) for t in getattr(image, "tile", ()))
    return packed and image.format == "PNG" and image.mode in ("RGB", "RGBA", "LA")


def _sixteen_bit(path: Path, image: Image.Image) -> Picture:
    """A PNG with 16-bit colour, by OpenCV."""
    cv2 = opencv()
    # Not by path: OpenCV knows no names outside the system's code page, and limits sizes.
    values = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None or values.dtype != np.uint16:
        raise DataError(f"read_image: {path} must be a whole 16-bit image, got a damaged file")
    turn = image.getexif().get(ORIENTATION, 1)
    alpha = values[..., 3] if values.ndim == 3 and values.shape[2] == 4 else None
    color = stacked(values) if values.ndim == 2 else values[..., 2::-1]
    kind: Kind = "L" if image.mode == "LA" else "RGB"
    kept = carried(image, str(path))
    kept["icc"] = fitting(kept["icc"], kind, str(path))
    color = np.ascontiguousarray(_upright(color, turn))
    return Picture(color, None if alpha is None else _upright(alpha, turn).copy(), kind, **kept)


def _upright(values: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Undo the EXIF orientation, 1 to 8."""
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    return values[:, ::-1] if orientation in (2, 3, 6, 7) else values


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """Pillow's image, without its guard against decompression bombs: ours is `check_size`."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        with Image.open(path) as image:
            yield image
    finally:
        Image.MAX_IMAGE_PIXELS = before
