"""``potstill mae pretrain | finetune | probe | export | bench | inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from potstill.mae.config import Encoder, Finetune, Pretrain, Probe, recipes

__all__ = ["app"]

app = App(
    name="mae",
    help="Masked feature distillation of vision transformers.",
    help_epilogue=f"Recipes, for --config (`potstill mae recipe NAME`): {', '.join(recipes())}.",
)


@app.command
def pretrain(config: Annotated[Pretrain, Parameter(name="*")]) -> None:
    """Pre-train a student on images without labels, with a teacher or without."""
    from rich.console import Console

    from potstill.mae.workflow import pretrain as run

    console = Console(stderr=True)
    summary = run(config)
    licence = f", licence {summary['teacher_licence']}" if summary["teacher_licence"] else ""
    console.print(f"teacher: {summary['teacher'] or 'none'}{licence}", markup=False)
    _show(f"pre-training in {config.out}", summary)


@app.command
def finetune(config: Annotated[Finetune, Parameter(name="*")]) -> None:
    """Train a classifier from a pre-trained encoder, or from scratch."""
    from potstill.mae.workflow import finetune as run

    _show(f"fine-tuning in {config.out}", run(config))


@app.command
def probe(config: Annotated[Probe, Parameter(name="*")]) -> None:
    """Nearest-neighbour and linear accuracy of frozen features."""
    from potstill.mae.workflow import probe as run

    _show(f"probe of {config.init} (top-1, %)", run(config))


@app.command
def export(
    init: str,
    out: Path,
    *,
    form: Literal["timm", "mae", "dmae", "potstill", "onnx", "pt2"] = "timm",
    encoder: Encoder = Encoder(),  # noqa: B008  (frozen)
) -> None:
    """Write a student for other programs.

    Args:
        init: Folder of a pre-training run, or a checkpoint.
        out: File to write: .safetensors or .pth; .onnx; .pt2.
        form: timm, official MAE or DMAE, potstill, ONNX, or torch.export.
        encoder: Architecture of a checkpoint that does not say it.
    """
    from rich.console import Console

    from potstill.mae.interchange import convert

    Console().print(convert(init, out, form, encoder), markup=False)


@app.command
def bench(
    *,
    student: Encoder = Encoder(),  # noqa: B008
    teacher: Encoder = Encoder("vit_base_patch16_224"),  # noqa: B008
    ratios: tuple[float, ...] = (0.75, 0.95),
    batch_size: int = 16,
    repeats: int = 5,
    device: str = "cpu",
    out: Path = Path("step_times.png"),
) -> None:
    """Time a step of your models by masking ratio and decoder, and draw where it goes.

    Args:
        student: The student; weights do not matter.
        teacher: The teacher; weights do not matter.
        ratios: Shares of hidden patches.
        batch_size: Images in a step.
        repeats: Steps of each setting; the median counts.
        device: Where to run.
        out: Picture; the numbers are beside it as .csv.
    """
    from potstill.mae.interchange import bench_steps

    bench_steps(student, teacher, ratios, batch_size, repeats, device, out)


@app.command
def inspect(run: Path, *, images: str = "", count: int = 6, tokens: int = 1000) -> None:
    """Draw what a run has learned: reconstructions, similarity of blocks, alignment error.

    Args:
        run: Folder of a pre-training run.
        images: Folder or zip file; those of the run by default.
        count: Images to show.
        tokens: Patch tokens for the similarity of blocks.
    """
    from rich.console import Console

    from potstill.mae.interchange import inspect_run

    for path in inspect_run(run, images, count, tokens):
        Console().print(f"wrote {path}", markup=False)


@app.command
def recipe(name: str = "") -> None:
    """Print the path of a recipe for --config; without a name, all names.

    Args:
        name: Of the recipe.
    """
    import sys

    from potstill.mae.config import recipe as path_of

    sys.stdout.write((str(path_of(name)) if name else "\n".join(recipes())) + "\n")


def _show(title: str, summary: dict[str, object] | dict[str, float]) -> None:
    from rich.console import Console
    from rich.table import Table

    from potstill.core.measure.report import number

    table = Table(title=title, show_header=False)
    for name, value in summary.items():
        table.add_row(name, number(value) if isinstance(value, int | float) else str(value))
    Console().print(table)
