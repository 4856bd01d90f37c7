"""``potstill mae pretrain | finetune | probe | export | time | inspect | recipe``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from potstill.core.command import say, table, verb
from potstill.mae.config import Encoder, Finetune, Pretrain, Probe, recipe, recipes

__all__ = ["app"]

app = App(
    name="mae",
    help="Masked feature distillation of vision transformers.",
    help_epilogue=f"Recipes, for --config (`potstill mae recipe NAME`): {', '.join(recipes())}.",
)
verb(app, "pretrain", "potstill.mae.training.jobs:Pretraining", Pretrain)
verb(app, "finetune", "potstill.mae.training.jobs:Finetuning", Finetune)


@app.command
def probe(config: Annotated[Probe, Parameter(name="*")]) -> None:
    """Nearest-neighbour and linear accuracy of frozen features."""
    from potstill.mae.analysis.probes import probe as run

    table(f"probe of {config.init} (top-1, %)", run(config))


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
        init: Folder of a run, or a checkpoint.
        out: File to write: .safetensors or .pth; .onnx; .pt2; without a suffix and with timm a
            folder, for ``timm.create_model("local-dir:...")``.
        form: timm, official MAE or DMAE, potstill, ONNX, or torch.export.
        encoder: Architecture of a checkpoint that does not say it.
    """
    from potstill.mae.models.convert import convert

    say(convert(init, out, form, encoder))


@app.command(name="time")
def time_(
    *,
    student: Encoder = Encoder(),  # noqa: B008
    teacher: Encoder = Encoder("vit_base_patch16_224"),  # noqa: B008
    ratios: tuple[float, ...] = (0.75, 0.95),
    batch: Annotated[int, Parameter(alias="--batch-size")] = 16,
    repeats: int = 5,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    out: Path = Path("step_times.png"),
) -> None:
    """Time a step of your models by masking ratio and decoder, and draw where it goes.

    Args:
        student: The student; weights do not matter.
        teacher: The teacher; weights do not matter.
        ratios: Shares of hidden patches.
        batch: Images in a step.
        repeats: Steps of each setting; the median counts.
        device: Device; auto is a GPU where there is one.
        out: Picture; the numbers are beside it as .csv.
    """
    from potstill.mae.analysis.times import time_steps

    time_steps(student, teacher, ratios, batch, repeats, device, out)


@app.command
def inspect(run: Path, *, images: str = "", count: int = 6, tokens: int = 1000) -> None:
    """Draw what a run has learned: reconstructions, similarity of blocks, alignment error.

    Args:
        run: Folder of a pre-training run.
        images: Folder or zip file; those of the run by default.
        count: Images to show.
        tokens: Patch tokens for the similarity of blocks.
    """
    from potstill.mae.analysis.inspection import inspect_run

    for path in inspect_run(run, images, count, tokens):
        say(f"wrote {path}")


@app.command(name="recipe")
def recipe_(name: str = "") -> None:
    """Print the path of a recipe for --config; without a name, all names.

    Args:
        name: Name of the recipe.
    """
    say(str(recipe(name)) if name else "\n".join(recipes()))
