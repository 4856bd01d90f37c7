"""``potstill nerf``: train, convert, evaluate, render, inspect, view, export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from potstill.core import ConfigError
from potstill.core.command import config as configs
from potstill.nerf.config import ConvertConfig, TrainConfig

if TYPE_CHECKING:
    from potstill.nerf.fields.base import Field
    from potstill.nerf.scenes.scene import Scene

app = App(
    name="nerf", help="Radiance fields: train, convert, evaluate, render, inspect, view, export."
)


@app.command
def train(config: Annotated[TrainConfig, Parameter(name="*")] | None = None) -> None:
    """Train a field on posed images; without data, on a scene that needs none.

    The folder of the run gets field.safetensors, history.jsonl, curves.png, comparison.png and
    config.yaml. A run that was interrupted is continued by the same command.

    Args:
        config: Its options.
    """
    config = config or TrainConfig()
    from potstill.core import Engine, Run, seed_all
    from potstill.nerf.backends import ENCODERS
    from potstill.nerf.distill.priors import prior_of
    from potstill.nerf.fields.make import make_field, save_field
    from potstill.nerf.pictures import compare
    from potstill.nerf.training import score, train_field

    with Engine(device=config.device) as engine:
        backend = ENCODERS.resolve(config.backend, engine.device)  # before anything else starts
        scene = _scene(config)
        _show_facts(scene, {"backend": f"{backend.name} ({backend.about})"})
        configs.record(config, config.out, ignore=("device", "backend"))
        seed_all("field", config.seed)
        field = make_field(
            config.kind,
            scene.space,
            _size(config),
            occupancy=config.occupancy,
            backend=config.backend,
        )
        field, history = train_field(
            field,
            scene,
            steps=config.steps or None,
            seconds=config.seconds or None,
            lr=config.lr or None,
            samples=config.samples,
            background=config.background,
            distortion=config.distortion,
            variation=config.variation,
            every=config.every,
            run=Run(config.out),
            engine=engine,
            seed=config.seed,
            progress=f"nerf {config.kind}",
        )
        field = field.cpu()
        if not engine.main:
            return
        note = f"{scene.name}, {len(history)} steps, backend {backend.name}"
        path = save_field(field, config.out / "field.safetensors", scene.similarity, note)
        prior_of(scene.train.cameras, scene.space).save(config.out / "prior.json")
    last = min(2, len(scene.test.cameras))
    picture = compare(field, scene.test, config.out / "comparison.png", tuple(range(last)))
    _table(
        "trained",
        {
            "PSNR on the test views": f"{score(field, scene.test):.2f} dB",
            "occupied cells": f"{field.occupancy.share():.1%}",
            "field": str(path),
            "picture": str(picture),
        },
    )


@app.command
def convert(
    teacher: Path, /, config: Annotated[ConvertConfig, Parameter(name="*")] | None = None
) -> None:
    """Turn a trained field into one of another kind; no image is needed.

    The folder gets field.safetensors, prior.json, conversion.json, index.html and what a run
    leaves behind. A conversion that was interrupted is continued by the same command.

    Args:
        teacher: Folder of a run, or a field's file.
        config: Its options.
    """
    config = config or ConvertConfig()
    import dataclasses

    from potstill.core import Engine, Run
    from potstill.nerf.distill.convert import convert as run_conversion
    from potstill.nerf.distill.convert import hand_over
    from potstill.nerf.distill.objective import Schedule
    from potstill.nerf.distill.page import conversion_page
    from potstill.nerf.distill.priors import load_prior
    from potstill.nerf.fields.make import load_field, save_field
    from potstill.nerf.training import score

    folder = teacher if teacher.is_dir() else teacher.parent
    prior = load_prior(config.prior or folder / "prior.json")
    train = dataclasses.replace(TrainConfig(), data=config.data, downsample=config.downsample)
    scene = _scene(train) if config.data else None
    share = 1 - config.hand_over
    budget: dict[str, Any] = {
        "steps": round(config.steps * share) or None,
        "seconds": config.seconds * share or None,
    }
    schedule = Schedule(
        feature_until=config.feature_until,
        points_until=config.points_until,
        norm=config.norm,
        pools=config.pools,
    )
    several = Engine(device=config.device, find_unused=config.feature_until > 0)
    with several as engine:
        field, header = load_field(teacher, config.backend)
        source = _edited(field, config)
        configs.record(config, config.out, ignore=("device", "backend"))
        student, report = run_conversion(
            source, config.kind, prior, schedule, config=_size(config), **budget,
            clock=config.clock, lr=config.lr or None, samples=config.samples,
            inherit=config.inherit, every=config.every, truth=None if scene is None else scene.test,
            run=Run(config.out), engine=engine, seed=config.seed,
            progress=f"nerf {source.kind} to {config.kind}",
        )  # fmt: skip
        rows = {"PSNR to the teacher": f"{report.scores['teacher']:.2f} dB"}
        if scene is not None and config.hand_over:
            budget = {
                "steps": config.steps - (budget["steps"] or 0) or None,
                "seconds": config.seconds * config.hand_over or None,
            }
            student, _ = hand_over(
                student, scene, **budget, run=Run(config.out / "hand-over"), engine=engine,
                seed=config.seed, progress=f"nerf {config.kind} on images",
            )  # fmt: skip
        student = student.cpu()
        if not engine.main:
            return
        path = save_field(
            student,
            config.out / "field.safetensors",
            header["similarity"],
            f"{source.kind} teacher",
        )
        prior.save(config.out / "prior.json")
        report.save(config.out / "conversion.json")
    if scene is not None:
        rows["PSNR on the test views"] = f"{score(student, scene.test):.2f} dB"
    page = conversion_page([report], config.out, title=f"{source.kind} to {config.kind}")
    rows |= {"occupied cells": f"{report.occupied:.1%}", "field": str(path), "page": str(page)}
    _table("converted", rows)


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
    _table("report", {"conversions": str(len(files)), "page": str(page)})


@app.command(name="eval")
def evaluate(
    run: Path,
    /,
    *,
    data: str | None = None,
    downsample: int | None = None,
    backend: str = "auto",
) -> None:
    """Score a trained field on the test views of its scene.

    Args:
        run: Folder of the run, with config.yaml and field.safetensors.
        data: Another place of the scene.
        downsample: Another factor.
        backend: Of the encodings.
    """
    from potstill.core import atomic, count_parameters, psnr, ssim
    from potstill.nerf.pictures import compare
    from potstill.nerf.render.image import render_image

    field, _, scene = _trained(run, data, downsample, backend)
    rows = []
    for view in range(len(scene.test.cameras)):
        rgb, _, _ = render_image(field, scene.test.cameras, view, field.space, field.occupancy)
        photo = scene.test.image(view)
        both = (rgb.permute(2, 0, 1), photo.permute(2, 0, 1))
        rows.append((float(psnr(*both)), float(ssim(*both))))
    mean = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    worst = min(range(len(rows)), key=lambda view: rows[view][0])
    best = max(range(len(rows)), key=lambda view: rows[view][0])
    picture = compare(field, scene.test, run / "evaluation.png", tuple({best, worst}))
    with atomic(run / "evaluation.csv") as temporary:
        lines = [f"{i},{p:.4f},{s:.5f}" for i, (p, s) in enumerate(rows)]
        temporary.write_text("\n".join(["view,psnr,ssim", *lines, ""]))
    _table(
        f"{field.kind} on {scene.name}",
        {
            "PSNR, mean of the test views": f"{mean[0]:.2f} dB",
            "PSNR, worst view": f"{rows[worst][0]:.2f} dB (view {worst})",
            "SSIM, mean of the test views": f"{mean[1]:.4f}",
            "parameters": f"{count_parameters(field):,}",
            "picture": str(picture),
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
    data: str | None = None,
    backend: str = "auto",
) -> None:
    """Render a closed path around the scene as GIF, MP4 or, with one frame, PNG.

    Args:
        run: Folder of the run.
        out: The file; orbit.gif in the run by default.
        frames: How many.
        width: Of the images; that of the photos by default.
        what: Colours or depth.
        data: Another place of the scene.
        backend: Of the encodings.
    """
    from rich.console import Console
    from rich.progress import track

    from potstill.core import generator
    from potstill.nerf.distill.priors import load_prior
    from potstill.nerf.fields.make import load_field
    from potstill.nerf.pictures import depth_colors, orbit_around, save_frames
    from potstill.nerf.render.image import render_image

    if (run / "conversion.json").exists() and data is None:  # no image was needed, none is now
        field, _ = load_field(run, backend)
        cameras = load_prior(run / "prior.json").cameras(64, generator("orbit"))
    else:
        field, _, scene = _trained(run, data, None, backend)
        cameras = scene.train.cameras
    path = orbit_around(cameras, field.space.kind, frames, width)
    images = []
    for view in track(range(frames), "render", console=Console(stderr=True)):
        rgb, opacity, depth = render_image(field, path, view, field.space, field.occupancy)
        images.append(rgb if what == "color" else depth_colors(depth, opacity))
    default = "orbit.gif" if what == "color" else "depth.gif"
    target = save_frames(images, out or run / default)
    _table("rendered", {"frames": str(frames), "file": str(target)})


@app.command
def inspect(
    data: str = "analytic",
    /,
    *,
    layout: str = "auto",
    downsample: int = 0,
    allow_missing: bool = False,
    rescale_intrinsics: bool = False,
) -> int:
    """Show camera ranges, the proposed scale, and what is wrong with a scene.

    Args:
        data: Folder of the scene.
        layout: Of the data; found out by default.
        downsample: Integer factor by which images are smaller.
        allow_missing: Leave out frames whose image is absent.
        rescale_intrinsics: Scale intrinsics that are for images of another size.
    """
    from potstill.nerf.inspection import inspect_scene

    config = TrainConfig(
        data=data,
        layout=layout,
        downsample=downsample,
        allow_missing=allow_missing,
        rescale_intrinsics=rescale_intrinsics,
    )
    scene = _scene(config)
    _show_facts(scene, {})
    return 1 if inspect_scene(scene)[1] else 0


@app.command
def backends() -> None:
    """List the backends, whether they run here, and what to install if not."""
    from rich.console import Console
    from rich.table import Table

    from potstill.nerf.backends import ENCODERS, MARCHERS

    rows = [*ENCODERS.rows(), *MARCHERS.rows()]
    table = Table(*rows[0], title="backends")
    for row in rows:
        table.add_row(*row.values())
    Console().print(table)


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
        what: What to write.
        out: The file.
        resolution: Of the mesh.
        count: Of the points.
    """
    from potstill.nerf.export import export_mesh, export_points, export_tcnn
    from potstill.nerf.fields.hash import HashField
    from potstill.nerf.fields.make import load_field

    field, header = load_field(run)
    folder = run if run.is_dir() else run.parent
    target = out or folder / {"mesh": "mesh.ply", "points": "points.ply"}.get(
        what, "tcnn.safetensors"
    )
    similarity = header["similarity"]
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
    _table(what, {**facts, "file": str(target)})


@app.command
def view(run: Path, /, *, port: int = 8080, data: str | None = None) -> None:
    """Look at a trained field in the browser (needs viser).

    Args:
        run: Folder of the run.
        port: Of the server.
        data: Another place of the scene.
    """
    from rich.console import Console

    from potstill.nerf.viewer import serve

    field, _, scene = _trained(run, data, None, "auto")
    Console().print(f"open http://localhost:{port} in a browser; Ctrl-C ends")
    serve(field, scene.train.cameras, port)


def _scene(config: TrainConfig) -> Scene:
    from potstill.nerf.scenes.load import load_scene

    return load_scene(
        config.data,
        config.layout,
        downsample=config.downsample,
        allow_missing=config.allow_missing,
        rescale=config.rescale_intrinsics,
    )


def _edited(field: Field, config: ConvertConfig) -> Field:
    """The field, or the field without the box that is to go."""
    from potstill.nerf.distill.edit import EditedField

    box = config.erase or config.keep
    if not box:
        return field
    low, high = (box[0], box[1], box[2]), (box[3], box[4], box[5])
    return EditedField(field, low, high, "erase" if config.erase else "keep")


def _size(config: TrainConfig | ConvertConfig) -> Any:
    """The configuration of the kind, with what the user has set."""
    import dataclasses

    from potstill.nerf.fields.make import config_of

    chosen = {k: v for k, v in dataclasses.asdict(config.size).items() if v}
    return configs.build(config_of(config.kind), chosen, source=f"--size of {config.kind}")


def _trained(
    run: Path, data: str | None, downsample: int | None, backend: str
) -> tuple[Field, dict[str, Any], Scene]:
    import dataclasses

    from potstill.nerf.fields.make import load_field

    if (run / "conversion.json").exists():
        stored = configs.load(ConvertConfig, run / "config.yaml")
        if not (data or stored.data):
            raise ConfigError(
                f"nerf: {run} holds a conversion without images; name some with --data"
            )
        config = dataclasses.replace(
            TrainConfig(), data=stored.data or str(data), downsample=stored.downsample
        )
    else:
        config = configs.load(TrainConfig, run / "config.yaml")
    if data is not None:
        config = dataclasses.replace(config, data=data)
    if downsample is not None:
        config = dataclasses.replace(config, downsample=downsample)
    field, header = load_field(run, backend)
    return field, header, _scene(config)


def _show_facts(scene: Scene, more: dict[str, str]) -> None:
    from rich.console import Console

    from potstill.nerf.inspection import inspect_scene

    facts, warnings = inspect_scene(scene)
    _table(scene.name, {**dict(facts), **more})
    for warning in warnings:
        Console().print(f"[yellow]warning:[/] {warning}")


def _table(title: str, rows: dict[str, str]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, show_header=False)
    for name, value in rows.items():
        table.add_row(name, value)
    Console().print(table)
