"""Small clips and what moves in them, and a small network for them."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from potstill.core import ConfigError, Pretrained, generator, nearest

__all__ = ["ClipNet", "motion", "moving_digits"]

Frames = Float[Tensor, "clips frames ..."]


def motion(
    frames: Frames, kind: Literal["raw", "diff", "low", "high"] = "diff", cutoff: float = 0.25
) -> Tensor:
    """What of a clip consistency is asked of, so that its look may come from elsewhere.

    Source: Zhai et al., Motion Consistency Model, NeurIPS 2024.

    Args:
        frames: [clips frames ...].
        kind: ``raw`` frames, ``diff`` of neighbouring ones, or ``low`` and ``high`` frequencies in
            time, which sum to the frames.
        cutoff: Share of the frequencies that are low.

    Raises:
        ConfigError: An unknown kind, or a single frame for ``diff``.
    """
    kinds = ("raw", "diff", "low", "high")
    if kind not in kinds:
        raise ConfigError(f"motion: unknown kind {kind!r}; {nearest(kind, kinds)}")
    if frames.shape[1] < 2:
        raise ConfigError(f"motion: clips must have two frames or more, got {frames.shape[1]}")
    if kind == "raw":
        return frames
    if kind == "diff":
        return frames.diff(dim=1)
    spectrum = torch.fft.rfft(frames, dim=1)
    spectrum[:, max(round(cutoff * spectrum.shape[1]), 1) :] = 0
    low = torch.fft.irfft(spectrum, frames.shape[1], 1)
    return low if kind == "low" else frames - low


def moving_digits(
    images: Float[Tensor, "images 1 side side"], clips: int, frames: int, size: int, seed: int = 0
) -> Tensor:
    """Clips of one image each that moves and bounces off the borders.

    Args:
        images: Images from -1 to 1.
        clips: Number of clips.
        frames: Frames of each.
        size: Side of a frame, larger than that of an image.
        seed: Seed of images, places and directions.

    Returns:
        [clips frames 1 size size].

    Raises:
        ConfigError: Frames that are smaller than an image.
    """
    side = images.shape[-1]
    if size <= side:
        raise ConfigError(f"moving_digits: size must be more than {side}, got {size}")
    rng, room = generator("clips", seed), size - side
    chosen = torch.randint(len(images), (clips,), generator=rng)
    place = torch.rand(clips, 1, 2, generator=rng) * room
    pace = (torch.rand(clips, 1, 2, generator=rng) - 0.5) * room / 2
    path = place + pace * torch.arange(frames)[:, None]
    path = (room - (path % (2 * room) - room).abs()).round().long()  # bounced
    found = torch.full((clips, frames, 1, size, size), -1.0)
    for clip in range(clips):
        for frame in range(frames):
            top, left = path[clip, frame].tolist()
            found[clip, frame, :, top : top + side, left : left + side] = images[chosen[clip]]
    return found


class ClipNet(nn.Module, Pretrained):
    """A small network for clips: convolutions over time and place, and a time for each frame.

    Args:
        channels: Channels of a frame.
        width: Channels inside.
        depth: Blocks.

    Example:
        >>> ClipNet(1, 8)(torch.zeros(2, 5, 1, 8, 8), torch.zeros(2, 5)).shape
        torch.Size([2, 5, 1, 8, 8])
    """

    def __init__(self, channels: int = 1, width: int = 32, depth: int = 3) -> None:
        super().__init__()
        self.begin = nn.Conv3d(channels, width, 3, padding=1)
        self.times = nn.Sequential(nn.Linear(9, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.GroupNorm(4, width), nn.SiLU(), nn.Conv3d(width, width, 3, padding=1)
            )
            for _ in range(depth)
        )  # fmt: skip
        self.end = nn.Conv3d(width, channels, 3, padding=1)

    def forward(
        self, x: Float[Tensor, "clips frames channels height width"], time: Tensor,
        condition: Tensor | None = None,
    ) -> Float[Tensor, "clips frames channels height width"]:  # fmt: skip
        """Predict for clips, with times in [0, 1] of each clip, or of each frame."""
        t = time if time.ndim == 2 else time[:, None].expand(x.shape[:2])
        angles = t[..., None] * torch.pi * 2.0 ** torch.arange(4, device=x.device)
        known = self.times(torch.cat([t[..., None], angles.sin(), angles.cos()], -1))
        h = self.begin(x.transpose(1, 2))
        for block in self.blocks:
            h = h + block(h + known.transpose(1, 2)[..., None, None])
        found: Tensor = self.end(h).transpose(1, 2)
        return found
