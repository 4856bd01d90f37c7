"""Pictures: comparisons with error maps, depth, and orbits."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from potstill.core import BackendError, ConfigError, atomic
from potstill.nerf.cameras import Cameras, looking
from potstill.nerf.fields.base import Field
from potstill.nerf.render.image import render_image
from potstill.nerf.scenes.scene import Split

__all__ = ["compare", "depth_colors", "orbit_around", "save_frames"]


def compare(
    field: Field, split: Split, path: str | os.PathLike[str], views: tuple[int, ...] = (0,)
) -> Path:
    """Photo, rendering, absolute error on a common scale, and depth, one row a view."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ratio = split.cameras.height / split.cameras.width
    figure = Figure(figsize=(13, 3.1 * ratio * len(views) + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(views), 4, squeeze=False)
    for row, view in zip(axes, views, strict=True):
        rgb, opacity, depth = render_image(field, split.cameras, view, field.space, field.occupancy)
        photo = split.image(view)
        error = (split.judged(view, rgb) - photo).abs().mean(2)
        row[0].imshow(photo.numpy())
        row[1].imshow(rgb.numpy())
        shown = row[2].imshow(error.numpy(), cmap="magma", vmin=0, vmax=0.3)
        row[3].imshow(depth_colors(depth, opacity).numpy())
        row[0].set_ylabel(split.cameras.names[view] if split.cameras.names else f"view {view}")
        row[1].set_xlabel(f"{split.psnr(view, rgb):.2f} dB")
    for axis, title in zip(
        axes[0], ("photo", "rendered", "absolute error, 0 to 0.3", "depth, near is bright"),
        strict=True,
    ):  # fmt: skip
        axis.set_title(title, fontsize=10)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    figure.colorbar(shown, ax=axes[:, 2].tolist(), shrink=0.8)
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=110)
    return Path(path)


def depth_colors(depth: Tensor, opacity: Tensor) -> Tensor:
    """Depth [H W] as colours [H W 3]: inverse depth between its 2nd and 98th percentile.

    Pixels that see nothing are white.
    """
    from matplotlib import colormaps

    seen = (opacity > 0.5) & (depth > 0)
    if not bool(seen.any()):
        return torch.ones(*depth.shape, 3)
    inverse = 1 / depth.clamp(min=1e-6)
    low, high = torch.quantile(inverse[seen], torch.tensor([0.02, 0.98])).tolist()
    scaled = ((inverse - low) / max(high - low, 1e-9)).clamp(0, 1)
    colors = torch.from_numpy(colormaps["viridis"](scaled.numpy())[..., :3]).float()
    colors[~seen] = 1.0
    return colors


def orbit_around(cameras: Cameras, kind: str, frames: int, width: int = 0) -> Cameras:
    """A closed path of views near the given cameras, with their lens.

    Around the z axis at their median height and distance; back and forth where they leave out a
    quarter of the circle or more, since nothing is known of the other side. For ``ndc`` a small
    circle in the plane of the cameras, looking at a point ahead of them.
    """
    if frames < 1:
        raise ConfigError(f"orbit_around: frames must be at least 1, got {frames}")
    width = width or cameras.width
    height = round(cameras.height * width / cameras.width)
    fx = float(cameras.intrinsics[0, 0]) * width / cameras.width
    places = cameras.poses[:, :3, 3]
    if kind == "ndc":
        spread = 0.7 * places.std(0)
        turns = torch.arange(frames) * (2 * torch.pi / frames)
        up, target = torch.tensor([0.0, 1.0, 0.0]), torch.tensor([0.0, 0.0, -4.0])
        offsets = torch.stack([turns.cos(), turns.sin(), torch.zeros_like(turns)], dim=1)
        positions = places.mean(0) + offsets * spread
        return looking(positions, target, up, fx, width, height)
    distance = places.norm(dim=1).median()
    lift = (places[:, 2] / places.norm(dim=1).clamp(min=1e-6)).clamp(-0.9, 0.9).median().asin()
    angles = _angles_among(torch.atan2(places[:, 1], places[:, 0]), frames)
    around = torch.stack([angles.cos() * lift.cos(), angles.sin() * lift.cos()], dim=1)
    positions = distance * torch.cat([around, lift.sin().expand(frames, 1)], dim=1)
    up, target = torch.tensor([0.0, 0.0, 1.0]), torch.zeros(3)
    return looking(positions, target, up, fx, width, height)


def _angles_among(angles: Tensor, frames: int) -> Tensor:
    """Angles of a closed path: all around, or back and forth between the outermost given."""
    ordered = angles.sort()[0]
    gaps = torch.cat([ordered, ordered[:1] + 2 * torch.pi]).diff()
    widest = int(gaps.argmax())
    share = torch.arange(frames) / frames
    if float(gaps[widest]) < torch.pi / 2:
        return ordered[0] + 2 * torch.pi * share
    first, span = ordered[(widest + 1) % len(ordered)], 2 * torch.pi - gaps[widest]
    return first + span * (0.5 + 0.45 * (2 * torch.pi * share).sin())


def save_frames(frames: list[Tensor], path: str | os.PathLike[str], fps: float = 24) -> Path:
    """Write frames [H W 3] in [0, 1] as GIF, as MP4, or as one PNG where there is one frame.

    Raises:
        BackendError: MP4 without imageio and its ffmpeg.
        ConfigError: Another suffix.
    """
    from PIL import Image

    path = Path(path)
    suffix = path.suffix.lower()
    arrays = [(frame.clamp(0, 1) * 255).round().byte().numpy() for frame in frames]
    if suffix not in (".gif", ".mp4", ".png"):
        raise ConfigError(f"save_frames: path must end in .gif, .mp4 or .png, got {path.name}")
    with atomic(path) as temporary:
        if suffix == ".mp4":
            _write_video(arrays, temporary, fps)
        else:
            images = [Image.fromarray(array) for array in arrays]
            if suffix == ".gif" and len(images) > 1:
                # one palette for all frames, or colours flicker
                palette = images[0].quantize(255)
                images = [image.quantize(palette=palette) for image in images]
                images[0].save(
                    temporary,
                    save_all=True,
                    append_images=images[1:],
                    duration=round(1000 / fps),
                    loop=0,
                )
            else:
                images[0].save(temporary)
    return path


def _write_video(arrays: list[Any], path: Path, fps: float) -> None:
    try:
        import imageio.v3 as imageio
        import imageio_ffmpeg  # type: ignore[import-not-found, unused-ignore]  # noqa: F401
    except ImportError as error:
        raise BackendError(
            "save_frames: MP4 needs imageio and its ffmpeg; pip install 'potstill-nerf[video]', or "
            "write a .gif"
        ) from error
    even = [a[: a.shape[0] // 2 * 2, : a.shape[1] // 2 * 2] for a in arrays]
    imageio.imwrite(path, np.stack(even), fps=fps, plugin="FFMPEG")
