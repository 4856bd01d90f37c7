"""The tour: ``python -m apps.tour [--domains sr graph] [--quick] [--out runs/tour]``.

Distils a teacher into a student in every installed domain, on data that comes with the packages:
nothing is downloaded. Ends with one table and one page that needs nothing else. The exit code is 1
when a domain failed (its error is on the page; the others go on).
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter
from rich.console import Console

# Torch's profiler, which tells memory, complains of everything that was there before it.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

app = App(name="tour", help=__doc__)

Domain = Literal["sr", "nerf", "mae", "acm", "graph"]


@app.default
def main(
    *,
    domains: Annotated[tuple[Domain, ...], Parameter(consume_multiple=True)] = (),
    out: Path = Path("runs/tour"),
    quick: bool = False,
) -> int:
    """Run the tour.

    Args:
        domains: Only these.
        out: Where page, table and students go.
        quick: A few steps of each, to see that everything works; the students are bad.
    """
    console = Console()
    with console.status("starting"):
        from apps.tour.page import page
        from apps.tour.tour import ORDER, exit_status, last_line, tour
        from potstill.core.measure import Load

    start, load, outcomes = time.perf_counter(), Load(), []
    command = shlex.join(["python", "-m", "apps.tour", *sys.argv[1:]])
    with load:
        for outcome in tour(domains or ORDER, out, quick, console):
            outcomes.append(outcome)  # the page is there from the first domain on
            page(outcomes, command, load, time.perf_counter() - start).save(out)
    report = page(outcomes, command, load, time.perf_counter() - start)
    report.show(console)
    console.print(f"page: {report.save(out)}", markup=False, soft_wrap=True)
    console.print(last_line(outcomes), markup=False, highlight=False, soft_wrap=True)
    return exit_status(outcomes)


if __name__ == "__main__":
    sys.exit(app())
