"""A picture of a condensed set above random images."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.condense.condensed import Condensed
from potstill.condense.data.pool import Pool
from potstill.core import atomic

__all__ = ["picture", "write_gallery"]

_SHOWN = 10  # classes, and images of each


def picture(images: Tensor, labels: Tensor, side: int = 64) -> Tensor:
    """A column for each class and a row for each image, [height width 3] bytes.

    Args:
        images: Bytes [images channels height width].
        labels: Class of each.
        side: Smallest side of a shown image in pixels.
    """
    rows = [images[labels == number][:_SHOWN] for number in labels.unique()[:_SHOWN].tolist()]
    zoom = max(1, -(-side // max(images.shape[-2:])))
    height = max(map(len, rows))
    columns = []
    for each in rows:
        blank = each.new_full((height - len(each), *each.shape[1:]), 255)
        large = torch.cat([each, blank]).repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
        padded = F.pad(large, (1, 1, 1, 1), value=255)
        columns.append(torch.cat(list(padded), 1))
    return torch.cat(columns, 2).expand(3, -1, -1).permute(1, 2, 0)


def write_gallery(condensed: Condensed, pool: Pool, path: Path) -> None:
    """Write the set, and below it random images of the same classes, as a PNG."""
    from PIL import Image

    above = picture(condensed.pixels(), condensed.labels)
    parts = [above]
    if condensed.baseline is not None:
        rows = condensed.baseline[0]
        real = Condensed.of(pool, rows)
        gap = above.new_full((12, above.shape[1], 3), 255)
        parts += [gap, picture(real.pixels(), real.labels)]
    with atomic(path) as temporary:
        Image.fromarray(torch.cat(parts).contiguous().numpy()).save(temporary, format="PNG")
