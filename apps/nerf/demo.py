"""Any field into any other, on one page: ``python apps/nerf/demo.py``.

Trains a teacher on images, converts it into every kind, and every student into every kind, without
an image; writes ``index.html`` with orbits, curves, renders, error maps and the matrix. On one
thread at 100 x 100 that takes six and a half minutes; with ``--device cuda`` the images have their
full size.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from rich.console import Console

from potstill.core import Engine, seed_all
from potstill.core.measure.report import Report
from potstill.core.store import root
from potstill.nerf import (
    Conversion,
    Field,
    conversion_page,
    convert,
    load_conversion,
    load_scene,
    make_field,
    orbit_around,
    prior_of,
    render_image,
    save_field,
    save_frames,
    score,
    train_field,
)

KINDS = ("hash", "mlp", "vm", "cp", "grid")


@dataclass(frozen=True)
class Options:
    """Options of the demo.

    Args:
        data: Folder of a scene; lego of the data root by default, else the scene without files.
        out: Folder of the results.
        teacher: Kind that is trained on images.
        train: Seconds for the teacher.
        seconds: Seconds for each of its students.
        again: Seconds for each student of a student.
        kinds: Kinds of the students.
        downsample: Integer factor by which images are smaller; 0 is 2 on a CPU and 1 on a GPU.
        frames: Number of images of each orbit.
        device: Device; auto is a GPU where there is one.
        seed: Seed of weights, poses and rays.
    """

    data: str = ""
    out: Path = Path("runs/conversions")
    teacher: str = "hash"
    train: float = 40.0
    seconds: float = 20.0
    again: float = 8.0
    kinds: tuple[str, ...] = KINDS
    downsample: int = 0
    frames: int = 16
    device: str = "auto"
    seed: int = 0


app = App(name="demo", help=__doc__)


@app.default
def main(options: Annotated[Options, Parameter(name="*")] | None = None) -> None:
    """Train, convert, draw."""
    options = options or Options()
    console, lego = Console(stderr=True), root() / "nerf" / "lego_200"
    data = options.data or (str(lego) if lego.exists() else "analytic")
    orbits: dict[str, Path] = {}
    found: list[Conversion] = []
    with Engine(device=options.device) as engine:
        on_gpu = engine.device.type == "cuda"
        factor = options.downsample or (1 if on_gpu or data == "analytic" else 2)
        scene = load_scene(data, downsample=factor)
        path = orbit_around(scene.train.cameras, scene.space.kind, options.frames)

        def orbit(field: Field, name: str) -> None:
            file = options.out / f"orbit-{name}.gif"
            images = [
                render_image(field, path, view, field.space, field.occupancy)[0]
                for view in range(len(path))
            ]
            orbits[name] = save_frames(images, file, fps=8)

        seed_all("field", options.seed)
        teacher = make_field(options.teacher, scene.space)
        teacher, _ = train_field(
            teacher,
            scene,
            seconds=options.train,
            engine=engine,
            seed=options.seed,
            progress=f"{options.teacher} on images",
        )
        save_field(teacher, options.out / "teacher.safetensors", scene.similarity)
        orbit(teacher, f"{options.teacher}, from images")
        prior = prior_of(scene.train.cameras, scene.space)

        def student(source: Field, kind: str, seconds: float, every: int) -> Field:
            name = f"{source.kind} to {kind}"
            field, report = convert(
                source,
                kind,
                prior,
                seconds=seconds,
                every=every,
                truth=scene.test if every else None,
                engine=engine,
                seed=options.seed,
                progress=name,
            )
            report.save(options.out / f"{name}.json")
            found.append(load_conversion(options.out / f"{name}.json"))
            console.print(f"{name}: {report.scores['teacher']:.2f} dB to the teacher")
            return field

        students = {}
        for kind in options.kinds:
            students[kind] = student(teacher, kind, options.seconds, every=60)
            save_field(students[kind], options.out / f"{kind}.safetensors", scene.similarity)
            orbit(students[kind], f"{options.teacher} to {kind}")
        for source in options.kinds:
            if source != options.teacher:
                for kind in options.kinds:
                    student(students[source], kind, options.again, every=0)
        quality = score(teacher.to(engine.device), scene.test, 8)

    def facts(report: Report) -> None:
        report.text(
            f"The {options.teacher} teacher saw {len(scene.train.cameras)} images of {scene.name} "
            f"for {options.train:g} s and has {quality:.2f} dB to 8 others. Its students had "
            f"{options.seconds:g} s each and saw none; they are the teachers of the other rows of "
            f"the matrix, whose students had {options.again:g} s each.",
            "What was done",
        )

    shown = conversion_page(
        found, options.out, title=f"Conversions of {scene.name}", extra=facts, orbits=orbits
    )
    console.print(f"open {shown}")


if __name__ == "__main__":
    app()
