"""What travels with a picture: profile, EXIF, XMP, IPTC, resolution; and what each format holds."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from PIL import Image

__all__ = ["HOLDS", "Kind", "carried", "fitting", "photoshop", "renewed"]

Kind = Literal["L", "RGB"]

HOLDS: dict[str, tuple[str, ...]] = {
    "PNG": ("icc", "exif", "xmp", "dpi"),
    "TIFF": ("icc", "exif", "xmp", "iptc", "dpi"),
    "JPEG": ("icc", "exif", "xmp", "iptc", "dpi"),
    "WEBP": ("icc", "exif", "xmp", "dpi"),  # the resolution inside EXIF
    "GIF": (),
    "BMP": ("dpi",),
}
"""Fields of a `Picture` that a format can hold."""

_EXIF, _GPS = 0x8769, 0x8825
_WIDTH, _HEIGHT = 0xA002, 0xA003  # of the pixels, in the EXIF directory
_RESOLUTION = (282, 283, 296)
# Texts about the picture; every other tag of a TIFF describes how its samples are stored.
_TEXTS = (270, 271, 272, 305, 306, 315, 316, 18246, 18249, 33432, *range(40091, 40096))
_STALE = (_WIDTH, _HEIGHT, 0x9102, 0xA005)  # with bits to a pixel, and an offset
_STALE_XMP = rb"(?:tiff|exif):(?:Orientation|Image(?:Width|Length)|Pixel[XY]Dimension)"


def carried(image: Image.Image, name: str) -> dict[str, Any]:
    """Fields of a `Picture` besides its samples; call it before the samples are decoded.

    Only true EXIF and GPS tags are taken, without orientation and sizes.
    """
    info = image.info
    dpi = tuple(map(float, info.get("dpi") or ()))
    if not (len(dpi) == 2 and np.isfinite(dpi).all() and min(dpi) > 1):
        dpi = ()  # 1 is what a TIFF has that does not know it
    if image.format == "PNG" and "gamma" in info and not {"icc_profile", "srgb"} & set(info):
        gamma = float(info["gamma"])
        if abs(gamma - 1 / 2.2) > 0.005:
            warnings.warn(
                f"read_image: the gamma {gamma:g} of {name} is not applied; dropped", stacklevel=3
            )
    try:
        exif = _true_exif(image.getexif())
    except Exception as error:  # Pillow raises struct.error, SyntaxError and others
        warnings.warn(f"read_image: EXIF of {name} cannot be read ({error}); dropped", stacklevel=3)
        exif = None
    return {
        "icc": info.get("icc_profile"),
        "exif": exif,
        "xmp": _xmp(info),
        "iptc": _iptc(image),
        "dpi": dpi or None,
    }


def fitting(icc: bytes | None, kind: Kind, name: str) -> bytes | None:
    """The profile, where it is one for grey or for RGB as the picture is."""
    wanted = b"GRAY" if kind == "L" else b"RGB "
    if icc is None or icc[16:20] == wanted:
        return icc
    found = icc[16:20].decode("latin-1").strip()
    warnings.warn(
        f"read_image: the profile of {name} is for {found}, not for {wanted.decode().strip()}; "
        "dropped",
        stacklevel=4,
    )
    return None


def renewed(
    exif: bytes | None, size: tuple[int, int], dpi: tuple[float, float] | None, form: str
) -> Image.Exif | None:
    """EXIF of an enlarged picture: its own size (width, height) and its resolution."""
    if exif is None and not (dpi and form == "WEBP"):
        return None
    made = Image.Exif()
    if exif is not None:
        made.load(exif)
        inner = made.get_ifd(_EXIF)
        made[_EXIF] = {**inner, _WIDTH: size[0], _HEIGHT: size[1]}
        if _GPS in made:
            made[_GPS] = dict(made.get_ifd(_GPS))
    if dpi:
        made.update(dict(zip(_RESOLUTION, (*dpi, 2), strict=True)))
    return made


def _true_exif(source: Image.Exif) -> bytes | None:
    made = Image.Exif()
    for tag in _TEXTS:
        value = source.get(tag)
        if value is not None and not str(value).startswith('{"shape"'):  # tifffile's, of the source
            made[tag] = value
    inner = {tag: value for tag, value in source.get_ifd(_EXIF).items() if tag not in _STALE}
    for tag, directory in ((_EXIF, inner), (_GPS, dict(source.get_ifd(_GPS)))):
        if directory:
            made[tag] = directory
    return made.tobytes() if len(made) else None


def _xmp(info: Mapping[Any, Any]) -> bytes | None:
    """XMP without the sizes and the orientation of the source."""
    found = info.get("xmp") or info.get("XML:com.adobe.xmp")
    if not found:
        return None
    text = found.encode() if isinstance(found, str) else bytes(found)
    text = re.sub(rb"\s" + _STALE_XMP + rb"\s*=\s*(\"[^\"]*\"|'[^']*')", b"", text)
    return re.sub(rb"<(" + _STALE_XMP + rb")>[^<]*</\1>", b"", text)


def _iptc(image: Image.Image) -> bytes | None:
    found = getattr(image, "tag_v2", {}).get(33723)
    if found is None:
        blocks = image.info.get("photoshop")
        found = blocks.get(0x0404) if isinstance(blocks, Mapping) else None
    if isinstance(found, tuple):  # stored as 32-bit words
        found = np.array(found, "<u4").tobytes()
    return found if isinstance(found, bytes) and found else None


def photoshop(iptc: bytes) -> bytes:
    """IPTC as the resource block in which JPEG files carry it."""
    padded = iptc + b"\0" * (len(iptc) % 2)
    out = io.BytesIO()
    out.write(b"Photoshop 3.0\0" + b"8BIM" + b"\x04\x04" + b"\0\0")
    out.write(len(iptc).to_bytes(4, "big") + padded)
    return out.getvalue()
