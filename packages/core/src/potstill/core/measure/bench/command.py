"""The command line of benchmarks: ``python -m benchmarks [domain] [name...]``."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from potstill.core.errors import ConfigError, nearest
from potstill.core.measure.bench import results as record
from potstill.core.measure.bench.drawing import draw
from potstill.core.measure.bench.registry import Benchmark, registered
from potstill.core.measure.bench.run import BUSY, Result, run
from potstill.core.measure.report.table import number, print_table

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["main"]

MET, MISSED, USAGE, UNDECIDED = 0, 1, 2, 3


def main(folder: str | Path, arguments: Sequence[str] | None = None) -> int:
    """Run benchmarks that live below ``folder`` and return the exit code.

    Args:
        folder: The package folder that holds ``<domain>/*.py`` and ``results/``; importable by its
            name.
        arguments: Command line; that of the process when None.
    """
    from rich.console import Console

    folder = Path(folder)
    options = _parser(folder).parse_args(arguments)
    console, progress = Console(), Console(stderr=True)
    try:
        entries = _select(folder, options.domain, options.names)
        if options.quick and options.check:
            raise ConfigError("benchmarks: --quick claims nothing, so it cannot --check; drop one")
        if options.official and not options.official.is_dir():
            raise ConfigError(
                f"benchmarks: --official must be the folder of a checkout, got {options.official}"
            )
    except ConfigError as error:
        progress.print(str(error), style="red", markup=False)
        return USAGE
    if options.list:
        _list(console, entries, options.official)
        return MET
    results = []
    for entry in entries:
        title = f"{entry.domain} {entry.name}"
        with progress.status(title) as status:
            result = run(
                entry,
                quick=options.quick,
                pairs=options.pairs,
                official=options.official,
                progress=lambda text, title=title: status.update(f"{title}: {text}"),  # type: ignore[misc]
            )
        _show(console, result, options.quick)
        results.append(result)
        if not options.quick and result.status == "measured":
            # At once, so that an interrupted evening keeps what it measured.
            record.append(_record(folder, options.out, entry), [result])
    if not options.quick:
        for path in sorted({_record(folder, options.out, entry) for entry in entries}):
            if path.exists():
                console.print(f"wrote {path}, {draw(path)}")
    if options.check:
        return _check(console, results)
    return MISSED if any(result.status == "failed" for result in results) else MET


def _parser(folder: Path) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        f"python -m {folder.name}", description="Measure what potstill claims, against baselines."
    )
    known = ", ".join(_domains(folder))
    parser.add_argument("domain", nargs="?", default="all", help=f"{known}, or all (default)")
    parser.add_argument("names", nargs="*", help="benchmarks of that domain; all when none")
    parser.add_argument("--check", action="store_true", help="compare with the declared targets")
    parser.add_argument("--quick", action="store_true", help="smoke run: two pairs, no claims")
    parser.add_argument("--list", action="store_true", help="say what there is, and run nothing")
    parser.add_argument("--pairs", type=int, default=20, help="pairs of blocks (default: 20)")
    parser.add_argument(
        "--official",
        type=Path,
        metavar="PATH",
        help="a checkout of a paper's code, to race against",
    )
    parser.add_argument("--out", type=Path, help="folder of the results (default: results/)")
    return parser


def _domains(folder: Path) -> list[str]:
    """Folders with programs in them."""
    return sorted({path.parent.name for path in folder.glob("*/[!_]*.py")})


def _select(folder: Path, domain: str, names: Sequence[str]) -> list[Benchmark]:
    known = _domains(folder)
    if domain != "all" and domain not in known:
        raise ConfigError(f"benchmarks: unknown domain {domain!r}; {nearest(domain, known)}")
    domains = known if domain == "all" else [domain]
    for each in domains:
        for path in sorted((folder / each).glob("[!_]*.py")):
            importlib.import_module(f"{folder.name}.{each}.{path.stem}")
    entries = [entry for each in domains for entry in registered(each)]
    present = [entry.name for entry in entries]
    for name in names:
        if name not in present:
            raise ConfigError(f"benchmarks: unknown name {name!r}; {nearest(name, present)}")
    return [entry for entry in entries if not names or entry.name in names]


def _record(folder: Path, out: Path | None, entry: Benchmark) -> Path:
    return (out or folder / "results") / f"{entry.domain}.csv"


def _list(console: Console, entries: Sequence[Benchmark], official: Path | None) -> None:
    from rich.padding import Padding
    from rich.text import Text

    for entry in entries:
        title = Text.assemble((f"{entry.domain} {entry.name}", "bold"), f"  {entry.budget:g} s")
        lines = [entry.summary]
        lines += [f"{name} {target}: {target.source}" for name, target in entry.targets.items()]
        needs = entry.missing(official) or ("data" if entry.data else "")
        lines += [f"needs: {needs}"] * bool(needs)
        console.print(title)
        console.print(Padding(Text("\n".join(lines)), (0, 0, 0, 4)))


def _show(console: Console, result: Result, quick: bool) -> None:
    from rich.markup import escape

    entry = result.entry
    note = " (smoke run: no claims)" if quick else ""
    console.print(f"[bold]{entry.domain} {entry.name}[/]{note}  [dim]{escape(entry.summary)}[/]")
    if result.status == "skipped":
        console.print(f"  [yellow]skipped[/]: {escape(result.reason)}")
    if result.status == "failed":
        console.print(f"  [red]failed[/]: {escape(result.reason)}\n[dim]{escape(result.trace)}[/]")
    for name, figure in result.figures.items():
        spread = ""
        if figure.interval:
            low, high = number(figure.low), number(figure.high)
            spread = f"  [dim]{low} to {high}, {figure.interval}, n={figure.samples}[/]"
        console.print(f"  {name:<12} {number(figure.value)} {figure.unit}{spread}", highlight=False)
    if result.status == "measured" and result.others > BUSY:
        console.print(f"  [yellow]busy[/]: other processes used {result.others:.2f} cores")


def _check(console: Console, results: Sequence[Result]) -> int:
    """Print every target with its verdict; the exit code says whether all are met."""
    from rich.table import Table

    table = Table("benchmark", "figure", "measured", "target", "verdict", "from", title="Targets")
    verdicts = ["missed" for result in results if result.status == "failed"]
    for result in results:
        for name, target in result.entry.targets.items():
            verdict = result.verdict(name, target)
            verdicts.append(verdict)
            figure = result.figures.get(name)
            value = f"{number(figure.value)} {figure.unit}" if figure else "-"
            color = {"met": "green", "missed": "red"}.get(verdict, "yellow")
            title = f"{result.entry.domain} {result.entry.name}"
            table.add_row(
                title, name, value, str(target), f"[{color}]{verdict}[/{color}]", target.source
            )
    if table.row_count:
        print_table(table, console)
    else:
        console.print("No targets are declared.")
    if "missed" in verdicts:
        return MISSED
    return MET if all(verdict == "met" for verdict in verdicts) else UNDECIDED
