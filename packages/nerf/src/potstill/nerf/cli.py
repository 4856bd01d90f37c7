"""``potstill nerf``: train, convert, evaluate, render, inspect, view, export."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from potstill.core import ConfigError
from potstill.core.command import config as configs
from potstill.core.command import say, table, verb
from potstill.nerf.config import ConvertConfig, OtherScene, SceneConfig, TrainConfig

if TYPE_CHECKING:
    from potstill.nerf.fields.base import Field
    from potstill.nerf.scenes.scene import Scene

Device = Literal["auto", "cpu", "cuda", "mps"]

app = App(
    name="nerf", help="Radiance fields: train, convert, evaluate, render, inspect, view, export."
)
verb(app, "train", "potstill.nerf.jobs:Train", TrainConfig)
verb(app, "convert", "potstill.nerf.jobs:Convert", ConvertConfig)


@app.command
def report(conversions: list[Path], /, *, out: Path = Path("runs/report")) -> None:
    """Draw one page of several conversions from their files, without rendering anything.

    Args:
        conversions: Folders of conversions, or their conversion.json.
        out: Folder of the page.
    """
    from potstill.nerf.distill.page import conversion_page
    from potstill.nerf.distill.results import load_conversion

    files = [path / "conversion.json" if path.is_dir() else path for path in conversions]
    page = conversion_page([load_conversion(file) for file in files], out)
    table("report", {"conversions": len(files), "page": page})


@app.command(name="eval")
def evaluate(
    run: Path,
    /,
    *,
    scene: Annotated[OtherScene | None, Parameter(name="*")] = None,
    backend: str = "auto",
    device: Device = "auto",
) -> None:
    """Score a trained field on the test views of its scene, or of another in its coordinates.

    Options of the scene are those of the run where they are not given.

    Args:
        run: Folder of the run, with config.yaml and field.safetensors.
        scene: Other options of the scene.
        backend: Backend of the encodings.
        device: Device that renders.
    """
    from potstill.core import atomic, count_parameters, ssim
    from potstill.nerf.pictures import compare
    from potstill.nerf.render.image import render_image

    field, shown = _trained(run, scene, backend, device)
    rows = {}
    for view in range(len(shown.test.cameras)):
        rgb, _, _ = render_image(field, shown.test.cameras, view, field.space, field.occupancy)
        ours, photo = shown.test.judged(view, rgb), shown.test.image(view)
        likeness = ssim(ours.permute(2, 0, 1), photo.permute(2, 0, 1))
        row = (shown.test.psnr(view, rgb), float(likeness))
        if row[0] == row[0]:  # else all of it is masked
            rows[view] = row
    mean = [sum(column) / len(rows) for column in zip(*rows.values(), strict=True)]
    ordered = sorted(rows, key=lambda view: rows[view][0])
    worst, best = ordered[0], ordered[-1]
    picture = compare(field, shown.test, run / "evaluation.png", tuple({best, worst}))
    with atomic(run / "evaluation.csv") as temporary:
        lines = [f"{i},{p:.4f},{s:.5f}" for i, (p, s) in rows.items()]
        temporary.write_text("\n".join(["view,psnr,ssim", *lines, ""]))
    table(
        f"{field.kind} on {shown.name}",
        {
            "PSNR, mean of the test views": f"{mean[0]:.2f} dB",
            "PSNR, worst view": f"{rows[worst][0]:.2f} dB (view {worst})",
            "SSIM, mean of the test views": f"{mean[1]:.4f}",
            "parameters": f"{count_parameters(field):,}",
            "picture": picture,
        },
    )


@app.command
def render(
    run: Path,
    /,
    *,
    out: Path | None = None,
    frames: int = 48,
    width: int = 0,
    what: Literal["color", "depth"] = "color",
    path: Path | None = None,
    scene: Annotated[OtherScene | None, Parameter(name="*")] = None,
    backend: str = "auto",
    device: Device = "auto",
) -> None:
    """Render a closed path around the scene, or another, as GIF, MP4 or, with one frame, PNG.

    Args:
        run: Folder of the run.
        out: The file; orbit.gif in the run by default.
        frames: Number of images.
        width: Width of the images; that of the photos by default.
        what: Colours or depth.
        path: A camera path of nerfstudio in the coordinates of the data, which has the frames.
        scene: Other options of the scene.
        backend: Backend of the encodings.
        device: Device that renders.
    """
    from potstill.core import generator
    from potstill.core.command import progress
    from potstill.nerf.distill.priors import load_prior
    from potstill.nerf.fields.make import load_field
    from potstill.nerf.nerfstudio import load_path
    from potstill.nerf.pictures import depth_colors, orbit_around, save_frames
    from potstill.nerf.render.image import render_image

    given, fps = scene is not None and scene.data, 24.0
    if path is not None:
        field, header = load_field(run, backend)
        field.to(_device(device))
        cameras, fps = load_path(path, header["similarity"], width)
        frames = len(cameras)
    elif (run / "conversion.json").exists() and not given:  # no image was needed, none is now
        field = load_field(run, backend)[0].to(_device(device))
        cameras = load_prior(run / "prior.json").cameras(64, generator("orbit"))
    else:
        field, shown = _trained(run, scene, backend, device)
        cameras = shown.train.cameras
    if path is None:
        cameras = orbit_around(cameras, field.space.kind, frames, width)
    images = []
    with progress("render") as show:
        for view in range(frames):
            rgb, opacity, depth = render_image(field, cameras, view, field.space, field.occupancy)
            images.append(rgb if what == "color" else depth_colors(depth, opacity))
            show(view + 1, frames)
    default = "orbit.gif" if what == "color" else "depth.gif"
    table("rendered", {"frames": frames, "file": save_frames(images, out or run / default, fps)})


@app.command
def inspect(scene: Annotated[SceneConfig | None, Parameter(name="*")] = None) -> int:
    """Show camera ranges, the proposed scale, unused keys, and what is wrong with a scene."""
    from potstill.nerf.inspection import show_scene
    from potstill.nerf.jobs import scene_of

    return 1 if show_scene(scene_of(scene or SceneConfig())) else 0


@app.command
def backends() -> None:
    """List the backends, whether they run here, and what to install if not."""
    from rich.console import Console
    from rich.table import Table

    from potstill.nerf.backends import ENCODERS, MARCHERS

    rows = [*ENCODERS.rows(), *MARCHERS.rows()]
    shown = Table(*rows[0], title="backends")
    for row in rows:
        shown.add_row(*row.values())
    Console().print(shown)


@app.command
def export(
    run: Path,
    /,
    *,
    what: Literal["mesh", "points", "tcnn", "views"] = "mesh",
    out: Path | None = None,
    resolution: int = 128,
    count: int | None = None,
    crop: tuple[float, ...] = (),
    components: float = 0.0,
    device: Device = "auto",
) -> None:
    """Write a mesh or points (PLY), tiny-cuda-nn's table, or rendered views for nerfstudio.

    Coordinates are those of the input data.

    Args:
        run: Folder of the run, or a field's file.
        what: Mesh, point cloud, table, or images with transforms.json from the pose prior.
        out: The file, or the folder of views; in the folder of the run by default.
        resolution: Resolution of the mesh.
        count: Number of points (100,000 by default) or of views (100).
        crop: Box of the mesh or the points in the data: minimum and maximum corner.
        components: Share of the largest part's cells that other parts of a mesh need to be kept.
        device: Device that evaluates the field.
    """
    from potstill.core import generator
    from potstill.nerf.distill.priors import load_prior
    from potstill.nerf.export import export_mesh, export_points, export_tcnn
    from potstill.nerf.fields.hash import HashField
    from potstill.nerf.fields.make import load_field
    from potstill.nerf.nerfstudio import export_views

    field, header = load_field(run)
    field.to(_device(device))
    if (what != "mesh" and components) or (what == "tcnn" and crop):
        raise ConfigError(f"export: {what} has no crop or components, got some; leave them out")
    folder = run if run.is_dir() else run.parent
    similarity = header["similarity"]
    suffixes = {"tcnn": ".safetensors", "views": ""}
    target = out or folder / f"{what}{suffixes.get(what, '.ply')}"
    if what == "mesh":
        vertices, faces = export_mesh(
            field, target, resolution=resolution, similarity=similarity, crop=crop,
            components=components,
        )  # fmt: skip
        facts = {"vertices": f"{vertices:,}", "faces": f"{faces:,}"}
    elif what == "points":
        written = export_points(
            field, target, count=count or 100_000, similarity=similarity, crop=crop
        )
        facts = {"points": f"{written:,}"}
    elif what == "views":
        cameras = load_prior(folder / "prior.json").cameras(count or 100, generator("views"))
        facts = {"views": f"{export_views(field, cameras, target, similarity):,}"}
    else:
        if not isinstance(field, HashField):
            raise ConfigError(f"export: tcnn needs a hash field, got {field.kind}")
        export_tcnn(field, target)
        facts = {"rows": f"{field.grid.levels.total:,}"}
    table(what, {**facts, "file": target})


@app.command
def view(
    run: Path,
    /,
    *,
    port: int = 8080,
    scene: Annotated[OtherScene | None, Parameter(name="*")] = None,
    backend: str = "auto",
    device: Device = "auto",
) -> None:
    """Look at a trained field in the browser (needs viser).

    Args:
        run: Folder of the run.
        port: Port of the server.
        scene: Other options of the scene.
        backend: Backend of the encodings.
        device: Device that renders.
    """
    from potstill.nerf.viewer import serve

    field, shown = _trained(run, scene, backend, device)
    say(f"open http://localhost:{port} in a browser; Ctrl-C ends")
    serve(field, shown.train.cameras, port)


def _trained(run: Path, other: Any, backend: str, device: Device) -> tuple[Field, Scene]:
    """The field of a run, and the scene that it was trained on or is evaluated by, where it is."""
    from potstill.nerf.fields.make import load_field
    from potstill.nerf.jobs import scene_of

    path = run / "config.yaml"
    options = configs.read(path).get("scene", {})
    changes = {} if other is None else dataclasses.asdict(other)
    options |= {name: value for name, value in changes.items() if value is not None}
    if not options.get("data"):
        raise ConfigError(f"nerf: {run} holds a conversion without images; name some with --data")
    field, header = load_field(run, backend)
    config = configs.build(SceneConfig, options, str(path))
    scene = scene_of(config, header["similarity"])
    for note in scene.notes:
        say(f"warning: {note}")
    return field.to(_device(device)), scene


def _device(name: Device) -> Any:
    from potstill.core.engine import resolve_device

    return resolve_device(name)
