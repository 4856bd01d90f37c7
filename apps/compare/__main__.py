"""Two checkpoints of a domain side by side: ``python -m apps.compare sr potstill-x2 runs/kd/x2``.

Quality, parameters, multiply-adds, milliseconds (in turns, so that both see the same machine),
memory, and pictures, on one page that needs nothing else. Without ``--data`` they are judged on
what comes with the packages: a photograph, the analytic scene, scikit-learn's digits.
"""

from __future__ import annotations

import importlib
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cyclopts import App
from rich.console import Console

from potstill.core import PotstillError

if TYPE_CHECKING:
    from apps.tour.tour import Outcome

app = App(name="compare", help=__doc__)


@app.default
def main(
    domain: Literal["graph", "nerf", "mae", "sr", "acm"],
    first: str,
    second: str,
    /,
    *,
    data: str = "",
    out: Path = Path("runs/compare"),
) -> int:
    """Compare two checkpoints.

    Args:
        domain: Whose checkpoints.
        first: A folder, a file, or a name, as the domain saves and loads them.
        second: The same; how many times faster it is, is told of this one.
        data: What they are judged on: a graph by name, a folder of a scene, of photographs, or of
            images in folders by class.
        out: Where the page goes.
    """
    console = Console()
    with console.status("loading"):
        from apps.tour.page import page
        from potstill.core.measure import Load
    start, load = time.perf_counter(), Load()
    try:
        with load, console.status("comparing"):
            outcome = outcome_of(domain, first, second, data=data, quick=False)
    except PotstillError as error:
        Console(stderr=True).print(f"compare: {error}", markup=False, soft_wrap=True)
        return 1
    command = shlex.join(["python", "-m", "apps.compare", *sys.argv[1:]])
    report = page([outcome], command, load, time.perf_counter() - start)
    report.title, report.summary = f"{domain}: {first} and {second}", ""
    report.show(console)
    console.print(f"page: {report.save(out)}", markup=False, soft_wrap=True)
    return 0


def outcome_of(domain: str, first: str, second: str, *, data: str, quick: bool) -> Outcome:
    """What the adapter of a domain says about two checkpoints, and what both cost."""
    from apps.tour.chapter import measure
    from apps.tour.tour import Outcome

    adapter = importlib.import_module(f"apps.compare.{domain}")
    outcome = Outcome(domain, adapter.compare(first, second, data))
    *costs, outcome.speedup, outcome.others = measure(outcome.chapter, quick)
    outcome.costs = (costs[0], costs[1])
    return outcome


if __name__ == "__main__":
    sys.exit(app())
