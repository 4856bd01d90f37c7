"""Prove on a GPU what only a GPU can prove: each part in its own process, kernels first.

python tools/prove_cuda.py --out FOLDER --minutes 25      on a machine with a card
python tools/prove_cuda.py --out FOLDER --dry             on a CPU: every part is found and starts

A part that crashes or runs out of time loses itself alone. What passed is not run again in the
same folder, unless the commit changed. FOLDER holds `parts.jsonl`, one row a part with the card,
the driver and torch, and `page.md`, failures first. Exit code 1 where a part failed or had no time.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from workspace import DOMAINS, ROOT


class Part(NamedTuple):
    """Something to run in a process of its own.

    Attributes:
        name: Name in the page; what a folder remembers.
        command: Arguments of Python, on a GPU.
        dry: Arguments of Python that take its place on a CPU.
        seconds: Most seconds.
    """

    name: str
    command: list[str]
    dry: list[str]
    seconds: int


MARKS = ("requires_cuda", "mark.cuda")


def parts() -> list[Part]:
    """All parts: kernels before whole tests, tests before speed."""
    files = [
        path.relative_to(ROOT).as_posix()
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if any(mark in path.read_text(encoding="utf-8") for mark in MARKS)
    ]
    kernels = [file for file in files if "backends" in file or "criteria" in file]
    tests = [*kernels, *(file for file in files if file not in kernels)]
    pytest = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "cuda"]
    return [
        *(Part(file, [*pytest, file], [*pytest, "--collect-only", file], 180) for file in tests),
        *(
            Part(f"speed of {name}", ["-m", "benchmarks", name, "--check"],
                 ["-m", "benchmarks", name, "--list"], 600)
            for name in ("core", *DOMAINS)
        ),
    ]  # fmt: skip


def machine(dry: bool) -> dict[str, Any]:
    """The card, its driver, torch and Triton, and the commit."""
    import torch

    commit = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    row = {"commit": commit, "torch": torch.__version__, "cuda": torch.version.cuda, "dry": dry}
    if not torch.cuda.is_available():
        if not dry:
            sys.exit("prove_cuda: torch finds no CUDA device; --dry runs on a CPU")
        return {**row, "card": "none"}
    major, minor = torch.cuda.get_device_capability()
    driver = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
        capture_output=True, text=True, check=False,
    ).stdout.strip()  # fmt: skip
    card = f"{torch.cuda.get_device_name()} (sm_{major}{minor})"
    return {**row, "card": card, "driver": driver}


def run(part: Part, dry: bool, seconds: float) -> dict[str, Any]:
    """Run a part; its outcome, and the end of what it said."""
    start = time.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, *(part.dry if dry else part.command)],
            cwd=ROOT, capture_output=True, text=True, errors="replace", timeout=seconds,
            check=False,
        )  # fmt: skip
        outcome = "passed" if done.returncode == 0 else f"failed ({done.returncode})"
        said = done.stdout + done.stderr
    except subprocess.TimeoutExpired as late:
        outcome, said = f"no answer within {seconds:.0f} s", text(late.stdout) + text(late.stderr)
    took = round(time.monotonic() - start, 1)
    return {"part": part.name, "outcome": outcome, "seconds": took, "said": said[-4000:]}


def text(output: bytes | str | None) -> str:
    """What a process said before it was stopped."""
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""


def page(rows: list[dict[str, Any]], left: list[str], about: dict[str, Any]) -> str:
    """Failures first, then what had no time, then what passed."""
    wrong = [row for row in rows if row["outcome"] != "passed"]
    lines = ["# Proof on CUDA", "", ", ".join(f"{key} {value}" for key, value in about.items()), ""]
    for title, chosen in (("Failed", wrong), ("Passed", [r for r in rows if r not in wrong])):
        lines += [f"## {title}: {len(chosen)}", ""]
        for row in chosen:
            last = (row["said"].strip().splitlines() or [""])[-1]
            lines += [f"- {row['part']}: {row['outcome']}, {row['seconds']} s; {last}"]
        lines += [""]
        if chosen is wrong:
            for row in wrong:
                lines += [f"### {row['part']}", "", "```", row["said"], "```", ""]
            lines += [f"## Not run: {len(left)}", "", *(f"- {name}" for name in left), ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder; what passed stays passed")
    parser.add_argument("--minutes", type=float, default=25.0, help="for all parts together")
    parser.add_argument("--dry", action="store_true", help="on a CPU: find and start every part")
    parser.add_argument("--only", default="", help="parts whose name has this in it")
    options = parser.parse_args()
    end = time.monotonic() + 60 * options.minutes
    about = machine(options.dry)
    options.out.mkdir(parents=True, exist_ok=True)
    book = options.out / "parts.jsonl"
    known = [json.loads(line) for line in book.read_text().splitlines()] if book.exists() else []
    same = {row["part"]: row for row in known if all(row.get(k) == v for k, v in about.items())}
    rows, left = [], []
    for part in parts():
        if options.only not in part.name:
            continue
        row = same.get(part.name)
        if row is None or row["outcome"] != "passed":
            seconds = min(part.seconds, end - time.monotonic())
            if seconds < 5:
                left.append(part.name)
                continue
            row = {**run(part, options.dry, seconds), **about}
            with book.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{row['outcome']} {row['seconds']} s {part.name}", flush=True)
        rows.append(row)
        (options.out / "page.md").write_text(page(rows, left, about), encoding="utf-8")
    (options.out / "page.md").write_text(page(rows, left, about), encoding="utf-8")
    sys.exit(1 if left or any(row["outcome"] != "passed" for row in rows) else 0)


if __name__ == "__main__":
    main()
