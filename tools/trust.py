"""Prove every long job of every package, and write docs/trust.md.

hatch run trust                        everything, about half an hour on two cores
hatch run trust graph sr --kills 4     some packages, fewer kills; the table keeps the others' rows

Each package names its jobs in its trust.toml; a test asks for all of them. Results are kept as JSON
beside the proofs, so that one package can be tried again.
"""

import argparse
import json
import os
import platform
import re
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from subprocess import PIPE, run

import numpy as np
from PIL import Image
from workspace import DOMAINS, ROOT

PAGE = ROOT / "docs" / "trust.md"
OFTEN = 0.005  # minutes between checkpoints
PROMISED = 20  # signals for each job


@dataclass
class Job:
    """A command behind ``potstill``: small, with its real options.

    Attributes:
        words: Its words.
        before: Commands that make what it needs in ``{data}``.
        leave_out: Patterns of files that hold times.
        across: Largest difference of a weight between one and two processes; None where they
            need not be equal.
    """

    words: str
    before: list[str] = field(default_factory=list)
    leave_out: list[str] = field(default_factory=list)
    across: float | None = None


def jobs_of(package: str) -> dict[str, Job]:
    """What ``trust.toml`` beside the package's ``pyproject.toml`` names."""
    text = (ROOT / "packages" / package / "trust.toml").read_text(encoding="utf-8")
    return {name: Job(**job) for name, job in tomllib.loads(text).items()}


JOBS = {package: jobs_of(package) for package in DOMAINS}


def prepare(data: Path, package: str) -> None:
    """Pictures of two classes, and what the jobs of the package start from."""
    rng = np.random.default_rng(0)
    for number in range(24):
        path = data / "pictures" / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        side = 48 if package == "sr" else 16
        values = rng.integers(0, 120, (side, side, 3)) + 130 * (number % 2)
        Image.fromarray(values.astype(np.uint8)).save(path)
    for words in {words for job in JOBS[package].values() for words in job.before}:
        run(["potstill", *words.replace("{data}", str(data)).split()], check=True)


def prove_jobs(package: str, folder: Path, options: argparse.Namespace) -> None:
    """Prove the jobs of a package, each in a process of its own; leave JSON of what was found."""
    from potstill.core.command import main
    from potstill.core.trust import prove

    data = folder / "data" / package
    prepare(data, package)
    for name, job in JOBS[package].items():
        out = folder / package / name.replace(", ", "-")
        often = f"--checkpoint-minutes {OFTEN}"
        words = f"potstill {job.words} {often} --device cpu --out {{out}}"
        found = prove(
            words.replace("{data}", str(data)).split(),
            out,
            kills=options.kills,
            processes=tuple(options.processes),
            disks=options.disks,
            seed=options.seed,
            may_differ=("seconds", "*seconds", "date", "load"),  # of the run, of the machine
            leave_out=job.leave_out,
            across=job.across,
            limit=300,
            call=lambda words: main(words[1:]),
            say=lambda line, name=name: print(f"{package} {name}: {line}", flush=True),
        )
        print("\n".join([f"\n{package} {name}", *found.table(), *found.lost, *found.untried]))
        keep(folder / f"{package}-{out.name}.json", asdict(found))


def keep(path: Path, report: dict) -> None:
    """Write what was found; what is known from other ways and numbers of processes stays."""
    before = json.loads(path.read_text()) if path.exists() else {"cases": [], "apart": {}}
    tried = {(case["what"], case["processes"]) for case in report["cases"]}
    report["cases"] += [c for c in before["cases"] if (c["what"], c["processes"]) not in tried]
    report["apart"] = {**before["apart"], **report["apart"]}
    path.write_text(json.dumps(report, indent=1))


def page(folder: Path) -> str:
    """The page, from what is known of each job."""
    rows, losses, short, apart = [], [], [], []
    for package, jobs in JOBS.items():
        for name in jobs:
            path = folder / f"{package}-{name.replace(', ', '-')}.json"
            if not path.exists():
                rows.append(f"| {package} {name} | not tried | | | | | |")
                short.append(f"- {package} {name} was not tried.")
                continue
            found = json.loads(path.read_text())
            rows.append(row(f"{package} {name}", found["cases"]))
            losses += [
                f"- {package} {name}, {case['what']}, {case['processes']} process(es): {line}"
                for case in found["cases"]
                for line in case["lost"]
            ]
            short += [f"- {package} {name}: {line}" for line in found["untried"]]
            one, two = (signals(found["cases"], processes) for processes in (1, 2))
            if one < PROMISED or not two:
                short.append(
                    f"- {package} {name}: {one} of {PROMISED} signals on one process, {two} on two."
                )
            apart += [f"{package} {name} {far:.1g}" for far in found["apart"].values()]
    return TEXT.format(
        table="\n".join(rows),
        lost=re.sub(r"/\S*/run/", "run/", "\n".join(losses)) or "Nothing.",
        short="\n".join(short) or "Nothing.",
        apart=", ".join(apart) or "no job is held to that yet",
        machine=f"Python {platform.python_version()}, {platform.system()}, one thread a process",
        date=date.today(),
        often=60 * OFTEN,
        more=mutations(folder) + grid(folder),
    )


def mutations(folder: Path) -> str:
    """What `tools/mutate.py --out mutations.json` in the folder has found."""
    path = folder / "mutations.json"
    if not path.exists():
        return ""
    kinds = ("read", "refused", "nameless", "foreign", "slow", "crash")
    lines = [
        f"| {row['reader']} | {row['inputs']:,} | "
        + " | ".join(f"{row[k]:,}" for k in kinds)
        + " |"
        for row in json.loads(path.read_text()).values()
    ]
    return MUTATIONS.format(table="\n".join(lines))


def grid(folder: Path) -> str:
    """The largest deviation of an update that is cut up, by precision; computed once a folder."""
    path = folder / "grid.json"
    if not path.exists():
        words = [
            sys.executable,
            "-c",
            "import json, split_grid; print(json.dumps(split_grid.grid()))",
        ]
        done = run(words, cwd=ROOT / "tools", check=True, stdout=PIPE, text=True)
        path.write_text(done.stdout.splitlines()[-1])
    cells = json.loads(path.read_text())
    kinds = {cell["precision"]: cell["bound"] for cell in cells}
    lines = [
        f"| {kind} | {len(same)} | {max(cell['deviation'] for cell in same):.1e} | {bound:.1e} |"
        for kind, bound in kinds.items()
        if (same := [cell for cell in cells if cell["precision"] == kind])
    ]
    return GRID.format(table="\n".join(lines))


def row(name: str, cases: list[dict]) -> str:
    """One job: signals on one and on two processes, disks, neighbours, what was lost."""

    one, two = (signals(cases, processes) for processes in (1, 2))
    disks, seconds = (
        sum(case["times"] for case in cases if case["what"] in ways)
        for ways in (("files of limited size", "small disk"), ("second run in the folder",))
    )
    repeated, lost = sum(c["repeated"] for c in cases), sum(len(c["lost"]) for c in cases)
    return f"| {name} | {one} | {two} | {disks} | {seconds} | {repeated} | {lost or 'nothing'} |"


def signals(cases: list[dict], processes: int) -> int:
    """How many signals a job got."""
    own = (case for case in cases if case["processes"] == processes)
    return sum(case["times"] for case in own if case["what"].startswith("SIG"))


TEXT = """# What was tried, and what was lost

Written by `hatch run trust` on {date}: {machine}.
Each job is a small one with its real options. It
runs alone twice, which must leave the same files. Then it gets signals at random moments of its
work (SIGKILL, SIGTERM to all its processes or to the first only, SIGINT; up to three in a row), its
disk fills up, and it is started a second time in its own folder. Each time the same command then
runs to its end, and its folder must hold the same bits as that of the run that was let alone:
weights tensor by tensor, figures, histories, pictures. Only times may differ, and nothing may be
left over. Runs are forks of a process that has imported everything; two processes are started by
the agent of `torchrun`; checkpoints are written every {often:.1g} seconds.

| job | signals | with two processes | full disks | second runs | steps repeated | losses |
|---|---|---|---|---|---|---|
{table}

Each row is of the last time that the job was tried, which may have been before what it lost was
mended. A loss is listed below, with what was lost. Steps repeated are those after the last
checkpoint before a SIGKILL or a full disk. Where the weights of two processes must equal those of
one, they differ by at most: {apart}.
Draws are those of one process, by sample. Two jobs are not held to equal weights: mae finetune
mixes pairs of images (mixup, cutmix), which are of a process's own batch; nerf train takes the same
rays and has the same losses, but Adam makes whole steps of gradients that are rounding alone, in
cells that hardly a ray meets.

Any command can be tried: `potstill trust -- COMMAND --out {{out}}`; see [the command line](cli.md).

## What was lost

{lost}

## What falls short

{short}
{more}"""

MUTATIONS = """
## Files from strangers

Inputs that were damaged at random, of each reader, by `python tools/mutate.py`. Right is that it is
read, or refused by an error of ours that names it, within 5 seconds of computing and 2 GiB; nothing
in it runs. Each row is of the last time that the reader was tried, which may have been before what
it found was mended.

| reader | inputs | read | refused | without its name | other errors | slow | crashes |
|---|---|---|---|---|---|---|---|
{table}
"""

GRID = """
## However an update is cut

Micro-batches, processes, blocks of the criteria and masks, each against the same update in one
piece (`python tools/split_grid.py` prints every cell). The deviation is relative, of gradients and
loss.

| precision | cells | largest deviation | bound |
|---|---|---|---|
{table}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("packages", nargs="*", metavar="package")
    parser.add_argument(
        "--kills",
        type=int,
        nargs="+",
        default=[PROMISED, 6],
        help="signals on one and on two processes",
    )
    parser.add_argument("--disks", type=int, default=1, help="full disks of each kind")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "trust")
    parser.add_argument("--page", action="store_true", help="only write the page anew")
    parser.add_argument("--here", action="store_true", help="in this process, and no page")
    options = parser.parse_args()
    chosen = options.packages or [*JOBS]
    if unknown := set(chosen) - set(JOBS):
        parser.error(f"known packages: {', '.join(JOBS)}; got {', '.join(sorted(unknown))}")
    options.out = options.out.absolute()
    options.out.mkdir(parents=True, exist_ok=True)
    os.environ["OMP_NUM_THREADS"] = "1"  # the same bits, and one core for each
    if options.here:
        for package in chosen:
            prove_jobs(package, options.out, options)
        return
    if not options.page:  # two at a time, each package in a process that has imported only it
        with ThreadPoolExecutor(2) as pool:
            ended = dict(zip(chosen, pool.map(start, chosen), strict=True))
        if failed := [package for package, code in ended.items() if code]:
            sys.exit(f"could not be tried: {', '.join(failed)}")
    PAGE.write_text(page(options.out), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")


def start(package: str) -> int:
    """The same program for one package."""
    words = [word for word in sys.argv[1:] if word not in JOBS]
    return run([sys.executable, __file__, package, *words, "--here"]).returncode


if __name__ == "__main__":
    main()
