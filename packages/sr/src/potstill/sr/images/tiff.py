"""TIFF files with more than 8 bits, in any layout, and the writer of all TIFF files."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

from potstill.core import DataError
from potstill.sr.images.picture import opencv

__all__ = ["read_samples", "start_tiff", "write_tiff"]

_BIG = 2**32 - 2**25  # classic TIFF counts bytes in 32 bits; the rest is for profiles and EXIF
_STRIP = 1 << 20  # bytes
_GREY = ("MINISBLACK", "MINISWHITE")


def read_samples(path: Path) -> tuple[NDArray[Any], NDArray[Any] | None] | None:
    """Samples of a TIFF that Pillow cannot hold, and its alpha; None for 8 bits and fewer.

    Returns:
        ``[H W]`` or ``[H W 3]`` of the dtype of the file, and ``[H W]`` or None.

    Raises:
        DataError: A layout that is not supported, or a compression that is not installed.
    """
    import tifffile

    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        dtype = page.dtype
        if dtype is None or dtype.itemsize == 1 or page.bitspersample == 1:
            return None
        kind = getattr(page.photometric, "name", str(page.photometric))
        extra = len(page.extrasamples)
        if kind not in (*_GREY, "RGB") or extra > 1:
            raise DataError(
                f"read_image: {path} must be grey or RGB with at most one alpha, got {dtype} "
                f"{kind} with {page.samplesperpixel} samples a pixel; convert it to 8 bits"
            )
        planar = page.samplesperpixel > 1 and page.planarconfig == 2
        try:
            values = page.asarray()
        except ValueError as error:  # a codec is missing
            if planar or "imagecodecs" not in str(error):
                raise DataError(
                    f"read_image: {path} must be in a compression that can be read here, got: "
                    f"{error}; pip install imagecodecs"
                ) from error
            values = _by_opencv(path)
        associated = bool(extra) and page.extrasamples[0] == 1
    if planar:
        values = np.moveaxis(values, 0, -1)
    values = values.reshape(*values.shape[:2], -1)
    if kind == "MINISWHITE" and dtype.kind == "u":
        values[..., 0] = np.iinfo(dtype).max - values[..., 0]
    alpha = values[..., -1].copy() if extra else None
    color = values[..., : values.shape[2] - bool(extra)]
    if associated and alpha is not None:
        color = _divided(color, alpha)
    return (color[..., 0] if color.shape[2] == 1 else color), alpha


def _by_opencv(path: Path) -> NDArray[Any]:
    """Interleaved samples of a compression that tifffile does not have, in their order."""
    cv2 = opencv()
    values = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None or values.dtype.itemsize == 1:
        raise DataError(f"read_image: {path} must be a whole 16-bit image, got a damaged file")
    if values.ndim == 3:
        values[..., :3] = values[..., 2::-1].copy()
    return np.asarray(values)


def _divided(color: NDArray[Any], alpha: NDArray[Any]) -> NDArray[Any]:
    """Colour that was multiplied by alpha, as it is."""
    if color.dtype.kind != "u":
        return (color / np.where(alpha > 0, alpha, 1)[..., None]).astype(color.dtype)
    peak = np.iinfo(color.dtype).max
    large = color.astype(np.float64) * peak / np.maximum(alpha, 1)[..., None]
    return np.minimum(np.round(large), peak).astype(color.dtype)


def write_tiff(path: Path, samples: NDArray[Any], tags: dict[int, Any], exif: Any) -> None:
    """Write ``[H W S]`` bytes or 16-bit samples, compressed without loss; BigTIFF where needed.

    Args:
        path: File.
        samples: Grey or RGB; 2 or 4 samples have alpha, not associated.
        tags: Further tags.
        exif: EXIF directories, or None.
    """
    rows = max(1, _STRIP // samples[0].nbytes)
    strips = [_packed(samples[at : at + rows]) for at in range(0, len(samples), rows)]
    with path.open("wb") as file:
        start_tiff(file, samples.shape, samples.dtype, [len(s) for s in strips], rows, tags, exif)
        file.writelines(strips)


def start_tiff(
    file: BinaryIO,
    shape: Sequence[int],
    dtype: Any,
    sizes: Sequence[int],
    rows: int,
    tags: dict[int, Any],
    exif: Image.Exif | None,
    *,
    packed: bool = True,
) -> int:
    """Write all of a TIFF but its strips, which follow one after another.

    Args:
        file: Empty file.
        shape: ``[H W S]``.
        dtype: uint8 or uint16.
        sizes: Bytes of each strip.
        rows: Rows of a strip.
        tags: Further tags.
        exif: EXIF directories, or None.
        packed: Strips are differences that were deflated, else samples as they are.

    Returns:
        Where the first strip starts.
    """
    height, width, count = shape
    big = sum(sizes) > _BIG
    ifd = TiffImagePlugin.ImageFileDirectory_v2(
        ifh=b"II+\0\x08\0\0\0\x10\0\0\0\0\0\0\0" if big else b"II*\0\x08\0\0\0"
    )
    for tag, value in exif.items() if exif else ():
        ifd[tag] = value
    for tag, value in tags.items():
        if isinstance(value, bytes):
            ifd.tagtype[tag] = 7
        ifd[tag] = value
    ifd[256], ifd[257], ifd[277], ifd[284] = width, height, count, 1
    ifd[258] = (8 * np.dtype(dtype).itemsize,) * count
    ifd[259], ifd[317] = (8, 2) if packed else (1, 1)
    ifd[262] = 2 if count > 2 else 1
    if count in (2, 4):
        ifd[338] = 2
    ifd[278] = rows
    if big:
        ifd.tagtype[273] = ifd.tagtype[279] = 16
    ifd[273] = tuple(_starts(sizes))
    ifd[279] = tuple(sizes)
    ifd.save(file)
    return file.tell()


def _starts(sizes: Sequence[int]) -> Iterator[int]:
    """Where each strip starts, from the first one on."""
    at = 0
    for size in sizes:
        yield at
        at += size


def _packed(strip: NDArray[Any]) -> bytes:
    """Differences along the rows, deflated (TIFF 6.0, section 14)."""
    gaps = strip.astype(strip.dtype.newbyteorder("<"))
    gaps[:, 1:] -= strip[:, :-1]
    return zlib.compress(gaps.tobytes(), 4)
