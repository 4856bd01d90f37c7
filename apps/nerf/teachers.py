"""Train a field of every kind on one scene and compare them: ``python apps/nerf/teachers.py``.

Writes a picture for each kind, ``teachers.csv`` and ``teachers.png`` (PSNR against seconds).
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from potstill.core import Engine, count_parameters, seed_all
from potstill.core.measure.report import csv_text, markdown, number
from potstill.nerf import KINDS, compare, load_scene, make_field, save_field, score, train_field


@dataclass(frozen=True)
class Options:
    """Options of the comparison.

    Args:
        data: Folder of a scene, or "analytic".
        out: Folder of the results.
        seconds: Seconds of training for each kind.
        downsample: Integer factor by which images are smaller; 0 is the layout's default.
        kinds: Kinds of the fields.
        device: Device; auto is a GPU where there is one.
        seed: Seed of weights and rays.
    """

    data: str = "analytic"
    out: Path = Path("runs/teachers")
    seconds: float = 20.0
    downsample: int = 0
    kinds: tuple[str, ...] = KINDS
    device: str = "auto"
    seed: int = 0


app = App(name="teachers", help=__doc__)


@app.default
def main(options: Annotated[Options, Parameter(name="*")] | None = None) -> None:
    """Train, score, draw."""
    options = options or Options()
    scene = load_scene(options.data, downsample=options.downsample)
    rows, curves = [], {}
    with Engine(device=options.device) as engine:
        for kind in options.kinds:
            seed_all("field", options.seed)
            field = make_field(kind, scene.space)
            start = time.process_time()
            field, history = train_field(
                field,
                scene,
                seconds=options.seconds,
                every=50,
                engine=engine,
                seed=options.seed,
                progress=kind,
            )
            taken = time.process_time() - start
            save_field(field, options.out / f"{kind}.safetensors", scene.similarity)
            compare(field, scene.test, options.out / f"{kind}.png", (0,))
            curves[kind] = [(row["seconds"], row["psnr"]) for row in history if "psnr" in row]
            rows.append(
                {
                    "kind": kind,
                    "PSNR (dB)": f"{score(field, scene.test):.2f}",
                    "steps": str(len(history)),
                    "CPU time (s)": number(taken),
                    "parameters": f"{count_parameters(field):,}",
                }
            )
    header = list(rows[0])
    (options.out / "teachers.csv").write_text(csv_text(header, rows))
    draw(curves, options.out / "teachers.png", scene.name)
    print(markdown(header, [list(row.values()) for row in rows]))


def draw(curves: dict[str, list[tuple[float, float]]], path: Path, name: str) -> None:
    """PSNR of two test views against seconds."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    for kind, points in curves.items():
        if points:
            axis.plot(*zip(*points, strict=True), label=kind, marker=".")
    axis.set_xlabel("seconds of training")
    axis.set_ylabel("PSNR of two test views (dB)")
    axis.set_title(name)
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    app()
