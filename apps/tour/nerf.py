"""A field becomes one of quite another kind, and a twentieth of its size, without an image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps

from apps.tour.chapter import Chapter, Side, Tell
from apps.tour.widgets import film, paragraph, plots
from potstill.core import seed_all
from potstill.nerf import (
    Field,
    HashConfig,
    Scene,
    convert,
    load_scene,
    make_field,
    orbit_around,
    render_image,
    save_field,
    score,
    train_field,
)

STUDENT = HashConfig(levels=8, log2_rows=12, finest=128, hidden=32)
VIEWS = 18
BRIGHT = 0.1

TEXT = """The teacher, planes times lines as in TensoRF, has learned three striped balls from 24
images of 48 x 48 pixels. The student, a small hash grid, never sees an image: along rays from
invented cameras it learns the teacher's features, then its density and colour, and at last what
it looks like."""


def picture(field: Field, cameras: Any, view: int) -> np.ndarray:
    """A rendered image, [H W 3]."""
    rgb, _, _ = render_image(field, cameras, view, field.space, field.occupancy)
    return rgb.numpy()


def run(tell: Tell, out: Path, quick: bool) -> Chapter:
    """Progressive volume distillation (Fang et al., AAAI 2023) from vm to hash."""
    scene = load_scene("analytic")
    seed_all("tour", "nerf")
    teacher, _ = train_field(
        make_field("vm", scene.space),
        scene,
        steps=60 if quick else 220,
        samples=4096,
        progress=tell("teacher", 0.6),
    )
    student, told = convert(
        teacher,
        "hash",
        scene.train.cameras,
        config=STUDENT,
        steps=40 if quick else 140,
        every=0 if quick else 20,
        truth=scene.test,
        progress=tell("student", 0.9),
    )
    for name, field in (("teacher", teacher), ("student", student)):
        save_field(field, out / f"{name}.safetensors", scene.similarity, "apps/tour")

    tell("orbit", 1.0)
    view = (scene.test.cameras, 0)
    return Chapter(
        title="Radiance fields: one kind becomes another",
        teacher=Side("vm", teacher, score(teacher, scene.test), picture, (teacher, *view)),
        student=Side(
            "small hash grid", student, score(student, scene.test), picture, (student, *view)
        ),
        measure="PSNR",
        unit="dB",
        work="1 image of 48 x 48",
        command="potstill nerf convert runs/teacher --kind hash --out runs/student",
        html=paragraph(TEXT)
        + orbit({"teacher": teacher, "student": student}, scene, 4 if quick else VIEWS)
        + _curves(told),
    )


def orbit(fields: dict[str, Field], scene: Scene, views: int) -> str:
    """Two fields from the same places around the scene, and how far they are from each other."""
    path = orbit_around(scene.train.cameras, scene.space.kind, views, 96)
    frames = {
        name: [picture(field, path, view) for view in range(views)]
        for name, field in fields.items()
    }
    gaps = [np.abs(a - b).mean(-1) for a, b in zip(*frames.values(), strict=True)]
    heat = [colormaps["magma"]((gap / BRIGHT).clip(0, 1))[..., :3] for gap in gaps]
    return film(
        {**frames, f"difference, 0 to {BRIGHT}": heat},
        [f"view {i + 1}: mean difference {gap.mean():.4f}" for i, gap in enumerate(gaps)],
        slider="view",
        caption="Around the scene; both fields from the same places.",
        plays=True,
    )


def _curves(told: Any) -> str:
    curves = {"to the teacher": told.curve("teacher"), "to the images": told.curve("truth")}
    if not all(curves.values()):
        return ""

    def draw(axes: Any) -> None:
        for name, points in curves.items():
            axes.plot(*zip(*points, strict=True), marker=".", label=name)
        axes.set_xlabel("seconds of training the student")
        axes.set_ylabel("PSNR [dB]")
        axes.legend()

    return plots({"The student while it learns; the images were only used to judge it.": draw})
