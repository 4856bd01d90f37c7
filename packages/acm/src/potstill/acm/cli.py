"""``potstill acm convert | distill | profile | calibrate | export | bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from potstill.acm.config import Convert, Phases, Reading, Timing

__all__ = ["app"]

app = App(name="acm", help="Make vision transformers spend computation where it is needed.")

Flat = Parameter(name="*")


@app.command
def convert(out: Path, *, config: Annotated[Convert, Flat] = Convert()) -> None:  # noqa: B008
    """Make a timm model adaptive, from its own weights.

    Args:
        out: Folder for the adaptive model and its dense teacher.
        config: What to make adaptive, and how.
    """
    from potstill.acm.workflow import convert as run

    _show(f"adaptive model in {out}", run(config, out))


@app.command
def distill(
    model: Path,
    out: Path,
    *,
    images: Annotated[Reading, Flat],
    phases: Annotated[Phases, Flat] = Phases(),  # noqa: B008
    device: str = "auto",
) -> None:
    """Run the three phases; an interrupted run continues with the same command.

    Args:
        model: Folder written by convert.
        out: Folder of the run; the result is in out/model.
        images: Which images.
        phases: How long, and what for.
        device: auto, cpu, cuda or mps.
    """
    from potstill.acm.workflow import distill as run

    _show(f"trained model in {out / 'model'}", run(model, out, images, phases, device))


@app.command
def profile(
    model: Path,
    *,
    images: Annotated[Reading, Flat],
    out: Path | None = None,
    device: str = "auto",
) -> None:
    """Accuracy, budget, multiply-adds and milliseconds, gated and at each number of learners.

    Args:
        model: Folder of an adaptive model.
        images: Which images.
        out: Folder for the page with plots and heat maps.
        device: auto, cpu or cuda.
    """
    from potstill.acm.workflow import profile as run

    report = run(model, images, device)
    report.show()
    if out is not None:
        _say(f"wrote {report.save(out)}")


@app.command
def calibrate(
    model: Path,
    budget: float,
    out: Path,
    *,
    images: Annotated[Reading, Flat],
    limit: int = 1000,
) -> None:
    """Set another budget without training, on images without labels.

    Args:
        model: Folder of an adaptive model with trained gates.
        budget: Mean share of the learners' cost.
        out: Folder for the result.
        images: Which images.
        limit: Images to use at most.
    """
    from potstill.acm.workflow import calibrate as run

    _show(f"calibrated model in {out}", run(model, budget, out, images, limit))


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
        size: Side of the images in pixels, when the model does not say it.
    """
    from potstill.acm.workflow import export as run

    _show(f"export in {out}", run(model, out, form, size))


@app.command
def bench(*, timing: Annotated[Timing, Flat] = Timing(), out: Path | None = None) -> None:  # noqa: B008
    """Time adaptive against dense on this machine, over budgets.

    Args:
        timing: What is timed.
        out: Folder for the page with the plot.
    """
    from potstill.acm.workflow import bench as run

    report = run(timing)
    report.show()
    if out is not None:
        _say(f"wrote {report.save(out)}")


def _say(text: str) -> None:
    from rich.console import Console

    Console().print(text, markup=False)


def _show(title: str, values: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, show_header=False)
    for name, value in values.items():
        table.add_row(name, f"{value:.4g}" if isinstance(value, float) else str(value))
    Console().print(table)
