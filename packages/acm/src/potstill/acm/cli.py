"""``potstill acm convert | distill | profile | calibrate | fit | export | time``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from potstill.acm.config import BatchConfig, ConvertConfig, DistillConfig, TimeConfig
from potstill.core.command import say, table, verb

if TYPE_CHECKING:
    from potstill.core import Report

__all__ = ["app"]

app = App(name="acm", help="Make vision transformers spend computation where it is needed.")

verb(app, "distill", "potstill.acm.training.jobs:Distill", DistillConfig)

Flat = Parameter(name="*")


@app.command
def convert(out: Path, *, config: Annotated[ConvertConfig, Flat] = ConvertConfig()) -> None:  # noqa: B008
    """Make a timm model adaptive, from its own weights.

    Args:
        out: Folder for the adaptive model and its dense teacher.
        config: Dense model, and how it becomes adaptive.
    """
    from potstill.acm.store import convert

    table(f"adaptive model in {out}", convert(config, out))


@app.command
def profile(
    model: Path,
    *,
    images: Annotated[BatchConfig, Flat],
    out: Path | None = None,
    device: str = "auto",
) -> None:
    """Accuracy, budget, multiply-adds and milliseconds, gated and at each number of learners.

    Args:
        model: Folder of an adaptive model.
        images: Images, and their batches.
        out: Folder for the page with plots and heat maps.
        device: auto, cpu, cuda or mps.
    """
    from potstill.acm.analysis.pages import profile_page

    _show(profile_page(model, images, device), out)


@app.command
def calibrate(
    model: Path,
    budget: float,
    out: Path,
    *,
    images: Annotated[BatchConfig, Flat],
    limit: int = 1000,
) -> None:
    """Set another budget without training, on images without labels.

    Args:
        model: Folder of an adaptive model with trained gates.
        budget: Mean share of the learners' cost.
        out: Folder for the result.
        images: Images, and their batches.
        limit: Largest number of images to use.
    """
    from potstill.acm.analysis import calibrate
    from potstill.acm.store import from_pretrained, held_out, save_with_teacher

    student = from_pretrained(model)
    some: Any = held_out(images, student, limit=limit, labels=False)
    found = calibrate(student, some, budget)
    save_with_teacher(student, out, model, budget)
    figures = {"images": len(some.dataset), "budget": found.budget, "tilt": found.tilt}
    table(f"calibrated model in {out}", figures)


@app.command
def fit(
    model: Path,
    out: Path,
    *,
    milliseconds: float,
    images: Annotated[BatchConfig, Flat],
    limit: int = 64,
    device: str = "auto",
) -> None:
    """Choose what each module does so that a batch takes a given time on this device.

    From times measured here, each module runs all its learners, the first few for all tokens, or
    what its gate says for tokens or whole images. Gates that do not pay are not used.

    Args:
        model: Folder of an adaptive model with trained gates.
        out: Folder for the result.
        milliseconds: Time of a batch.
        images: Images, and the batch whose time counts.
        limit: Largest number of images to use; labels are not read.
        device: auto, cpu, cuda or mps.
    """
    from dataclasses import replace

    from potstill.acm.analysis import fit_time
    from potstill.acm.store import from_pretrained, held_out, save_with_teacher
    from potstill.core.engine import resolve_device

    student = from_pretrained(model).to(resolve_device(device))
    several = replace(images, batch=max(images.batch, 16))
    some = held_out(several, student, limit=max(limit, images.batch), labels=False)
    found = fit_time(student, some, milliseconds, batch=images.batch)
    save_with_teacher(student.cpu(), out, model)
    choices = {name: option.mode for name, option in found.modules.items()}
    low, high = found.spread
    table(f"fitted model in {out}", {
        **choices, "ms": f"{found.milliseconds:.4g} ({low:.4g} to {high:.4g})",
        "time over all learners": found.ratio.median, "distance of outputs": found.damage,
    })  # fmt: skip
    if found.refused:
        say(f"no gates: {found.refused}")


@app.command
def export(
    model: Path,
    out: Path,
    *,
    form: Literal["gathered", "dense_masked"] = "gathered",
    size: int | None = None,
) -> None:
    """Write ONNX or a torch.export program with dynamic batch, checked against the model.

    Args:
        model: Folder of an adaptive model.
        out: File that ends in .onnx or .pt2.
        form: gathered skips what gates skip; dense_masked suits runtimes without dynamic shapes.
        size: Side of the images in pixels, where the model does not say it.
    """
    from potstill.acm.store import example_images, export, from_pretrained

    student = from_pretrained(model)
    found = export(student, out, example_images(student, size), form=form)
    figures = {"relative error, batch 2": found.error,
               "relative error, batch 4": found.error_elsewhere}  # fmt: skip
    table(f"export in {out}", figures)


@app.command
def time(*, config: Annotated[TimeConfig, Flat] = TimeConfig(), out: Path | None = None) -> None:  # noqa: B008
    """Time adaptive against dense on this machine, over budgets.

    Args:
        config: Model, batch and budgets.
        out: Folder for the page with the plot.
    """
    from potstill.acm.analysis.pages import time_page

    _show(time_page(config), out)


def _show(report: Report, out: Path | None) -> None:
    report.show()
    if out is not None:
        say(f"page: {report.save(out)}")
