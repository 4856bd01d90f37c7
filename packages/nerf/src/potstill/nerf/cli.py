"""``potstill nerf``: train, convert, evaluate, render, inspect, view, export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

from potstill.core import ConfigError
from potstill.core.command import config as configs
from potstill.core.command import say, table, verb
from potstill.nerf.config import ConvertConfig, SceneConfig, TrainConfig

if TYPE_CHECKING:
    from potstill.nerf.fields.base import Field
    from potstill.nerf.scenes.scene import Scene

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
    run: Path, /, *, data: str = "", downsample: int | None = None, backend: str = "auto"
) -> None:
    """Score a trained field on the test views of its scene.

    Args:
        run: Folder of the run, with config.yaml and field.safetensors.
        data: Another place of the scene.
        downsample: Another factor.
        backend: Backend of the encodings.
    """
    from potstill.core import atomic, count_parameters, psnr, ssim
    from potstill.nerf.pictures import compare
    from potstill.nerf.render.image import render_image

    field, scene = _trained(run, data, downsample, backend)
    rows = []
    for view in range(len(scene.test.cameras)):
        rgb, _, _ = render_image(field, scene.test.cameras, view, field.space, field.occupancy)
        both = (rgb.permute(2, 0, 1), scene.test.image(view).permute(2, 0, 1))
        rows.append((float(psnr(*both)), float(ssim(*both))))
    mean = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    ordered = sorted(range(len(rows)), key=lambda view: rows[view][0])
    worst, best = ordered[0], ordered[-1]
    picture = compare(field, scene.test, run / "evaluation.png", tuple({best, worst}))
    with atomic(run / "evaluation.csv") as temporary:
        lines = [f"{i},{p:.4f},{s:.5f}" for i, (p, s) in enumerate(rows)]
        temporary.write_text("\n".join(["view,psnr,ssim", *lines, ""]))
    table(
        f"{field.kind} on {scene.name}",
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
    data: str = "",
    backend: str = "auto",
) -> None:
    """Render a closed path around the scene as GIF, MP4 or, with one frame, PNG.

    Args:
        run: Folder of the run.
        out: The file; orbit.gif in the run by default.
        frames: Number of images.
        width: Width of the images; that of the photos by default.
        what: Colours or depth.
        data: Another place of the scene.
        backend: Backend of the encodings.
    """
    from potstill.core import generator
    from potstill.core.command import progress
    from potstill.nerf.distill.priors import load_prior
    from potstill.nerf.fields.make import load_field
    from potstill.nerf.pictures import depth_colors, orbit_around, save_frames
    from potstill.nerf.render.image import render_image

    if (run / "conversion.json").exists() and not data:  # no image was needed, none is now
        field, _ = load_field(run, backend)
        cameras = load_prior(run / "prior.json").cameras(64, generator("orbit"))
    else:
        field, scene = _trained(run, data, None, backend)
        cameras = scene.train.cameras
    path = orbit_around(cameras, field.space.kind, frames, width)
    images = []
    with progress("render") as show:
        for view in range(frames):
            rgb, opacity, depth = render_image(field, path, view, field.space, field.occupancy)
            images.append(rgb if what == "color" else depth_colors(depth, opacity))
            show(view + 1, frames)
    default = "orbit.gif" if what == "color" else "depth.gif"
    table("rendered", {"frames": frames, "file": save_frames(images, out or run / default)})


@app.command
def inspect(scene: Annotated[SceneConfig | None, Parameter(name="*")] = None) -> int:
    """Show camera ranges, the proposed scale, and what is wrong with a scene."""
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
    what: Literal["mesh", "points", "tcnn"] = "mesh",
    out: Path | None = None,
    resolution: int = 128,
    count: int = 100_000,
) -> None:
    """Write a mesh or a point cloud (PLY), or the table in tiny-cuda-nn's order.

    Coordinates are those of the input data.

    Args:
        run: Folder of the run, or a field's file.
        what: Mesh, point cloud or table.
        out: The file; in the folder of the run by default.
        resolution: Resolution of the mesh.
        count: Number of points.
    """
    from potstill.nerf.export import export_mesh, export_points, export_tcnn
    from potstill.nerf.fields.hash import HashField
    from potstill.nerf.fields.make import load_field

    field, header = load_field(run)
    folder = run if run.is_dir() else run.parent
    similarity = header["similarity"]
    target = out or folder / (f"{what}.safetensors" if what == "tcnn" else f"{what}.ply")
    if what == "mesh":
        vertices, faces = export_mesh(field, target, resolution=resolution, similarity=similarity)
        facts = {"vertices": f"{vertices:,}", "faces": f"{faces:,}"}
    elif what == "points":
        facts = {"points": f"{export_points(field, target, count=count, similarity=similarity):,}"}
    else:
        if not isinstance(field, HashField):
            raise ConfigError(f"export: tcnn needs a hash field, got {field.kind}")
        export_tcnn(field, target)
        facts = {"rows": f"{field.grid.levels.total:,}"}
    table(what, {**facts, "file": target})


@app.command
def view(run: Path, /, *, port: int = 8080, data: str = "") -> None:
    """Look at a trained field in the browser (needs viser).

    Args:
        run: Folder of the run.
        port: Port of the server.
        data: Another place of the scene.
    """
    from potstill.nerf.viewer import serve

    field, scene = _trained(run, data, None, "auto")
    say(f"open http://localhost:{port} in a browser; Ctrl-C ends")
    serve(field, scene.train.cameras, port)


def _trained(run: Path, data: str, downsample: int | None, backend: str) -> tuple[Field, Scene]:
    """The field of a run, and the scene that it was trained on or is evaluated by."""
    from potstill.nerf.fields.make import load_field
    from potstill.nerf.jobs import scene_of

    path = run / "config.yaml"
    options = configs.read(path).get("scene", {})
    options |= {"data": data} if data else {}
    options |= {} if downsample is None else {"downsample": downsample}
    if not options.get("data"):
        raise ConfigError(f"nerf: {run} holds a conversion without images; name some with --data")
    return load_field(run, backend)[0], scene_of(configs.build(SceneConfig, options, str(path)))
