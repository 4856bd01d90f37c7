"""Pictures in and out: every kind that Pillow reads, with alpha, depth, profile and EXIF kept."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from potstill.core import BackendError, ConfigError, DataError, atomic

__all__ = ["FORMATS", "SUFFIXES", "Picture", "check_output", "read_image", "write_image"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".ppm", ".pgm", ".gif")
"""Suffixes that folders are searched for."""

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
_ORIENTATION = 0x0112

Kind = Literal["L", "RGB"]


@dataclass(frozen=True)
class Picture:
    """A decoded image: colour, alpha and what came with them.

    Attributes:
        color: ``[H W 3]`` uint8 or uint16, upright. Grey images are replicated.
        alpha: ``[H W]`` of the same dtype, or None.
        kind: "L" when the source was grey: the result is written as grey again.
        icc: The embedded profile, or None.
        exif: EXIF bytes with the orientation reset, or None.
    """

    color: NDArray[Any]
    alpha: NDArray[Any] | None = None
    kind: Kind = "RGB"
    icc: bytes | None = None
    exif: bytes | None = field(default=None, repr=False)

    @property
    def peak(self) -> int:
        """The largest value: 255 or 65535."""
        return int(np.iinfo(self.color.dtype).max)

    def rgb8(self) -> NDArray[np.uint8]:
        """The colour as bytes."""
        if self.color.dtype == np.uint8:
            return self.color
        return np.round(self.color / 257).astype(np.uint8)

    def to_pil(self) -> Image.Image:
        """As a Pillow image; 16-bit colour becomes 8-bit, which is all that Pillow holds."""
        if self.kind == "L" and self.alpha is None:
            return Image.fromarray(np.ascontiguousarray(self.color[..., 0]))
        color = Image.fromarray(self.rgb8())
        if self.kind == "L":
            color = color.convert("L")
        if self.alpha is not None:
            color.putalpha(
                Image.fromarray(replace(self, color=_stacked(self.alpha)).rgb8()[..., 0])
            )
        return color


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
            return _sixteen_bit(path, image) if wide else _from_pil(image, str(path))
    except UnidentifiedImageError as error:
        raise DataError(
            f"read_image: {path} must be an image, got something else; is its suffix right?"
        ) from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"read_image: {path} must be a whole image, got a damaged file: {error}"
        ) from error


def picture_of(image: Image.Image) -> Picture:
    """A Pillow image as a `Picture`, as `read_image` would give it."""
    return _from_pil(image, "image")


def _from_pil(image: Image.Image, name: str) -> Picture:
    icc = image.info.get("icc_profile")
    exif = image.getexif()
    image = ImageOps.exif_transpose(image)
    exif.pop(_ORIENTATION, None)
    exif_bytes = exif.tobytes() if len(exif) else None
    if image.mode in ("I;16", "I;16B", "I;16L", "I", "F"):
        grey = _wide_grey(np.asarray(image), image.mode, name)
        return Picture(_stacked(grey), None, "L", icc, exif_bytes)
    if image.mode == "CMYK":
        image, icc = _cmyk_to_rgb(image, icc), None
    if image.mode == "1":
        image = image.convert("L")
    transparent = "transparency" in image.info
    if image.mode in ("LA", "La") or (image.mode == "L" and transparent):
        grey, alpha = (np.asarray(band) for band in image.convert("LA").split())
        return Picture(_stacked(grey), alpha, "L", icc, exif_bytes)
    if image.mode == "L":
        return Picture(_stacked(np.asarray(image)), None, "L", icc, exif_bytes)
    if image.mode in ("RGBA", "RGBa", "PA") or transparent:
        rgba = np.asarray(image.convert("RGBA"))
        return Picture(
            np.ascontiguousarray(rgba[..., :3]), rgba[..., 3].copy(), "RGB", icc, exif_bytes
        )
    return Picture(np.asarray(image.convert("RGB")), None, "RGB", icc, exif_bytes)


def check_output(path: Path, size: int, *, transparent: bool, overwrite: bool) -> str:
    """Refuse what `write_image` could not write, before an hour is spent on making it.

    Args:
        path: The file to be.
        size: Bytes of its colour, not compressed.
        transparent: Whether it has alpha.
        overwrite: Whether a file that is there may be replaced.

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
        picture: What to write. 16-bit pictures stay 16-bit in PNG and TIFF.
        path: Its suffix chooses the format.
        overwrite: Replace a file that is there.
        quality: Of JPEG and lossy WebP.

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
        image = Image.fromarray(replace(picture, color=_stacked(np.asarray(image))).rgb8()[..., 0])
    image.save(path, form, **options)


def _holds_sixteen_bits(image: Image.Image) -> bool:
    """Whether Pillow, before it loads, sees a 16-bit colour file, which it would cut to 8 bits."""
    packed = any(";16" in str(t[3]) for t in getattr(image, "tile", ()))
    return packed and image.format in ("PNG", "TIFF") and image.mode in ("RGB", "RGBA", "LA")


def _sixteen_bit(path: Path, image: Image.Image) -> Picture:
    """A 16-bit colour file, by OpenCV."""
    cv2 = _opencv()
    # Not by path: OpenCV knows no names outside the system's code page, and limits sizes.
    values = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None or values.dtype != np.uint16:
        raise DataError(f"read_image: {path} must be a whole 16-bit image, got a damaged file")
    exif = image.getexif()
    turn = exif.pop(_ORIENTATION, 1)
    alpha = values[..., 3] if values.ndim == 3 and values.shape[2] == 4 else None
    color = _stacked(values) if values.ndim == 2 else values[..., 2::-1]
    kept = (image.info.get("icc_profile"), exif.tobytes() if len(exif) else None)
    kind: Kind = "L" if image.mode == "LA" else "RGB"
    color = np.ascontiguousarray(_upright(color, turn))
    return Picture(color, None if alpha is None else _upright(alpha, turn).copy(), kind, *kept)


def _opencv() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise BackendError(
            f"16-bit colour needs OpenCV, which cannot be imported: {error}; "
            "pip install 'potstill-sr[opencv]'"
        ) from error
    return cv2


def _upright(values: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Undo the EXIF orientation, 1 to 8."""
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    return values[:, ::-1] if orientation in (2, 3, 6, 7) else values


def _write_wide(picture: Picture, path: Path, form: str) -> None:
    """16-bit PNG or TIFF with OpenCV, since Pillow holds no 16-bit colour."""
    cv2 = _opencv()
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


@contextmanager
def _large_images() -> Iterator[None]:
    """Lift Pillow's guard against decompression bombs: memory is planned before enlarging."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _stacked(grey: NDArray[Any]) -> NDArray[Any]:
    return np.repeat(grey[..., None], 3, axis=2)


def _wide_grey(values: NDArray[Any], mode: str, name: str) -> NDArray[np.uint16]:
    """Pillow's 16-bit, 32-bit and floating grey as 16-bit."""
    if mode == "F":
        return _from_float(values, name)
    if mode == "I" and (values.min() < 0 or values.max() > 65535):
        raise DataError(
            f"read_image: {name} must have values from 0 to 65535, got {values.min()} to "
            f"{values.max()}; rescale it"
        )
    return values.astype(np.uint16)


def _from_float(values: NDArray[Any], name: str) -> NDArray[np.uint16]:
    if not np.isfinite(values).all():
        raise DataError(
            f"read_image: {name} must be finite, got {int((~np.isfinite(values)).sum())} NaN or "
            "infinite values; repair them"
        )
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 1:
        warnings.warn(
            f"read_image: {name} has values from {low:g} to {high:g}; clipped to [0, 1]",
            stacklevel=3,
        )
    return np.round(values.clip(0, 1) * 65535).astype(np.uint16)


def _cmyk_to_rgb(image: Image.Image, icc: bytes | None) -> Image.Image:
    """Through the embedded profile; without one by Pillow's arithmetic."""
    if icc:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(icc))
            target = ImageCms.createProfile("sRGB")
            made = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
            return image.convert("RGB") if made is None else made
        except ImageCms.PyCMSError:
            warnings.warn("read_image: the CMYK profile cannot be used; ignored", stacklevel=4)
    return image.convert("RGB")
