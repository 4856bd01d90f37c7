"""Where the time of a step goes, by masking ratio and decoder."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from potstill.core import Column, Report
from potstill.core.engine import resolve_device
from potstill.mae import plots
from potstill.mae.config import Encoder
from potstill.mae.models.autoencoder import MaskedAutoencoder
from potstill.mae.models.masking import RandomMasking
from potstill.mae.models.students import create_encoder
from potstill.mae.training.distiller import MaskedToMasked

__all__ = ["step_times", "time_steps"]


def time_steps(
    student: Encoder,
    teacher: Encoder,
    ratios: tuple[float, ...],
    batch: int,
    repeats: int,
    device: str,
    out: Path,
) -> None:
    """Time the parts of a step by ratio and decoder; print them and draw the stack."""
    where = resolve_device(device)
    big = create_encoder(teacher).to(where)
    small = create_encoder(student)
    size = small.patch_embed.img_size
    images = torch.randn(batch, small.patch_embed.proj.in_channels, *size, device=where)
    decoders = {"8 x 512": (8, 1.0), "8 x 512, 1/4 decoded": (8, 0.25), "2 x 512": (2, 1.0)}
    setting = partial(_setting, student, big, where)
    settings = {"all patches, no decoder": setting(0.0)}
    for ratio in ratios:
        for name, (depth, share) in decoders.items():
            options = {"depth": depth, "width": 512, "share": share}
            settings[f"{ratio:.0%}, {name}"] = setting(ratio, options)
        settings[f"{ratio:.0%}, no decoder"] = setting(ratio)
    times = step_times(settings, images, repeats)
    rows: list[dict[str, object]] = [{"setting": name, **parts} for name, parts in times.items()]
    plots.save(plots.step_time_stack(times), out, rows)
    columns = {name: Column("ms", digits=3) for name in next(iter(times.values()))}
    report = Report(f"Step of {batch} images", columns=columns, label="setting")
    for name, parts in times.items():
        report.add(name, **dict[str, Any](parts))
    report.show()


def _setting(
    student: Encoder, teacher: nn.Module, device: torch.device, ratio: float, decoder: Any = None
) -> MaskedToMasked:
    masked = MaskedAutoencoder(create_encoder(student), decoder, fixed_positions=True)
    return MaskedToMasked(masked, teacher, masking=RandomMasking(ratio)).to(device).train()


def step_times(
    distillers: dict[str, MaskedToMasked], images: Tensor, repeats: int = 5
) -> dict[str, dict[str, float]]:
    """Median milliseconds of the parts of a step, settings interleaved.

    Args:
        distillers: Distillers by name of the setting.
        images: A batch, normalised.
        repeats: Steps of each setting, after one that is not counted.

    Returns:
        ``{setting: {"teacher", "student", "decoder", "backward"}}``.
    """
    taken: dict[str, list[list[float]]] = {name: [] for name in distillers}
    for turn in range(repeats + 1):
        for name, distiller in distillers.items():
            parts = _one_step(distiller, images)
            if turn:
                taken[name].append(parts)
    names = ("teacher", "student", "decoder", "backward")
    return {
        setting: dict(zip(names, torch.tensor(rows).median(dim=0).values.tolist(), strict=True))
        for setting, rows in taken.items()
    }


def _one_step(distiller: MaskedToMasked, images: Tensor) -> list[float]:
    """Milliseconds of teacher, student, decoder (with the losses) and backward.

    Clocks start and stop at module boundaries of an ordinary step, so that nothing is run twice.
    """
    marks: dict[str, float] = {}
    images = images.to(next(distiller.student.parameters()).device)

    def clock(name: str) -> Callable[..., None]:
        def mark(*_: Any) -> None:
            if images.is_cuda:
                torch.cuda.synchronize()
            marks[name] = 1e3 * time.perf_counter()

        return mark

    encoder, decoder = distiller.student.encoder, distiller.student.decoder
    handles = [distiller.student.register_forward_pre_hook(clock("student"))]
    if decoder is not None:
        handles.append(decoder.register_forward_pre_hook(clock("decoder")))
    last_tap = max((s for s, _ in distiller.pairs.values()), default=encoder.depth - 1)
    ends = encoder.depth - 1 if decoder is not None else last_tap
    handles.append(encoder.vit.blocks[ends].register_forward_hook(clock("encoded")))
    try:
        clock("start")()
        losses = distiller(images, 0)
        clock("forward")()
        losses.total.backward()
        clock("end")()
    finally:
        for handle in handles:
            handle.remove()
        distiller.zero_grad(set_to_none=True)
    return [
        marks["student"] - marks["start"],
        marks["encoded"] - marks["student"],
        marks["forward"] - marks["encoded"],
        marks["end"] - marks["forward"],
    ]
