"""Rows that stay on the disk, and callbacks that follow a run."""

import importlib
import json
import pickle
import signal
import tracemalloc
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from potstill.core import Distiller, Interrupted, NonFiniteError, Objective
from potstill.core.engine import History, Run, TensorBoard, Validation
from potstill.core.engine.fit import fit
from potstill.core.engine.rows import Rows
from potstill.core.errors import CheckpointError, DataError


class Fitted(Distiller):
    def forward(self, batch, step):
        return self.objective(step, task=(self.student(batch), batch[:, :1]))


def train(folder, steps=6, batches=None, **options):
    torch.manual_seed(0)
    run = folder and Run(folder, every=2)
    distiller = Fitted(nn.Linear(3, 1), Objective(task=(1.0, F.mse_loss)))
    batches = batches or [torch.ones(4, 3)]
    return fit(distiller, batches, **{"steps": steps, "run": run, "progress": False, **options})


def test_rows_stay_on_the_disk(tmp_path):
    history = History(Run(tmp_path))
    (tmp_path / "history.jsonl").write_text("")
    tracemalloc.start()
    for step in range(10_000):
        history.append({"step": float(step), "loss": 1 / (step + 1), "seconds": float("inf")})
    grown = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert grown < 30 * 10_000  # a dict of three numbers takes 300 bytes
    rows = history.rows
    assert rows[-1] == rows[9999] == {"step": 9999.0, "loss": 1e-4, "seconds": float("inf")}
    assert [row["step"] for row in rows[5:8]] == [5.0, 6.0, 7.0]
    assert rows == list(rows) == pickle.loads(pickle.dumps(rows)) != rows[1:]
    assert [{}, *rows] == [{}] + rows  # noqa: RUF005
    assert len(rows + rows[:3]) == 10_003
    with pytest.raises(IndexError):
        rows[10_000]
    history.close()


@pytest.mark.parametrize("path", [True, False])
def test_rows_of_a_file_and_of_none_are_the_same(tmp_path, path):
    rows = Rows(tmp_path / "rows" if path else None)
    if path:
        rows._file = (tmp_path / "rows").open("r+b")
    for i in range(3):
        rows.written({"i": i})
        assert [row["i"] for row in rows] == list(range(i + 1))  # read between two writes
    rows._file.close()


def test_what_a_killed_run_wrote_behind_its_checkpoint_is_cut_off(tmp_path):
    path = tmp_path / "history.jsonl"
    path.write_text('{"step": 0}\n{"step": 1}\n{"step": 2}\n{"st')
    history = History(Run(tmp_path), 2)
    history.append({"step": 7})
    history.close()
    assert path.read_text() == '{"step": 0}\n{"step": 1}\n{"step": 7}\n'
    path.write_text('{"step": 0}\n{"st\n')
    with pytest.raises(CheckpointError, match=r"history\.jsonl must be a row of JSON"):
        History(Run(tmp_path), 2)


class Log:
    """A tracker: rows by step, as those of a service are, and what ended the run."""

    def __init__(self):
        self.rows, self.told = {}, []

    def begin(self, start):
        self.told.append(start)
        self.rows = {step: row for step, row in self.rows.items() if step < start}

    def row(self, row):
        assert row["step"] not in self.rows
        self.rows[row["step"]] = row

    def end(self, error):
        self.told.append(type(error).__name__)


def test_callbacks_see_each_row_once_over_a_break(tmp_path):
    log = Log()

    def draw(step, rank, world):
        if step == 3 and log.told == [0]:
            raise KeyboardInterrupt  # after the checkpoint of step 2, with a row more
        return torch.ones(4, 3)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, batches=draw, callbacks=[log])
    assert (sorted(log.rows), log.told) == ([0, 1, 2], [0, "KeyboardInterrupt"])
    history = train(tmp_path, batches=draw, callbacks=[log])
    assert (list(log.rows.values()), log.told[2:]) == (history, [2, "NoneType"])
    train(tmp_path, batches=draw, callbacks=[log])
    assert log.told[4:] == [6, "NoneType"]


def test_an_unjudged_step_is_told_when_it_is_judged(tmp_path):
    log = Log()

    def score(student):
        if len(log.told) == 1:
            signal.raise_signal(signal.SIGTERM)
        return 1.0

    validation = Validation(score, every=4)
    with pytest.raises(Interrupted):
        train(tmp_path, validation=validation, callbacks=[log])
    assert (sorted(log.rows), log.told) == ([0, 1, 2], [0, "Interrupted"])
    history = train(tmp_path, validation=validation, callbacks=[log])
    assert (list(log.rows.values()), log.told[2]) == (history, 3)


def test_a_callback_that_fails_ends_no_run_but_may_refuse_to_begin():
    class Broken(Log):
        def row(self, row):
            row.clear()  # its own copy
            raise OSError("no network")

    log, broken = Log(), Broken()
    with pytest.warns(RuntimeWarning, match="Broken failed and is told nothing more: OSError: no"):
        rows = train(None, callbacks=[broken, log])
    assert len(rows) == len(log.rows) == 6
    assert (broken.told, "task" in rows[0]) == ([0], True)

    class Refusing(Log):
        def begin(self, start):
            raise KeyError("token")

    log = Log()
    with pytest.raises(KeyError, match="token"):
        train(None, callbacks=[log, Refusing()])
    assert log.told == [0, "KeyError"]
    log = Log()
    with pytest.raises(NonFiniteError):
        train(None, batches=[torch.full((4, 3), float("nan"))], callbacks=[log])
    assert log.told == [0, "NonFiniteError"]


def test_tensorboard_shows_each_step_once_over_a_break(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for start in (0, 3):  # what a run that was killed at step 4, after the checkpoint of 3, does
        board = TensorBoard(tmp_path)
        board.begin(start)
        for step in range(start, start + 4):
            board.row({"step": float(step), "loss": float(10 * start + step)})
        board.end(None)
    events = EventAccumulator(str(tmp_path)).Reload().Scalars("loss")
    assert [event.step for event in events] == list(range(7))
    assert json.dumps([event.value for event in events][2:4]) == "[2.0, 33.0]"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full of Linux")
def test_a_disk_that_is_full_is_told_once(tmp_path):
    history = History(Run(tmp_path))
    history.close()
    history._file = open("/dev/full", "r+b")  # noqa: SIM115
    with pytest.raises(DataError, match=r"could not write .*history\.jsonl"):
        history.append({"step": 0.0})
    history.close()  # where the bytes are tried again


def test_progress_in_a_pipe_is_one_line_an_update(monkeypatch, capsys):
    """However many terms there are, without colours, and with the brackets of their names."""
    module = importlib.import_module("potstill.core.engine.history")
    monkeypatch.setattr(module, "_INTERVAL", -1.0)
    show = module.Show("a label")
    terms = {f"a/rather/long/name/of/a/term[{n}]": float(n) for n in range(9)}
    for step in range(3):
        show.update({"step": float(step), **terms}, step / 4)
    show.close()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[:4] for line in lines] == [
        ["a", "label:", f"{25 * step}%", "step"] for step in range(3)
    ]
    assert all("term[8] 8" in line and "\x1b" not in line for line in lines)
