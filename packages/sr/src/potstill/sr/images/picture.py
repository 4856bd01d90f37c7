"""Pictures in memory: colour, alpha, depth, profile and EXIF."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps

from potstill.core import BackendError, DataError

__all__ = ["ORIENTATION", "Kind", "Picture", "opencv", "picture_of", "stacked"]

ORIENTATION = 0x0112
"""EXIF tag of the orientation."""

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
            color.putalpha(Image.fromarray(replace(self, color=stacked(self.alpha)).rgb8()[..., 0]))
        return color


def picture_of(image: Image.Image, name: str = "image") -> Picture:
    """A Pillow image as a `Picture`.

    Args:
        image: Any mode.
        name: Name for messages.

    Raises:
        DataError: 32-bit values that are not finite, or do not fit into 16 bits.
    """
    icc = image.info.get("icc_profile")
    exif = image.getexif()
    image = ImageOps.exif_transpose(image)
    exif.pop(ORIENTATION, None)
    exif_bytes = exif.tobytes() if len(exif) else None
    if image.mode in ("I;16", "I;16B", "I;16L", "I", "F"):
        grey = _wide_grey(np.asarray(image), image.mode, name)
        return Picture(stacked(grey), None, "L", icc, exif_bytes)
    if image.mode == "CMYK":
        image, icc = _cmyk_to_rgb(image, icc), None
    if image.mode == "1":
        image = image.convert("L")
    transparent = "transparency" in image.info
    if image.mode in ("LA", "La") or (image.mode == "L" and transparent):
        grey, alpha = (np.asarray(band) for band in image.convert("LA").split())
        return Picture(stacked(grey), alpha, "L", icc, exif_bytes)
    if image.mode == "L":
        return Picture(stacked(np.asarray(image)), None, "L", icc, exif_bytes)
    if image.mode in ("RGBA", "RGBa", "PA") or transparent:
        rgba = np.asarray(image.convert("RGBA"))
        return Picture(
            np.ascontiguousarray(rgba[..., :3]), rgba[..., 3].copy(), "RGB", icc, exif_bytes
        )
    return Picture(np.asarray(image.convert("RGB")), None, "RGB", icc, exif_bytes)


def stacked(grey: NDArray[Any]) -> NDArray[Any]:
    """Grey as three channels: [H W] -> [H W 3]."""
    return np.repeat(grey[..., None], 3, axis=2)


def opencv() -> Any:
    """OpenCV, which holds 16-bit colour.

    Raises:
        BackendError: It is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise BackendError(
            f"16-bit colour needs OpenCV, which cannot be imported: {error}; "
            "pip install 'potstill-sr[opencv]'"
        ) from error
    return cv2


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
