"""Parts of the proof by the beginning of their names: ``python -m benchmarks.cuda steps- equal-``.

On a GPU they are measured, recorded and compared with their targets; other domains' benchmarks for
a GPU are named by ``acm:``. Without one this is the dry run: every part with the CPU in the GPU's
place, Triton in its interpreter, small inputs, nothing recorded.
"""

import argparse
import gc
import os
import sys
import time
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

import tests.devices.jobs  # noqa: F401  first: it changes what the others import
from benchmarks.cuda import equality, kernels, readme, steps  # noqa: F401
from potstill.core.measure.bench import Benchmark, main, registered, run

FOLDER = Path(__file__).parents[1]


def chosen(begins: str) -> list[Benchmark]:
    """What a name reaches; ``acm:`` is what the benchmarks of acm do on a GPU."""
    domain, colon, name = begins.rpartition(":")
    for path in sorted((FOLDER / domain).glob("[!_]*.py")) if colon else ():
        import_module(f"benchmarks.{domain}.{path.stem}")
    known = registered(domain or "cuda")
    return [entry for entry in known if entry.device == "cuda" and entry.name.startswith(name)]


def dry(entries: list[Benchmark]) -> int:
    """How many fail on the CPU."""
    failed = 0
    gc.freeze()  # every part collects garbage first; a million imported objects are none
    for entry in entries:
        start = time.perf_counter()
        result = run(replace(entry, device="cpu"), quick=True)
        took = f"{time.perf_counter() - start:.1f} s"
        wrong = result.status == "failed" or any(
            not target.met(result.figures[name].value)
            for name, target in entry.targets.items()
            if result.status == "measured" and not result.figures[name].timed
        )
        failed += wrong
        figures = {name: f"{f.value:.3g} {f.unit}" for name, f in result.figures.items()}
        said = result.reason or (figures if wrong or "waits" in figures else "")
        print(
            "FAILED" if wrong else result.status, entry.name, took, said, result.trace, flush=True
        )
    gc.unfreeze()  # else what is bound to C++ counts as leaked at the end
    return failed


def command() -> int:
    """Measure, or run dry."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="+", help="how the names of the parts begin")
    parser.add_argument("--out", type=Path, default=FOLDER / "results", help="folder of the rows")
    parser.add_argument("--all", action="store_true", help="fail where a part is not reached")
    options = parser.parse_args()
    groups = {begins: chosen(begins) for begins in options.names}
    if empty := [begins for begins, entries in groups.items() if not entries]:
        print(f"no benchmark for a GPU begins with {', '.join(empty)}")
        return 1
    if not torch.cuda.is_available():
        own = [entry for entries in groups.values() for entry in entries if entry.domain == "cuda"]
        own = list({entry.name: entry for entry in own}.values())
        missed = [e.name for e in registered("cuda") if e not in own and options.all]
        print(*(f"not reached: {name}" for name in missed), sep="\n")
        return int(bool(dry(own) or missed))
    codes = []
    for entries in groups.values():
        arguments = [entries[0].domain, *(entry.name for entry in entries)]
        codes.append(main(FOLDER, [*arguments, "--check", "--out", str(options.out)]))
    return max(codes, key=lambda code: (code == 1, code))


if __name__ == "__main__":
    sys.exit(command())
