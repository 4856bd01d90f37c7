"""The hash grid of the `native` backend against straightforward torch, and against its floor."""

import time

import torch

from potstill.core.measure import copy_bandwidth
from potstill.core.measure.bench import Figure, Pair, Skip, at_least, benchmark, close
from potstill.nerf import Levels, RowAdam
from potstill.nerf.backends import ENCODERS

POINTS = 65_536
native, reference = ENCODERS["native"].run, ENCODERS["torch"].run
SOURCE = "issue 8: CPU backend, L 16, F 2, 65,536 points, 2 threads"


def grid(log2_rows: int) -> tuple[Levels, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Levels with growth 1.5, points, a table in [-1, 1] and a gradient of the output."""
    if reason := ENCODERS["native"].missing:
        raise Skip(reason)
    levels = Levels.geometric(16, 2, log2_rows, 16, round(16 * 1.5**15))
    x, dy = torch.rand(POINTS, 3), torch.randn(POINTS, 32)
    return levels, x, torch.rand(levels.total, 2) * 2 - 1, dy


def forward(log2_rows: int) -> Pair:
    levels, x, table, _ = grid(log2_rows)
    return Pair(
        ours=lambda: native(x, table, levels),
        baseline=lambda: reference(x, table, levels),
        check=close(rtol=0, atol=2e-6),
        work=POINTS,
        unit="points/s",
        bytes=POINTS * 16 * 8 * 8,  # eight rows of two floats a level, were they a stream
    )


def both(log2_rows: int) -> Pair:
    """Forward and table gradient, the gradient allocated and dense in both arms."""
    levels, x, table, dy = grid(log2_rows)
    table.requires_grad_()

    def gradient(encode) -> torch.Tensor:
        table.grad = None
        encode(x, table, levels).backward(dy)
        return table.grad

    def check(ours: torch.Tensor, baseline: torch.Tensor) -> None:
        # the baseline adds up in float32 in another order, so it is the less exact of the two
        assert float((ours - baseline).abs().max()) <= 1e-5 * float(baseline.abs().max())

    return Pair(
        ours=lambda: gradient(native),
        baseline=lambda: gradient(reference),
        check=check,
        work=POINTS,
        unit="points/s",
        bytes=3 * POINTS * 16 * 8 * 8,  # read rows; read and write gradients
    )


def step(log2_rows: int) -> Pair:
    """A training step of the table: forward, gradient and Adam, row-lazy against dense."""
    levels, x, start, dy = grid(log2_rows)
    tables = [torch.nn.Parameter(start.clone()) for _ in range(2)]
    ours = RowAdam([("table", tables[0])], lr=1e-2)
    baseline = torch.optim.Adam([tables[1]], lr=1e-2, betas=(0.9, 0.99), eps=1e-15)

    def advance(encode, table, optimizer) -> torch.Tensor:
        encode(x, table, levels).backward(dy)
        optimizer.step()
        optimizer.zero_grad()
        return table.detach()

    def check(ours: torch.Tensor, baseline: torch.Tensor) -> None:
        # the same points in each step: the same rows move, by about lr in each
        moved = ((ours - start).abs() > 0).float().mean()
        assert 0.3 < float(moved) < 1.0, moved

    return Pair(
        ours=lambda: advance(native, tables[0], ours),
        baseline=lambda: advance(reference, tables[1], baseline),
        check=check,
        work=POINTS,
        unit="points/s",
        bytes=3 * POINTS * 16 * 8 * 8 + 8 * 4 * levels.total * 2,
    )


@benchmark(threads=2, targets=at_least(14, SOURCE))
def hash_forward_t15() -> Pair:
    """Forward at T 2^15."""
    return forward(15)


@benchmark(threads=2, targets=at_least(14, SOURCE))
def hash_forward_t19() -> Pair:
    """Forward at T 2^19."""
    return forward(19)


@benchmark(threads=2, targets=at_least(20, SOURCE))
def hash_both_t15() -> Pair:
    """Forward and table gradient at T 2^15."""
    return both(15)


@benchmark(threads=2, targets=at_least(20, SOURCE + ", optimizer counted in both arms"))
def hash_step_t19() -> Pair:
    """Forward, table gradient and Adam at T 2^19: row-lazy against dense."""
    return step(19)


@benchmark(threads=1, clock="cpu")
def hash_forward_t19_one_thread() -> Pair:
    """Forward at T 2^19, one thread, CPU time."""
    return forward(19)


@benchmark(threads=1, clock="cpu")
def hash_step_t19_one_thread() -> Pair:
    """A step of the table at T 2^19, one thread, CPU time."""
    return step(19)


def race(calls, rounds: int, clock=time.perf_counter) -> dict[str, list[float]]:
    """Seconds of each call, interleaved."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            start = clock()
            call()
            taken[name].append(clock() - start)
    return {name: values[1:] for name, values in taken.items()}


@benchmark(targets={"speed-up": at_least(1.6, SOURCE + ": 2 threads over 1")}, budget=30)
def hash_threads(quick: bool) -> dict[str, Figure]:
    """Two threads over one (forward and gradient, T 2^15), and the multiple of the floor."""
    levels, x, table, dy = grid(15)
    table.requires_grad_()

    def run(threads: int) -> None:
        torch.set_num_threads(threads)
        table.grad = None
        native(x, table, levels).backward(dy)

    before = torch.get_num_threads()
    try:
        taken = race({"1": lambda: run(1), "2": lambda: run(2)}, 2 if quick else 40)
        ratios = [a / b for a, b in zip(taken["1"], taken["2"], strict=True)]
        torch.set_num_threads(1)
        floor = 3 * POINTS * 16 * 8 * 8 / copy_bandwidth()
    finally:
        torch.set_num_threads(before)
    return {
        "speed-up": Figure(sorted(ratios)[len(ratios) // 2], "x", timed=True),
        "multiple of the copy bound, 1 thread": Figure(min(taken["1"]) / floor, "x", timed=True),
    }


@benchmark(threads=1)
def numba_against_cpp(quick: bool) -> dict[str, Figure]:
    """Forward at T 2^15 in numba against C++, CPU time: why the backend is C++ (needs numba)."""
    try:
        import numba
    except ImportError as error:
        raise Skip("needs numba: hatch run peers:bench nerf numba-against-cpp") from error
    import numpy as np

    levels, x, table, _ = grid(15)
    hashed = np.array(levels.hashed)
    columns = [np.array(c) for c in (levels.resolution, levels.rows, levels.offset)]
    scale = np.array(levels.scale, dtype=np.float32)

    @numba.njit(fastmath=True)
    def encode(x, table, scale, resolution, rows, offset, hashed, out):
        for level in range(len(scale)):
            n, size, base = resolution[level], rows[level], offset[level]
            for i in range(len(x)):
                a = np.float32(x[i, 0] * scale[level] + np.float32(0.5))
                b = np.float32(x[i, 1] * scale[level] + np.float32(0.5))
                c = np.float32(x[i, 2] * scale[level] + np.float32(0.5))
                ga, gb, gc = np.uint32(a), np.uint32(b), np.uint32(c)
                fa, fb, fc = a - ga, b - gb, c - gc
                first, second = np.float32(0), np.float32(0)
                for corner in range(8):
                    da, db, dc = corner & 1, corner >> 1 & 1, corner >> 2
                    wa = fa if da else 1 - fa
                    wb = fb if db else 1 - fb
                    wc = fc if dc else 1 - fc
                    u, v, w = np.uint32(ga + da), np.uint32(gb + db), np.uint32(gc + dc)
                    if hashed[level]:
                        h = u ^ np.uint32(v * np.uint32(2654435761))
                        h = h ^ np.uint32(w * np.uint32(805459861))
                        row = np.int64(h & np.uint32(size - 1))
                    else:
                        row = (np.int64(u) + v * n + w * n * n) % size
                    weight = wa * wb * wc
                    first += weight * table[base + row, 0]
                    second += weight * table[base + row, 1]
                out[i, 2 * level], out[i, 2 * level + 1] = first, second

    out = np.empty((POINTS, 32), dtype=np.float32)
    arguments = (x.numpy(), table.numpy(), scale, *columns, hashed, out)
    taken = race(
        {"numba": lambda: encode(*arguments), "cpp": lambda: native(x, table, levels)},
        2 if quick else 30,
        time.thread_time,
    )
    assert np.abs(out - native(x, table, levels).numpy()).max() < 1e-2
    ratio = (
        sorted(taken["cpp"])[len(taken["cpp"]) // 2]
        / sorted(taken["numba"])[len(taken["numba"]) // 2]
    )
    return {"numba over C++": Figure(ratio, "x", timed=True)}
