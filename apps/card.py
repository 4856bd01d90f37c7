"""What the demos for a GPU share: the card they ran on, times in turns, and one page."""

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from potstill.core import Timing
from potstill.core.measure.report import Section, data_uri, page, table_html

__all__ = ["DEVICE", "card", "options_of", "picture", "table", "turns", "write"]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def card() -> str:
    """The card, its memory and torch; or that there is none."""
    if DEVICE == "cpu":
        return f"no GPU: the CPU, {torch.get_num_threads()} threads, torch {torch.__version__}"
    known = torch.cuda.get_device_properties(0)
    memory = f"{known.total_memory / 2**30:.0f} GiB"
    return f"{known.name}, {memory}, sm_{known.major}{known.minor}, torch {torch.__version__}"


def options_of(about: str, arguments: Sequence[str] | None, **more: str) -> argparse.Namespace:
    """``--out``, ``--small``, and options with a text as their help; says the card first."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--out", type=Path, default=Path("runs/cuda"), help="folder of the page")
    parser.add_argument("--small", action="store_true", help="seconds on a CPU: does it work?")
    for name, text in more.items():
        parser.add_argument(f"--{name}", default="", help=text)
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    print(card(), flush=True)
    return options


def turns(
    calls: Mapping[str, Callable[[], Any]], rounds: int = 9, seconds: float = 0.05
) -> dict[str, Timing]:
    """Times of calls in turns, so that all see the same machine; CUDA is waited for."""
    from potstill.core.measure import calls_for, time_block

    for call in calls.values():
        call()
    counts = {name: calls_for(call, seconds) for name, call in calls.items()}
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            found[name].append(time_block(call, counts[name]) / counts[name])
    return {name: Timing(tuple(found[name]), counts[name]) for name in calls}


def table(times: Mapping[str, Timing], unit: str, work: float) -> str:
    """Milliseconds, work a second, and how often the first one's time, round by round."""
    first = next(iter(times.values()))
    rows = []
    for name, time in times.items():
        pairs = zip(first.seconds, time.seconds, strict=True)
        ratio = statistics.median(b / a for a, b in pairs)
        rows.append([name, str(time), f"{work / time.median:.4g}", f"{ratio:.3g}"])
        print(f"{name}: {time}, {rows[-1][2]} {unit}/s, {ratio:.3g} x the first", flush=True)
    head = ["in turns", "time", f"{unit}/s", "x the first"]
    return table_html(head, rows, numeric=[False, True, True, True])


def picture(path: Path) -> str:
    """A picture inside the page."""
    return f'<img alt="{path.stem}" src="{data_uri(path)}" style="width:100%">'


def write(options: argparse.Namespace, title: str, sections: Mapping[str, str]) -> Path:
    """The page of a demo, with the card above everything."""
    path: Path = options.out / "index.html"
    parts = [Section(name, html) for name, html in sections.items()]
    path.write_text(page(title, parts, summary=card()), encoding="utf-8")
    print(path, flush=True)
    return path
