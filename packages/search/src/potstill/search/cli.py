"""``potstill search space | costs | suggest | elastic | check``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from potstill.core.command import say, verb
from potstill.search.config import ElasticConfig, SuggestConfig

__all__ = ["app"]

Words = Annotated[tuple[str, ...], Parameter(consume_multiple=True)]

app = App(name="search", help="Which student for a teacher and a budget.")
verb(app, "suggest", "potstill.search.jobs:Suggest", SuggestConfig)
verb(app, "elastic", "potstill.search.jobs:Supernet", ElasticConfig)


@app.command(name="space")
def write_space(name: Literal["resnet", "tiny", "vit"], out: Path) -> None:
    """Write a ready-made space of students, to be edited.

    Args:
        name: Vision transformers of timm, or residual networks for small images.
        out: File that ends in .toml.
    """
    from importlib.resources import files

    from potstill.core import ConfigError, atomic

    if out.suffix != ".toml":
        raise ConfigError(f"space: out must end in .toml, got {out}")
    text = files("potstill.search").joinpath("spaces", f"{name}.toml").read_text(encoding="utf-8")
    with atomic(out) as temporary:
        temporary.write_text(text, encoding="utf-8")
    say(f"space: {out}")


@app.command
def costs(
    space: Path,
    *,
    shape: Annotated[tuple[int, ...], Parameter(consume_multiple=True)] = (1, 3, 224, 224),
    candidates: int = 50,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    seed: int = 0,
    out: Path | None = None,
) -> None:
    """Measure milliseconds, megabytes, multiply-adds and parameters of candidates.

    Args:
        space: File with the space of students.
        shape: Shape of what a call gets.
        candidates: Largest number of candidates; larger spaces are sampled.
        device: Device; auto is a GPU where there is one.
        seed: Seed of the sample.
        out: Folder of a page with the table.
    """
    from potstill.search.costing import measure_costs

    report = measure_costs(space, shape, candidates=candidates, device=device, seed=seed)
    report.show()
    if out is not None:
        say(f"page: {report.save(out)}")


@app.command
def check(
    table: Path,
    *,
    truth: str,
    scores: Words = (),
    cost: str | None = None,
    space: Path | None = None,
    shape: Annotated[tuple[int, ...], Parameter(consume_multiple=True)] = (1, 3, 32, 32),
    seed: int = 0,
    out: Path | None = None,
) -> None:
    """Compare scores with accuracies that were measured: Kendall's tau, interval and regret.

    A random score stands beside them, and with --space the number of parameters and multiply-adds
    of the students that the rows describe.

    Args:
        table: JSON list of rows, .npz with values and columns, or the folder of a search.
        truth: Column with the accuracy.
        scores: Columns to compare with it; all other numbers by default. With --space also synflow,
            naswot and jacob_cov of untrained students.
        cost: Column with the cost, for the regret under a budget.
        space: File whose builder and choices the rows fill; the columns have the choices' names.
        shape: Shape of what a call gets, for the multiply-adds.
        seed: Seed of the bootstrap.
        out: Folder of a page with the table.
    """
    from potstill.search.costing import check_table

    report = check_table(table, truth, scores, cost=cost, space=space, shape=shape, seed=seed)
    report.show()
    if out is not None:
        say(f"page: {report.save(out)}")
