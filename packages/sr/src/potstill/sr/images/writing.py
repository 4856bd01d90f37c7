"""Pictures to files: whole or absent, 8 or 16 bits, with profile and EXIF."""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from potstill.core import ConfigError, DataError, atomic
from potstill.sr.images.picture import Picture, opencv, stacked

__all__ = ["FORMATS", "check_output", "write_image"]

FORMATS = {
    "png": "PNG",
    "tiff": "TIFF",
    "tif": "TIFF",
    "webp": "WEBP",
    "jpg": "JPEG",
    "jpeg": "JPEG",
}
"""Suffixes that can be written, and their formats."""

_LARGEST = 2**32 - 2**16  # classic TIFF counts bytes in 32 bits


def check_output(path: Path, size: int, *, transparent: bool, overwrite: bool) -> str:
    """Refuse what `write_image` could not write, before an hour is spent on making it.

    Args:
        path: File to write.
        size: Size of the colour in bytes, not compressed.
        transparent: Presence of alpha.
        overwrite: Permission to replace a file.

    Returns:
        The format.

    Raises:
        ConfigError: Another suffix; a file is there already; alpha in a JPEG.
        DataError: The file would pass 4 GB.
    """
    form = FORMATS.get(path.suffix.lower().lstrip("."))
    if form is None:
        raise ConfigError(
            f"write_image: {path} must end in {', '.join('.' + f for f in FORMATS)}, got "
            f"{path.suffix or 'no suffix'!r}"
        )
    if path.exists() and not overwrite:
        raise ConfigError(f"write_image: {path} must not exist yet; pass overwrite to replace it")
    if form == "JPEG" and transparent:
        raise ConfigError(f"write_image: {path} cannot hold transparency; write .png or .webp")
    if size > _LARGEST and form in ("PNG", "TIFF"):
        raise DataError(
            f"write_image: {path} must stay below 4 GB uncompressed, got "
            f"{size / 1e9:.1f} GB; enlarge the image in pieces"
        )
    return form


def write_image(
    picture: Picture, path: str | os.PathLike[str], *, overwrite: bool = False, quality: int = 95
) -> Path:
    """Write a picture under a temporary name and rename it: a file is whole or absent.

    Args:
        picture: Picture; 16 bits stay 16 bits in PNG and TIFF.
        path: File whose suffix chooses the format.
        overwrite: Permission to replace a file.
        quality: Quality of JPEG and lossy WebP, from 1 to 100.

    Raises:
        ConfigError: Another suffix; a file is there already; alpha in a JPEG.
        DataError: The folder cannot be written, the disk is full, or the file would pass 4 GB.
        BackendError: A 16-bit picture, and OpenCV is not installed.
    """
    path = Path(path)
    transparent = picture.alpha is not None
    form = check_output(path, picture.color.nbytes, transparent=transparent, overwrite=overwrite)
    try:
        with atomic(path) as temporary:
            if picture.color.dtype == np.uint16 and form in ("PNG", "TIFF"):
                _write_wide(picture, temporary, form)
            else:
                _write_pil(picture, temporary, form, quality)
    except DataError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"write_image: {path} must be writable, got: {reason}") from error
    return path


def _write_pil(picture: Picture, path: Path, form: str, quality: int) -> None:
    options: dict[str, Any] = {"quality": quality} if form in ("JPEG", "WEBP") else {}
    if form == "PNG":
        options["compress_level"] = 4  # level 6 takes three times as long for 3 % of the size
    if picture.icc:
        options["icc_profile"] = picture.icc
    if picture.exif:
        options["exif"] = picture.exif
    image = picture.to_pil()
    if form == "JPEG":
        options["subsampling"] = 0
    if image.mode.startswith("I;16"):
        image = Image.fromarray(replace(picture, color=stacked(np.asarray(image))).rgb8()[..., 0])
    image.save(path, form, **options)


def _write_wide(picture: Picture, path: Path, form: str) -> None:
    """16-bit PNG or TIFF with OpenCV, since Pillow holds no 16-bit colour."""
    cv2 = opencv()
    planes = picture.color[..., :1] if picture.kind == "L" else picture.color[..., ::-1]
    if picture.alpha is not None:
        planes = picture.color[..., ::-1]  # OpenCV has no grey with alpha
        planes = np.dstack([planes, picture.alpha])
    options = (
        [cv2.IMWRITE_PNG_COMPRESSION, 4] if form == "PNG" else [cv2.IMWRITE_TIFF_COMPRESSION, 8]
    )
    fine, data = cv2.imencode(path.suffix, np.ascontiguousarray(planes), options)
    if not fine:
        raise OSError("OpenCV could not encode it")
    encoded = data.tobytes()
    if form == "PNG":
        encoded = _with_chunks(encoded, picture.icc, picture.exif)
    path.write_bytes(encoded)


def _with_chunks(png: bytes, icc: bytes | None, exif: bytes | None) -> bytes:
    """A PNG with a colour profile and EXIF after its header (PNG specification, 11.3)."""
    start = 33  # signature, and IHDR with length, type and check sum
    chunks = b""
    if icc:
        chunks += _chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(icc))
    if exif:
        chunks += _chunk(b"eXIf", exif.removeprefix(b"Exif\0\0"))
    return png[:start] + chunks + png[start:]


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
