"""Two fields of one scene, of any kinds."""

from __future__ import annotations

from pathlib import Path

import torch

from apps.tour.chapter import Chapter, Side
from apps.tour.nerf import VIEWS, orbit, picture
from apps.tour.widgets import table
from potstill.core import psnr, ssim
from potstill.nerf import load_field, load_scene


def compare(first: str, second: str, data: str) -> Chapter:
    """``first`` and ``second``: fields; ``data``: the scene that both have learned."""
    scene = load_scene(data or "analytic")
    fields = [load_field(source)[0] for source in (first, second)]
    views = range(min(len(scene.test.cameras), 8))
    cells = []
    for view in views:
        photo = scene.test.image(view)
        shown = [torch.from_numpy(picture(f, scene.test.cameras, view)) for f in fields]
        cells.append(
            [f"test view {view}"]
            + [float(psnr(image, photo)) for image in shown]
            + [float(ssim(image.permute(2, 0, 1), photo.permute(2, 0, 1))) for image in shown]
        )  # fmt: skip
    means = [sum(row[column] for row in cells) / len(cells) for column in (1, 2)]
    sides = [
        Side(f"{source} ({field.kind})", field, mean, picture, (field, scene.test.cameras, 0))
        for source, field, mean in zip((first, second), fields, means, strict=True)
    ]
    width, height = scene.test.cameras.width, scene.test.cameras.height
    return Chapter(
        title=f"{fields[0].kind} and {fields[1].kind}",
        teacher=sides[0],
        student=sides[1],
        measure=f"PSNR, {Path(data).name or 'analytic'}",
        unit="dB",
        work=f"1 image of {width} x {height}",
        command=f"potstill nerf eval {first}",
        html=orbit(dict(zip(("first", "second"), fields, strict=True)), scene, VIEWS)
        + table(["photo", "first [dB]", "second [dB]", "first SSIM", "second SSIM"], cells),
        roles=("first", "second"),
    )
