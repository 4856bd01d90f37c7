"""Pictures to files: whole or absent, 8 or 16 bits, with all that travels with them."""

from __future__ import annotations

import os
import struct
import warnings
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from potstill.core import ConfigError, DataError, atomic
from potstill.sr.images.metadata import HOLDS, photoshop, renewed
from potstill.sr.images.picture import Picture, opencv, stacked
from potstill.sr.images.tiff import write_tiff

__all__ = ["FORMATS", "check_output", "write_image"]

FORMATS = {
    "png": "PNG",
    "tiff": "TIFF",
    "tif": "TIFF",
    "webp": "WEBP",
    "jpg": "JPEG",
    "jpeg": "JPEG",
    "gif": "GIF",
    "bmp": "BMP",
}
"""Suffixes that can be written, and their formats."""

_SIDES = {"WEBP": 16383, "JPEG": 65500, "GIF": 65535}  # pixels
_LARGEST = 2**32 - 2**16  # bytes that the writers of PNG and BMP count
_APP = 65533  # bytes of a segment of a JPEG
_NAMES = {"icc": "the profile", "exif": "EXIF", "xmp": "XMP", "iptc": "IPTC", "dpi": "dpi"}


def check_output(
    path: Path, height: int, width: int, itemsize: int, *, transparent: bool, overwrite: bool
) -> str:
    """Refuse what `write_image` could not write, before an hour is spent on making it.

    Args:
        path: File to write.
        height: Rows.
        width: Columns.
        itemsize: Bytes of a sample.
        transparent: Presence of alpha.
        overwrite: Permission to replace a file.

    Returns:
        The format.

    Raises:
        ConfigError: Another suffix; a file is there already; alpha in a JPEG or BMP; a name that is
            too long.
        DataError: The format cannot hold an image of this size.
    """
    form = FORMATS.get(path.suffix.lower().lstrip("."))
    if form is None:
        raise ConfigError(
            f"write_image: {path} must end in {', '.join('.' + f for f in FORMATS)}, got "
            f"{path.suffix or 'no suffix'!r}"
        )
    if len(os.fsencode(path.name)) > 255:
        raise ConfigError(
            f"write_image: the name of {path} must have at most 255 bytes, got "
            f"{len(os.fsencode(path.name))}; shorten it"
        )
    if path.exists() and not overwrite:
        raise ConfigError(
            f"write_image: {path} must not exist yet; pass overwrite to replace it, or "
            "skip_existing to leave it"
        )
    if form in ("JPEG", "BMP") and transparent:
        raise ConfigError(f"write_image: {path} cannot hold transparency; write .png or .webp")
    if max(width, height) > _SIDES.get(form, 2**31 - 1):
        raise DataError(
            f"write_image: sides of {path} must be at most {_SIDES[form]} pixels, got {width} x "
            f"{height}; write .png or .tiff"
        )
    size = 3 * height * width * itemsize
    if size > _LARGEST and form in ("PNG", "BMP"):
        raise DataError(
            f"write_image: {path} must stay below 4 GB uncompressed, got "
            f"{size / 1e9:.1f} GB; write .tiff"
        )
    return form


def write_image(
    picture: Picture,
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    quality: int | None = None,
) -> Path:
    """Write a picture under a temporary name and rename it: a file is whole or absent.

    What the format cannot hold is dropped with a warning that names it.

    Args:
        picture: Picture; 16 bits stay 16 bits in PNG and TIFF.
        path: File whose suffix chooses the format.
        overwrite: Permission to replace a file.
        quality: Quality of JPEG and lossy WebP, from 1 to 100; by default 95, and a WebP without
            loss where the source was one.

    Raises:
        ConfigError: Another suffix; a file is there already; alpha in a JPEG; another quality.
        DataError: The folder cannot be written, the disk is full, or the format cannot hold an
            image of this size.
        BackendError: A 16-bit PNG, and OpenCV is not installed.
    """
    if quality is not None and not 1 <= quality <= 100:
        raise ConfigError(f"write_image: quality must be from 1 to 100, got {quality}; try 95")
    path = Path(path)
    if picture.alpha is not None and bool((picture.alpha == picture.peak).all()):
        form = FORMATS.get(path.suffix.lower().lstrip("."))
        picture = replace(picture, alpha=None) if form in ("JPEG", "BMP") else picture
    transparent = picture.alpha is not None
    h, w = picture.color.shape[:2]
    itemsize = picture.color.itemsize
    form = check_output(path, h, w, itemsize, transparent=transparent, overwrite=overwrite)
    picture = _without_what_is_lost(picture, path, form)
    try:
        with atomic(path) as temporary:
            if form == "TIFF":
                _write_tiff(picture, temporary)
            elif picture.color.dtype == np.uint16 and form == "PNG":
                _write_wide(picture, temporary)
            else:
                _write_pil(picture, temporary, form, quality)
    except DataError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"write_image: {path} must be writable, got: {reason}") from error
    return path


def _without_what_is_lost(picture: Picture, path: Path, form: str) -> Picture:
    """The picture with what its format can hold; the rest is named in a warning."""
    lost = {name for name in _NAMES if getattr(picture, name) and name not in HOLDS[form]}
    if form == "JPEG":
        lost |= {name for name in ("xmp", "iptc") if len(getattr(picture, name) or b"") > _APP - 60}
    named = [_NAMES[name] for name in _NAMES if name in lost]
    if picture.color.dtype == np.uint16 and form not in ("PNG", "TIFF"):
        named.append("more than 8 bits")
    if form == "GIF":
        named.append("all but 256 colours")
    if named:
        warnings.warn(f"write_image: {path} cannot hold {', '.join(named)}; dropped", stacklevel=3)
    nothing: dict[str, Any] = dict.fromkeys(lost)
    return replace(picture, **nothing)


def _write_pil(picture: Picture, path: Path, form: str, quality: int | None) -> None:
    image = picture.to_pil()
    if image.mode.startswith("I;16"):
        image = Image.fromarray(replace(picture, color=stacked(np.asarray(image))).rgb8()[..., 0])
    image.info = {}
    image.save(path, form, **options_of(picture, form, quality))


def options_of(picture: Picture, form: str, quality: int | None) -> dict[str, Any]:
    """Options of Pillow's ``save``."""
    options: dict[str, Any] = {}
    exif = renewed(picture.exif, picture.color.shape[1::-1], picture.dpi, form)
    for name, value in (("icc_profile", picture.icc), ("dpi", picture.dpi), ("exif", exif)):
        if value is not None:
            options[name] = value
    if form == "PNG":
        options["compress_level"] = 4  # level 6 takes three times as long for 3 % of the size
        options["pnginfo"] = _texts(picture)
    elif form == "WEBP":
        options["lossless"] = picture.lossless and quality is None
        options["exact"] = picture.alpha is not None  # colour where it is clear, too
        if picture.xmp:
            options["xmp"] = picture.xmp
    elif form == "JPEG":
        options |= {"subsampling": 0, "extra": _segments(picture)}
    if form in ("JPEG", "WEBP"):
        options["quality"] = quality or 95
    return options


def _texts(picture: Picture) -> PngInfo:
    info = PngInfo()
    if picture.xmp:
        info.add_itxt("XML:com.adobe.xmp", picture.xmp.decode("utf-8", "replace"))
    return info


def _segments(picture: Picture) -> bytes:
    """XMP and IPTC as the segments APP1 and APP13 of a JPEG."""
    xmp = b"" if picture.xmp is None else b"http://ns.adobe.com/xap/1.0/\0" + picture.xmp
    iptc = b"" if picture.iptc is None else photoshop(picture.iptc)
    marked = ((b"\xff\xe1", xmp), (b"\xff\xed", iptc))
    return b"".join(mark + struct.pack(">H", len(data) + 2) + data for mark, data in marked if data)


def _write_tiff(picture: Picture, path: Path) -> None:
    color = picture.color[..., :1] if picture.kind == "L" else picture.color
    samples = color if picture.alpha is None else np.dstack([color, picture.alpha])
    tags = {34675: picture.icc, 700: picture.xmp, 33723: picture.iptc}
    exif = renewed(picture.exif, picture.color.shape[1::-1], None, "TIFF")
    x, y = picture.dpi or (None, None)
    found = {**tags, 282: x, 283: y, 296: picture.dpi and 2}
    write_tiff(path, samples, {k: v for k, v in found.items() if v is not None}, exif)


def _write_wide(picture: Picture, path: Path) -> None:
    """16-bit PNG with OpenCV, since Pillow holds no 16-bit colour."""
    cv2 = opencv()
    planes = picture.color[..., :1] if picture.kind == "L" else picture.color[..., ::-1]
    if picture.alpha is not None:
        planes = picture.color[..., ::-1]  # OpenCV has no grey with alpha
        planes = np.dstack([planes, picture.alpha])
    fine, data = cv2.imencode(
        ".png", np.ascontiguousarray(planes), [cv2.IMWRITE_PNG_COMPRESSION, 4]
    )
    if not fine:
        raise OSError("OpenCV could not encode it")
    path.write_bytes(_with_chunks(data.tobytes(), picture))


def _with_chunks(png: bytes, picture: Picture) -> bytes:
    """A PNG with what travels with it after its header (PNG specification, 11.3)."""
    start = 33  # signature, and IHDR with length, type and check sum
    chunks = b""
    exif = renewed(picture.exif, picture.color.shape[1::-1], picture.dpi, "PNG")
    if picture.icc:
        chunks += _chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(picture.icc))
    if picture.dpi:
        x, y = (round(dots / 0.0254) for dots in picture.dpi)
        chunks += _chunk(b"pHYs", struct.pack(">IIB", x, y, 1))
    if exif:
        chunks += _chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    if picture.xmp:
        chunks += _chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + picture.xmp)
    return png[:start] + chunks + png[start:]


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
