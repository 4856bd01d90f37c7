"""Prove on a GPU what only a GPU can prove: each part in its own process, by worth.

python tools/prove_cuda.py --out FOLDER --minutes 25      on a machine with a card
python tools/prove_cuda.py --out FOLDER --dry             on a CPU: every part, in small

Parts: the tests marked `cuda`; every distiller on the card against the CPU; what a training step
waits for, and its memory; every kernel against the torch form; half precision and `torch.compile`;
the READMEs; the benchmarks' targets for a GPU; the demos. A part that crashes or runs out of time
loses itself alone. What passed is not run again in the same folder, unless the commit changed.

FOLDER holds `page.md`, failures first; `parts.jsonl`, one row a part with the card, the driver and
torch; `results/`, rows as in benchmarks/results; and the demos' pages. The machine may be offline:
wheels that `tools/offline_wheels.py` fetched into `wheels/` are unpacked into FOLDER. Exit code 1
where a part failed or had no time.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from workspace import DOMAINS, ROOT, SOURCES

WHEELS = ROOT / "wheels"


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


MARKED = re.compile(r"^@(requires_cuda|pytest\.mark\.cuda)", re.MULTILINE)
JOBS = ("graph", "nerf", "mae", "sr", "acm", "mirage", "search", "flow")
RACES = ("kd", "acm", "edges", "hash-triton", "hash-tcnn", "march")


def marked() -> list[str]:
    """Files with tests for a GPU, kernels first."""
    files = [
        path.relative_to(ROOT).as_posix()
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if MARKED.search(path.read_text(encoding="utf-8"))
    ]
    return sorted(files, key=lambda file: not ("backends" in file or "criteria" in file))


def parts(out: Path) -> list[Part]:
    """All parts by worth; those with the same dry command share it."""
    pytest = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "default", "-m", "cuda"]
    collect = [*pytest, "--collect-only", *marked()]
    every = ("core", *DOMAINS)
    measured = [
        *((f"equal-full-{name}", 180) for name in every),
        *((f"steps-{name}", 120) for name in JOBS),
        *((f"kernel-{name}", 120) for name in RACES),
        *((f"equal-half-{name}", 120) for name in every),
        *((f"readme-{name}", 180) for name in ("core", *DOMAINS, "all")),
        *((f"equal-compiled-{name}", 240) for name in every if name != "nerf"),
    ]
    program = ["-m", "benchmarks.cuda"]
    rows = ["--out", str(out / "results")]
    targets = [
        name for name in ("core", *DOMAINS)
        if any('device="cuda"' in path.read_text(encoding="utf-8")
               for path in (ROOT / "benchmarks" / name).glob("*.py"))
    ]  # fmt: skip
    dry = [*program, "--all", *(name for name, _ in measured), *(f"{name}:" for name in targets)]
    shown = [name for name in DOMAINS if (ROOT / "apps" / name / "cuda.py").exists()]
    demos = ["-m", "apps.cuda", "--out", str(out / "demos"), *shown]
    return [
        *(Part(file, [*pytest, file], collect, 180) for file in marked()),
        *(Part(name, [*program, name, *rows], dry, seconds) for name, seconds in measured),
        *(Part(f"targets of {name}", [*program, f"{name}:", *rows], dry, 300)
          for name in targets),
        *(Part(f"demo of {name}", [*demos[:4], name], [*demos, "--small"], 600)
          for name in shown),
    ]  # fmt: skip


def surroundings(out: Path) -> dict[str, str]:
    """What the processes need: our sources or wheels on the path, and Triton's own default."""
    site = out.resolve() / "site"
    if WHEELS.is_dir() and not site.exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
        found = [str(path) for path in sorted(WHEELS.glob("*.whl"))]
        subprocess.run([*pip, "--target", str(site), *found], check=True)
    paths = [*(str(ROOT / source) for source in SOURCES), str(site), os.environ.get("PYTHONPATH")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "TRITON_DEFAULT_FP_FUSION": "1",  # before Triton 3.10 the default, and what we compiled
    }


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


DRY_SECONDS = 600
OUTCOMES = {0: "passed", 3: "not judged"}
"""By exit code; 3 is that of a benchmark on a busy machine, or without its data."""


def run(
    part: Part, dry: bool, seconds: float, environment: dict[str, str] | None = None
) -> dict[str, Any]:
    """Run a part; its outcome, and the end of what it said."""
    start = time.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, *(part.dry if dry else part.command)],
            cwd=ROOT, env=environment, capture_output=True, text=True, errors="replace",
            timeout=seconds, check=False,
        )  # fmt: skip
        outcome = OUTCOMES.get(done.returncode, f"failed ({done.returncode})")
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
    fine = OUTCOMES.values()
    wrong = [row for row in rows if row["outcome"] not in fine]
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
    parser.add_argument("--dry", action="store_true", help="on a CPU: every part, in small")
    parser.add_argument("--only", default="", help="parts whose name has this in it")
    options = parser.parse_args()
    end = time.monotonic() + 60 * options.minutes
    about = machine(options.dry)
    options.out.mkdir(parents=True, exist_ok=True)
    book = options.out / "parts.jsonl"
    known = [json.loads(line) for line in book.read_text().splitlines()] if book.exists() else []
    same = {row["part"]: row for row in known if all(row.get(k) == v for k, v in about.items())}
    rows, left = [], []
    wanted = [p for p in parts(options.out.resolve()) if options.only in p.name]
    passed = {name for name, row in same.items() if row["outcome"] == "passed"}
    environment = surroundings(options.out)

    def attempt(part: Part) -> dict[str, Any] | None:
        seconds = min(DRY_SECONDS if options.dry else part.seconds, end - time.monotonic())
        return run(part, options.dry, seconds, environment) if seconds >= 5 else None

    with ThreadPoolExecutor(2 if options.dry else 1) as pool:  # one at a time has the card
        made: dict[str, Future[dict[str, Any] | None]] = {}
        for part in wanted:
            command = str(part.dry if options.dry else part.command)
            if part.name not in passed and command not in made:
                made[command] = pool.submit(attempt, part)
        for part in wanted:
            row = same[part.name] if part.name in passed else None
            if row is None:
                outcome = made[str(part.dry if options.dry else part.command)].result()
                if outcome is None:
                    left.append(part.name)
                    continue
                row = {**outcome, "part": part.name, **about}
                with book.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                print(f"{row['outcome']} {row['seconds']} s {part.name}", flush=True)
            rows.append(row)
            (options.out / "page.md").write_text(page(rows, left, about), encoding="utf-8")
    (options.out / "page.md").write_text(page(rows, left, about), encoding="utf-8")
    sys.exit(1 if left or any(row["outcome"] not in OUTCOMES.values() for row in rows) else 0)


if __name__ == "__main__":
    main()
