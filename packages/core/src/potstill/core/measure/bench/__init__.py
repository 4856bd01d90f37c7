"""Benchmarks: registered claims about speed, size and quality, measured by one command.

A benchmark is a function in ``benchmarks/<domain>/<anything>.py``; what it returns says what is
measured. **A pair** races two implementations of the same work::

    from potstill.core.measure.bench import Pair, at_least, benchmark, close

    @benchmark(domain="core", name="ssim", targets=at_least(5.0, "issue 2: SSIM"))
    def ssim_against_the_window() -> Pair:
        \"\"\"SSIM by shifted slices against an 11x11 convolution.\"\"\"
        x, y = images()
        return Pair(
            ours=lambda: ssim(x, y),
            baseline=lambda: naive_ssim(x, y),
            check=close(atol=1e-6),            # compared before anything is timed
            work=len(x), unit="images/s",      # optional: gives the figure "rate"
            bytes=2 * x.nbytes,                # optional: gives the figure "floor"
        )

**Figures** are anything else: accuracy, decibels, MiB, seconds to a goal::

    @benchmark(domain="graph", name="cora", data="graph/planetoid", budget=300, targets={
        "student": at_least(82.0, "issue 2: Cora"), "gain": at_least(1.0, "issue 2: Cora")})
    def cora(quick: bool) -> dict[str, Figure]:
        scores = [train(seed) for seed in range(1 if quick else 5)]
        return {"student": Figure(scores, "%"), "gain": Figure(mean(scores) - teacher, "points")}

A list is one value a seed: the mean is the figure, the range its interval. A function with a
parameter ``quick`` is told when only a smoke run is wanted, and should then take seconds. One with
a parameter ``official`` is given the path behind ``--official``, a checkout of the authors' code to
race against, and is skipped without it. ``raise Skip("needs ...")`` where something that is not
data is missing, such as a peer.

``potstill bench [domain] [name...] [--check] [--quick] [--list] [--official PATH]`` runs them, and
so does ``python -m benchmarks``:

- A pair runs in blocks of at least 50 ms, in random order within each of 20 pairs (fewer, but at
  least 5, when the ``budget`` in seconds is spent). ``ratio`` is the median over pairs of baseline
  time over our time (above 1: ours is faster), with a bootstrap 95 % interval. ``ours`` and
  ``baseline`` are milliseconds per call, ``floor`` is how often our time is the machine's limit.
  ``flops`` and ``peak`` of each side are counted in one more call: what torch's counter sees
  (no native or Triton kernels, no sparse products), and torch's own allocations at their highest.
- Sides that disagree fail, whatever their times.
- Rows go to ``benchmarks/results/<domain>.csv`` (append-only, with provenance); a page with plots,
  ``<domain>.html``, is drawn from it.
- ``--check`` compares with the targets. Exit code 0: all met; 1: one missed, or a benchmark failed;
  3: none missed, but some could not be judged (data missing, or the machine was busy: timed figures
  taken while other processes used more than a quarter of a core are recorded and not judged, unless
  the benchmark uses ``clock="cpu"`` with ``threads=1``); 2: wrong usage.
- ``--quick`` is a smoke run: two pairs, nothing recorded, nothing claimed.
"""

from potstill.core.measure.bench.command import main
from potstill.core.measure.bench.drawing import sections
from potstill.core.measure.bench.registry import (
    Benchmark,
    Figure,
    Pair,
    Skip,
    Target,
    at_least,
    at_most,
    benchmark,
    close,
    registered,
)
from potstill.core.measure.bench.results import read
from potstill.core.measure.bench.run import BUSY, Measured, Result, run

__all__ = [
    "BUSY",
    "Benchmark",
    "Figure",
    "Measured",
    "Pair",
    "Result",
    "Skip",
    "Target",
    "at_least",
    "at_most",
    "benchmark",
    "close",
    "main",
    "read",
    "registered",
    "run",
    "sections",
]
