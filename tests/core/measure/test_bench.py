import csv
import sys
import time

import pytest
import torch

from potstill.core.errors import ConfigError, DataError
from potstill.core.measure import bench
from potstill.core.measure.bench import (
    Figure,
    Pair,
    Skip,
    Target,
    at_least,
    at_most,
    benchmark,
    drawing,
    run,
)
from potstill.core.measure.bench import results as record
from potstill.core.measure.bench.counts import operations, peak_allocated
from potstill.core.measure.bench.run import BUSY, Measured


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    entries = {}
    monkeypatch.setattr("potstill.core.measure.bench.registry._REGISTRY", entries)
    return entries


@pytest.fixture
def idle(monkeypatch):
    """The machine counts as idle, whatever runs beside the tests."""
    set_others(monkeypatch, 0.0)


def set_others(monkeypatch, cores):
    def leave(self, *error):
        self.others = cores

    monkeypatch.setattr("potstill.core.measure.machine.Load.__exit__", leave)


def declare(function, **options):
    benchmark(domain="d", **{"name": "b", **options})(function)
    return bench.registered("d")[-1]


def sleeper(seconds, value=1.0):
    def call():
        time.sleep(seconds)
        return torch.tensor(value)

    return call


def quick_pair(**more):
    return Pair(ours=sleeper(0.001), baseline=sleeper(0.004), **more)


@pytest.fixture
def simulated_time(monkeypatch):
    """Sleeping takes exactly as long as it says, and nothing else takes time."""
    now = [0.0]
    monkeypatch.setattr("time.sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    monkeypatch.setattr("potstill.core.measure.timing._now", lambda clock: lambda: now[0])


def test_a_race_measures_its_ratio_and_its_extras(monkeypatch, idle, simulated_time):
    monkeypatch.setattr("potstill.core.measure.machine.copy_bandwidth", lambda device: 1e9)
    monkeypatch.setattr("potstill.core.measure.machine.gemm_peak", lambda device: 1e9)
    pair = quick_pair(
        work=10, unit="items/s", bytes=1e5, flops=5e5, figures={"memory": Figure(3, "MiB")}
    )
    result = run(declare(lambda: pair, targets=at_least(2, "here")), quick=True)
    assert result.status == "measured", result.trace
    assert set(result.figures) == {"ratio", "ours", "baseline", "rate", "floor", "memory"}
    ratio, ours, rate = (result.figures[name] for name in ("ratio", "ours", "rate"))
    assert (ratio.low, ratio.value, ratio.high) == pytest.approx((4, 4, 4))
    assert ratio.samples == 2
    assert rate.value == pytest.approx(10 / (ours.value / 1e3), rel=0.1)
    assert result.figures["floor"].value == pytest.approx(ours.value / 0.5, rel=0.01)
    assert result.verdict("ratio", at_least(2, "")) == "met"
    assert result.verdict("ratio", at_least(9, "")) == "missed"
    assert result.provenance["seed"] == "0"


def multiply():
    a = torch.ones(256, 256)
    return a @ (a + 1)


def test_operations_and_memory_are_counted_of_both_sides(idle):
    pair = Pair(ours=multiply, baseline=lambda: multiply() + 0)
    figures = run(declare(lambda: pair), pairs=5).figures
    assert figures["flops"].value == figures["flops, baseline"].value == 2 * 256**3 / 1e9
    assert (figures["peak"].value, figures["peak, baseline"].value) == (0.75, 0.75)
    assert not figures["peak"].timed


def test_peak_memory_forgets_what_was_there_before_and_what_was_given_back():
    kept = [torch.ones(2**20)]
    assert peak_allocated(lambda: [torch.ones(2**18).sum() for _ in range(3)]) < 2**20 + 64
    assert peak_allocated(lambda: kept.append(torch.ones(2**18))) == 2**20
    assert operations(lambda: torch.ones(4).sum()) == 0


def test_a_side_that_cannot_be_counted_keeps_its_times(idle, monkeypatch):
    def refuse(call):
        raise RuntimeError("a kernel of its own")

    monkeypatch.setattr("potstill.core.measure.bench.counts.operations", refuse)
    entry = declare(lambda: Pair(ours=multiply, baseline=multiply))
    with pytest.warns(UserWarning, match="timed, not counted: a kernel of its own"):
        result = run(entry, pairs=5)
    assert set(result.figures) == {"ratio", "ours", "baseline"}


def test_a_checkout_of_the_authors_reaches_functions_that_ask(idle, tmp_path):
    def theirs(official):
        return {"files": Figure(len(list(official.iterdir())))}

    entry = declare(theirs)
    result = run(entry)
    assert (result.status, "--official PATH" in result.reason) == ("skipped", True)
    (tmp_path / "model.py").write_text("")
    result = run(entry, official=tmp_path)
    assert result.figures["files"].value == 1
    assert result.provenance["data"] == tmp_path.name  # no commit: it is no work tree


def test_ratio_is_the_median_of_paired_ratios():
    """Drift that doubles both sides leaves it alone."""
    from potstill.core.measure.bench.run import _pair_figures

    ours, baseline = [1.0, 2.0, 4.0], [3.0, 6.0, 12.0]
    figures = _pair_figures(quick_pair(), "cpu", ours, baseline)
    assert (figures["ratio"].value, figures["ratio"].low, figures["ratio"].high) == (3, 3, 3)
    assert figures["ours"].value == 2000


def test_blocks_are_interleaved_in_random_order(idle):
    calls = []
    pair = Pair(ours=lambda: calls.append("o"), baseline=lambda: calls.append("b"))
    entry = declare(lambda: pair)
    from potstill.core.measure.bench.run import _race

    seen = []

    def block(call, count, clock):
        calls.clear()
        call()
        seen.extend(calls)
        return 1.0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("potstill.core.measure.timing.time_block", block)
        patch.setattr("potstill.core.measure.timing.calls_for", lambda call, seconds, clock: 1)
        _race(pair, entry, False, 20, lambda text: None)
    orders = {tuple(seen[i : i + 2]) for i in range(0, 40, 2)}
    assert orders == {("o", "b"), ("b", "o")}


def test_the_budget_ends_a_race_after_five_pairs(idle):
    entry = declare(lambda: quick_pair(), budget=0.0)
    assert run(entry, pairs=20).figures["ratio"].samples == 5


def test_sides_that_disagree_fail_before_anything_is_timed(idle, monkeypatch):
    monkeypatch.setattr(
        "potstill.core.measure.timing.time_block", lambda *a: pytest.fail("was timed")
    )
    pair = Pair(ours=sleeper(0, 1.0), baseline=sleeper(0, 1.1))
    result = run(declare(lambda: pair, targets=at_least(0, "x")), quick=True)
    assert result.status == "failed"
    assert "not close" in result.reason
    assert result.verdict("ratio", at_least(0, "x")) == "not judged: failed"


def test_figures_over_seeds(idle):
    entry = declare(
        lambda: {"accuracy": Figure([81.0, 82.0, 86.0], "%"), "size": Figure(4, "MiB")},
        targets={"accuracy": at_least(83, "x"), "size": at_most(3, "x")},
    )
    result = run(entry)
    figure = result.figures["accuracy"]
    assert (figure.value, figure.low, figure.high, figure.p50) == (83, 81, 86, 82)
    assert figure.interval == "range of 3"
    verdicts = {name: result.verdict(name, target) for name, target in entry.targets.items()}
    assert verdicts == {"accuracy": "met", "size": "missed"}


def test_quick_reaches_functions_that_ask(idle):
    def ask(quick):
        return {"n": Figure(1 if quick else 5)}

    assert run(declare(ask), quick=True).figures["n"].value == 1
    assert run(bench.registered("d")[0]).figures["n"].value == 5


def test_runs_are_seeded(idle):
    entry = declare(lambda: {"r": Figure(float(torch.rand(())))}, seed=3)
    assert run(entry).figures["r"] == run(entry).figures["r"]


def test_threads_are_set_and_put_back(idle):
    before = torch.get_num_threads()
    entry = declare(lambda: {"n": Figure(torch.get_num_threads())}, threads=before + 1)
    assert run(entry).figures["n"].value == before + 1
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("others", "options", "timed", "verdict"),
    [
        (BUSY + 1, {}, True, "not judged: busy (1.25 cores)"),
        (BUSY + 1, {}, False, "met"),
        (BUSY + 1, {"threads": 1, "clock": "cpu"}, True, "met"),
        (BUSY, {}, True, "met"),
    ],
)
def test_a_busy_machine_is_not_judged(monkeypatch, others, options, timed, verdict):
    set_others(monkeypatch, others)
    result = run(declare(lambda: {"t": Figure(1.0, "s", timed=timed)}, **options))
    assert result.status == "measured"  # it runs all the same
    assert result.verdict("t", at_most(2, "")) == verdict


def test_skips_say_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("POTSTILL_DATA", str(tmp_path))

    def never():
        pytest.fail("ran without its data")

    result = run(declare(never, data="sr/Set5"))
    assert (result.status, "sr/Set5 is not below" in result.reason) == ("skipped", True)
    monkeypatch.setenv("POTSTILL_DATA", str(tmp_path / "nowhere"))
    assert "the data root" in run(declare(never, name="c", data=True)).reason

    def needs():
        raise Skip("needs a moon")

    result = run(declare(needs, name="e"))
    assert (result.status, result.reason) == ("skipped", "needs a moon")
    assert result.verdict("ratio", at_least(1, "")) == "not judged: skipped"


@pytest.mark.parametrize(
    ("measurement", "message"),
    [
        ({"other": Figure(1)}, "got 'ratio'; known: other"),
        ({"ratio": Figure(float("nan"))}, "ratio must be finite"),
        ({"ratio": Figure([])}, "ratio must be finite"),
    ],
)
def test_wrong_declarations_fail(idle, measurement, message):
    result = run(declare(lambda: measurement, targets=at_least(1, "x")))
    assert result.status == "failed"
    assert message in result.reason


def test_names_and_clocks_are_checked():
    declare(lambda: {}, name="same")
    with pytest.raises(ConfigError, match="threads must be 1"):
        benchmark(clock="cpu")

    def other():
        return {}

    other.__module__ = "elsewhere"
    with pytest.raises(ConfigError, match="name must be new in 'd', got 'same'"):
        declare(other, name="same")


def test_nan_never_meets_a_target():
    assert not Target(">=", 0, "").met(float("nan"))
    assert not Target("<=", 0, "").met(float("nan"))


def measured(value):
    return Measured(value, "x", value, value, "bootstrap 95 %", value, value, value, 20, True)


def test_the_record_only_grows_and_the_page_shows_the_newest(tmp_path, idle):
    entry = declare(lambda: quick_pair(), targets=at_least(2, "issue 9"))
    path = tmp_path / "d.csv"
    for value in (1.5, 3.0):
        result = run(entry, quick=True)
        result.figures = {"ratio": measured(value)}
        before = path.read_text() if path.exists() else ""
        record.append(path, [result])
        assert path.read_text().startswith(before)
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["value"], row["verdict"]) for row in rows] == [("1.5", "missed"), ("3", "met")]
    assert all(row["torch"] == torch.__version__ and row["date"] for row in rows)
    page = drawing.draw(path).read_text()
    assert "3.000 x" in page
    assert "1.500" not in page
    assert "&gt;= 2" in page
    assert "issue 9" in page
    assert "hatch run bench d &lt;benchmark&gt;" in page
    assert page.count("<svg") == 1


def test_a_record_of_another_kind_is_not_touched(tmp_path):
    path = tmp_path / "d.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="must have the columns"):
        record.append(path, [])
    assert path.read_text() == "a,b\n1,2\n"


@pytest.mark.parametrize("row", ["1", ",".join(["x"] * len(record.COLUMNS)), '"' + "1" * 140_000])
def test_a_damaged_record_is_refused_by_name(tmp_path, row):
    path = tmp_path / "d.csv"
    path.write_text("")
    with pytest.raises(DataError, match="d.csv must have the columns"):
        record.read(path)
    path.write_text(",".join(record.COLUMNS) + f"\n{row}\n")
    with pytest.raises(DataError, match=r"d\.csv"):
        record.read(path)


PROGRAM = """
from potstill.core.measure.bench import *

@benchmark(targets={"score": at_least(VALUE, "issue 9")}, BUDGET)
def score(quick):
    '''A score.'''
    return {"score": Figure(5.0, "points")}
"""


@pytest.fixture
def program(tmp_path, monkeypatch, request, registry, idle):
    """Write benchmarks/<domain>/program.py into a folder of its own name, and run it."""
    folder = tmp_path / f"marks_{request.node.name.partition('[')[0]}"
    (folder / "toy").mkdir(parents=True)
    monkeypatch.syspath_prepend(str(tmp_path))

    def call(*arguments, value=1.0, more="budget=1"):
        registry.clear()
        for name in [name for name in sys.modules if name.startswith(folder.name)]:
            monkeypatch.delitem(sys.modules, name)
        stem = f"program{len(list((folder / 'toy').iterdir()))}"
        for old in (folder / "toy").glob("*.py"):
            old.rename(old.with_name("_" + old.name))
        text = PROGRAM.replace("VALUE", str(value)).replace("BUDGET", more)
        (folder / "toy" / f"{stem}.py").write_text(text)
        return bench.main(folder, arguments)

    call.folder = folder
    return call


def test_command_exit_codes(program, capsys, tmp_path, monkeypatch):
    assert program("toy", "--check") == 0
    assert program("toy", "--check", value=6.0) == 1
    assert "missed" in capsys.readouterr().out
    monkeypatch.setenv("POTSTILL_DATA", str(tmp_path))
    assert program("toy", "--check", more="data='gone'") == 3
    assert program("toy", more="data='gone'") == 0
    assert program("toy", value="float('inf')") == 1  # a failed benchmark fails without --check too
    capsys.readouterr()
    assert program("toy", "--check", "--quick") == 2
    assert program("toi") == 2
    assert program("toy", "--official", "nowhere") == 2
    assert program("toy", "scora") == 2
    errors = capsys.readouterr().err
    assert "must be the folder of a checkout" in errors
    assert "did you mean 'toy'?" in errors
    assert "did you mean 'score'?" in errors


def test_command_records_full_runs_only(program, capsys):
    results = program.folder / "results"
    assert program("toy", "--quick") == 0
    assert "no claims" in capsys.readouterr().out
    assert program("toy", "--list") == 0
    assert "score >= 1: issue 9" in capsys.readouterr().out
    assert not results.exists()
    assert program() == 0  # all of them
    assert sorted(path.name for path in results.iterdir()) == ["toy.csv", "toy.html"]
