"""Animations: GIF, APNG and WebP as pictures with durations, and back."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.core import atomic
from potstill.sr.images.metadata import carried
from potstill.sr.images.picture import Picture, picture_of
from potstill.sr.images.reading import MEGAPIXELS, check_size, opened, without_loss
from potstill.sr.images.writing import check_output, options_of

__all__ = ["MOVING", "Animation", "is_animated", "read_animation", "write_animation"]

MOVING = ("GIF", "PNG", "WEBP")
"""Formats that hold animations."""


@dataclass(frozen=True)
class Animation:
    """Frames, each a whole picture.

    Attributes:
        frames: Pictures of one size.
        durations: Time that each is shown, milliseconds.
        loop: Number of repetitions, 0 for ever; None to show it once.
    """

    frames: list[Picture]
    durations: list[float]
    loop: int | None


def is_animated(path: str | os.PathLike[str]) -> bool:
    """Whether a file that can be read is an animation."""
    try:
        with opened(Path(path)) as image:
            return image.format in MOVING and getattr(image, "n_frames", 1) > 1
    except Exception:  # whatever it is, `read_image` says what is wrong with it
        return False


def read_animation(path: str | os.PathLike[str], *, megapixels: float = MEGAPIXELS) -> Animation:
    """All frames of an animation.

    Raises:
        DataError: All frames together have more than ``megapixels``.
    """
    frames, durations = [], []
    with opened(Path(path)) as image:
        count = getattr(image, "n_frames", 1)
        check_size(Path(path), image, megapixels, count)
        kept = carried(image, str(path))
        kept["lossless"] = image.format == "WEBP" and without_loss(Path(path))
        loop = image.info.get("loop")
        for number in range(1 if image.info.get("default_image") else 0, count):
            image.seek(number)
            image.load()
            durations.append(float(image.info.get("duration", 100)))
            frame = image.convert("RGBA" if _transparent(image.info, image.mode) else "RGB")
            frames.append(picture_of(frame, str(path), dict(kept)))
    return Animation(frames, durations, loop)


def _transparent(info: Mapping[Any, Any], mode: str) -> bool:
    return "transparency" in info or mode in ("RGBA", "LA", "PA")


def write_animation(
    animation: Animation,
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    quality: int | None = None,
) -> Path:
    """Write an animation as GIF, APNG or WebP, by the suffix; whole or absent.

    Raises:
        ConfigError: A file is there already.
        DataError: The format cannot hold frames of this size, or the folder cannot be written.
    """
    path, first = Path(path), animation.frames[0]
    h, w = first.color.shape[:2]
    form = check_output(path, h, w, 1, transparent=first.alpha is not None, overwrite=overwrite)
    made = [frame.to_pil() for frame in animation.frames]
    for image in made:
        image.info = {}
    options = options_of(first, form, quality) if form != "GIF" else {"disposal": 2}
    if animation.loop is not None:
        options["loop"] = animation.loop
    with atomic(path) as temporary:
        made[0].save(
            temporary,
            form,
            save_all=True,
            append_images=made[1:],
            duration=animation.durations,
            **options,
        )
    return path
