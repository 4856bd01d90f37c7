"""Pictures in memory: colour, alpha, depth, and what travels with them."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps

from potstill.core import BackendError, DataError
from potstill.sr.images.metadata import Kind, carried, fitting, renewed

__all__ = ["ORIENTATION", "Picture", "opencv", "picture_of", "sampled", "stacked"]

ORIENTATION = 0x0112
"""EXIF tag of the orientation."""


@dataclass(frozen=True)
class Picture:
    """A decoded image: colour, alpha and what came with them.

    Attributes:
        color: ``[H W 3]`` uint8 or uint16, upright. Grey images are replicated.
        alpha: ``[H W]`` of the same dtype, or None.
        kind: "L" when the source was grey: the result is written as grey again.
        icc: The embedded profile, or None.
        exif: EXIF bytes with the orientation reset, or None.
        xmp: XMP packet, or None.
        iptc: IPTC records, or None.
        dpi: Resolution (x, y) in dots per inch, or None.
        lossless: Source was a WebP without loss: it is written as one again.
    """

    color: NDArray[Any]
    alpha: NDArray[Any] | None = None
    kind: Kind = "RGB"
    icc: bytes | None = None
    exif: bytes | None = field(default=None, repr=False)
    xmp: bytes | None = field(default=None, repr=False)
    iptc: bytes | None = field(default=None, repr=False)
    dpi: tuple[float, float] | None = None
    lossless: bool = False

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
        """As a Pillow image, with all that travels with it in ``info``.

        16-bit colour becomes 8-bit, which is all that Pillow holds.
        """
        if self.kind == "L" and self.alpha is None:
            color = Image.fromarray(np.ascontiguousarray(self.color[..., 0]))
        else:
            color = Image.fromarray(self.rgb8())
        if self.alpha is not None:
            color = color.convert("L") if self.kind == "L" else color
            color.putalpha(Image.fromarray(replace(self, color=stacked(self.alpha)).rgb8()[..., 0]))
        exif = renewed(self.exif, color.size, None, "")
        found: dict[str, Any] = {"icc_profile": self.icc, "xmp": self.xmp, "dpi": self.dpi}
        found["exif"] = None if exif is None else exif.tobytes()
        found["photoshop"] = None if self.iptc is None else {0x0404: self.iptc}
        color.info.update({key: value for key, value in found.items() if value is not None})
        return color


def picture_of(
    image: Image.Image, name: str = "image", kept: dict[str, Any] | None = None
) -> Picture:
    """A Pillow image as a `Picture`.

    Args:
        image: Any mode.
        name: Name for messages.
        kept: Metadata that travels with it, where that had to be read before.

    Raises:
        DataError: 32-bit values that are not finite, or do not fit into 16 bits.
    """
    kept, form = kept or carried(image, name), image.format
    hidden = image.info.get("transparency")
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I;16", "I;16B", "I;16L", "I", "F"):
        values = np.asarray(image)
        alpha = np.where(values == hidden, 0, 65535) if isinstance(hidden, int) else None
        if form == "PNG" and image.mode == "I":
            values = values.astype(np.uint16)  # an older Pillow's 16 bits
        return sampled(values, alpha, kept, name)
    if image.mode == "CMYK":
        image, kept["icc"] = _cmyk_to_rgb(image, kept["icc"]), None
    if image.mode == "1":
        image = image.convert("L")
    transparent = "transparency" in image.info
    kind: Kind = "L" if image.mode in ("L", "LA", "La") else "RGB"
    kept["icc"] = fitting(kept["icc"], kind, name)
    if kind == "L" and (image.mode != "L" or transparent):
        grey, alpha = (np.asarray(band) for band in image.convert("LA").split())
        return Picture(stacked(grey), alpha, "L", **kept)
    if kind == "L":
        return Picture(stacked(np.asarray(image)), None, "L", **kept)
    if image.mode in ("RGBA", "RGBa", "PA") or transparent:
        rgba = np.asarray(image.convert("RGBA"))
        return Picture(np.ascontiguousarray(rgba[..., :3]), rgba[..., 3].copy(), "RGB", **kept)
    return Picture(np.asarray(image.convert("RGB")), None, "RGB", **kept)


def sampled(
    values: NDArray[Any], alpha: NDArray[Any] | None, kept: dict[str, Any], name: str
) -> Picture:
    """Samples ``[H W]`` or ``[H W 3]`` of more than 8 bits as a `Picture` of 16."""
    kind: Kind = "L" if values.ndim == 2 else "RGB"
    color = _sixteen(values, name)
    kept["icc"] = fitting(kept["icc"], kind, name)
    return Picture(
        stacked(color) if kind == "L" else np.ascontiguousarray(color),
        None if alpha is None else _sixteen(alpha, name),
        kind,
        **kept,
    )


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


def _sixteen(values: NDArray[Any], name: str) -> NDArray[np.uint16]:
    """16-bit, 32-bit and floating samples as 16-bit.

    Raises:
        DataError: The range leaves open which value is white.
    """
    if values.dtype == np.uint16:
        return values
    if values.dtype.kind == "f":
        return _from_float(values, name)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise DataError(
            f"read_image: {name} must have values from 0 to 65535, got {low} to {high}; rescale it"
        )
    if high < 256:
        raise DataError(
            f"read_image: {name} must use the range of its {values.dtype} samples, got {low} to "
            f"{high}, which may be bytes or a dark 16-bit image; store it as uint8 or uint16"
        )
    return values.astype(np.uint16)


def _from_float(values: NDArray[Any], name: str) -> NDArray[np.uint16]:
    if not np.isfinite(values).all():
        raise DataError(
            f"read_image: {name} must be finite, got {int((~np.isfinite(values)).sum())} NaN or "
            "infinite values; repair them"
        )
    low, high = float(values.min()), float(values.max())
    if low < -1 or high > 2:
        raise DataError(
            f"read_image: {name} must have floating values in [0, 1], got {low:g} to {high:g}; "
            "divide it by its white"
        )
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
