"""Adaptive cropping: the paper's way to images whose sides are no multiples of 4."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from potstill.core import ConfigError

__all__ = ["adaptive_cropping"]

_SHAVE = 32


@torch.inference_mode()
def adaptive_cropping(network: Callable[[Tensor], Tensor], image: NDArray[Any]) -> NDArray[Any]:
    """Refine four overlapping quarters and put their corners together.

    Source: Hui et al., ACM MM 2019, section 3.3 and Fig. 3. The quarters overlap by 29 to 32 pixels
    and each has attention of its own, so that seams remain; it is here to reproduce the paper.
    Padding, the default of `upscale`, has none.

    Args:
        network: IMDN_AS: [4 3 h w] to the same size.
        image: ``[H W 3]``, at least 64 pixels a side: below, the published rule cuts patches that
            are larger than the image.

    Returns:
        An array of the same shape and dtype.

    Raises:
        ConfigError: A side is shorter than 64.
    """
    h, w = image.shape[:2]
    if min(h, w) < 64:
        raise ConfigError(
            f"upscale: align='acs' needs sides of at least 64 pixels, got {w} x {h}; use "
            "align='pad'"
        )
    half_h, half_w = h // 2, w // 2
    tall, wide = _patch(half_h), _patch(half_w)
    quarters = [image[:tall, :wide], image[:tall, w - wide :]]
    quarters += [image[h - tall :, :wide], image[h - tall :, w - wide :]]
    peak = np.iinfo(image.dtype).max if image.dtype.kind == "u" else 1
    batch = np.stack(quarters).astype(np.float32).transpose(0, 3, 1, 2) / np.float32(peak)
    refined = [network(torch.from_numpy(part[None].copy()))[0] for part in batch]
    made = torch.stack(refined).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy() * peak
    if image.dtype.kind == "u":
        made = made.round()
    top, left = tall - (h - half_h), wide - (w - half_w)
    upper = np.concatenate([made[0][:half_h, :half_w], made[1][:half_h, left:]], axis=1)
    lower = np.concatenate([made[2][top:, :half_w], made[3][top:, left:]], axis=1)
    return np.concatenate([upper, lower]).astype(image.dtype)


def _patch(half: int) -> int:
    return half + _SHAVE - (half + _SHAVE) % 4
