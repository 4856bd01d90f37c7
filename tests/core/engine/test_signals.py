"""What terminals and schedulers send: to every process of a job, twice, and with a time limit."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from potstill.core import Batches, Distiller, Objective, Run, Validation, fit
from potstill.core.engine.signals import Signals, Stop, begin
from potstill.core.errors import Interrupted
from potstill.core.store import checkpoint

SIGNALS = [signal.SIGTERM, signal.SIGINT]


class Fitted(Distiller):
    def forward(self, batch, step):
        z = self.student(batch)
        return self.objective(step, task=(z, torch.ones_like(z)))


class Counted(IterableDataset):
    def __iter__(self):
        return iter(torch.full((3,), n / 8) for n in range(8))


ITEMS = [torch.full((3,), n / 8) for n in range(8)]
SOURCES = {
    "Batches": lambda: Batches(ITEMS, 2, workers=2),
    "DataLoader": lambda: DataLoader(ITEMS, 2, num_workers=2),
    "stream": lambda: DataLoader(Counted(), 2, num_workers=1),
}


def train(folder, batches, steps=6, progress=False, **options):
    torch.manual_seed(0)
    net = nn.Linear(3, 1)
    fit(
        Fitted(net, Objective(task=(1.0, F.mse_loss))),
        batches,
        steps=steps,
        lr=0.1,
        run=None if folder is None else Run(folder),
        progress=progress,
        **options,
    )
    return net.weight.detach().clone()


def children():
    text = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    return [int(word) for word in text.split()]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.filterwarnings("ignore:fit. a run that is continued")
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_to_every_process_loses_nothing(tmp_path, source, number):
    before = set(children())

    def strike(row, share):
        if row["step"] == 2:
            for pid in {*children()} - before:
                os.kill(pid, number)
            time.sleep(0.05)
            os.kill(os.getpid(), number)

    with pytest.raises(Interrupted) as caught:
        train(tmp_path, SOURCES[source](), progress=strike)
    assert caught.value.exit_code == 128 + number
    assert checkpoint.newest(tmp_path / "checkpoints").name == "step-000000004"
    assert torch.equal(train(tmp_path, SOURCES[source]()), train(None, SOURCES[source]()))


def test_a_signal_at_the_end_waits_for_the_last_checkpoint(tmp_path, monkeypatch):
    """Also after the last step, where it once ended the process before its steps were saved."""
    from potstill.core.engine.fit import _Loop

    finish = _Loop._finish

    def struck(loop):
        signal.raise_signal(signal.SIGTERM)
        finish(loop)

    def died(*_):
        raise AssertionError("the last checkpoint was not written")

    monkeypatch.setattr(_Loop, "_finish", struck)
    before = signal.signal(signal.SIGTERM, died)
    try:
        with pytest.raises(Interrupted) as caught:
            train(tmp_path, [torch.ones(2, 3)])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert caught.value.exit_code == 143
    assert checkpoint.newest(tmp_path / "checkpoints").name == "step-000000006"


def test_workers_keep_their_own_start_and_the_loader_its_options():
    began = []
    loader = DataLoader(ITEMS, 2, num_workers=0, worker_init_fn=began.append)
    assert len(list(begin(loader))) == 4
    loader = DataLoader(Handlers(), None, num_workers=1, worker_init_fn=torch.manual_seed)
    assert list(begin(loader)) == [[True, True]]
    assert loader.worker_init_fn is torch.manual_seed
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()


class Handlers:
    """What a worker does about both signals."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        if index:
            raise IndexError
        return [signal.getsignal(number) == signal.SIG_IGN for number in SIGNALS]


class Told(IterableDataset):
    """Items that say what a worker does about both signals."""

    def __iter__(self):
        return iter([torch.tensor([*map(float, Handlers()[0]), 1.0])] * 4)


class Keeping(Fitted):
    seen: list = []  # noqa: RUF012

    def forward(self, batch, step):
        self.seen.append(batch)
        return super().forward(batch, step)


def hidden(persistent):
    """A loader that only a function of the user's knows."""
    loader = DataLoader(Told(), 2, num_workers=1, persistent_workers=persistent)
    return lambda step, rank, world: next(iter(loader))


def wrapped():
    yield from DataLoader(Told(), 2, num_workers=1)


def begun_before():
    loader = DataLoader(Told(), 2, num_workers=1, persistent_workers=True)
    assert not next(iter(loader))[0, 0]
    return loader


@pytest.mark.filterwarnings("ignore:fit. a run that is continued")
@pytest.mark.parametrize(
    "source",
    [lambda: hidden(False), lambda: hidden(True), begun_before,
     wrapped],
    ids=["hidden", "hidden, persistent", "begun before", "generator"],
)  # fmt: skip
def test_no_worker_obeys_wherever_its_loader_is(tmp_path, source):
    """A worker with a handler takes the batch with it that the step in progress needs."""
    distiller = Keeping(nn.Linear(3, 1), Objective(task=(1.0, F.mse_loss)))
    distiller.seen = []
    fit(distiller, source(), steps=2, run=tmp_path, progress=False)
    assert len(distiller.seen) == 2
    assert torch.stack(distiller.seen).min() == 1
    assert [signal.getsignal(number) for number in SIGNALS] == [
        signal.SIG_DFL, signal.default_int_handler
    ]  # fmt: skip


def test_other_processes_forked_in_a_run_obey():
    before = [signal.getsignal(number) for number in SIGNALS]
    with Signals(watch=True) as signals:
        pid = os.fork()
        if pid == 0:
            os._exit(int([signal.getsignal(number) for number in SIGNALS] != before))
        assert os.waitpid(pid, 0)[1] == 0
        assert signal.getsignal(signal.SIGTERM) == signals._receive
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_second_interrupt_ends_at_once_a_repeated_one_does_not(monkeypatch):
    now = iter([10.0, 10.1, 11.0, 20.0, 30.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    with Signals(watch=True) as signals:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # as torchrun and timeout pass on what we had already
        assert signals.received == [signal.SIGINT] * 2
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    with Signals(watch=True) as signals:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # KILL is what comes from those who do not wait
        with pytest.raises(Stop), signals.raising(True):
            pytest.fail("a signal had come before")


@pytest.mark.parametrize("fault", [None, "swallows", "worker"])
def test_a_signal_in_a_validation_keeps_the_step_and_does_it_again(tmp_path, fault):
    seen = []

    def score(student):
        seen.append(float(torch.rand(())) + float(student.weight.sum()))
        if len(seen) == 2:
            try:
                signal.raise_signal(signal.SIGTERM)
            except BaseException:
                if fault is None:
                    raise
            if fault == "worker":  # as when a loader of the validation lost its workers
                raise RuntimeError("DataLoader worker exited unexpectedly")
        return seen[-1]

    options = {"validation": Validation(score, every=2, patience=9)}
    with pytest.raises(Interrupted, match=f"after step {5 if fault == 'swallows' else 4}"):
        train(tmp_path, [ITEMS[1]], steps=8, **options)
    weight = train(tmp_path, [ITEMS[1]], steps=8, **options)
    rows = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(8))
    assert seen[2] == seen[1] or fault == "swallows"
    scores = seen[:1] + seen[2:] if fault != "swallows" else list(seen)
    assert [row["score"] for row in rows if "score" in row] == scores
    seen[:] = [0.0] * 9  # undisturbed
    options["validation"] = Validation(score, every=2, patience=9)
    assert torch.equal(weight, train(None, [ITEMS[1]], steps=8, **options))
    assert seen[9:] == scores


def test_a_program_ends_though_workers_are_left():
    program = """
        import sys
        sys.path.insert(0, {tests!r})
        from test_signals import ITEMS, begin, DataLoader
        left = begin(DataLoader(ITEMS, 2, num_workers=1))
        sys.kept = left
    """
    words = [sys.executable, "-c", textwrap.dedent(program).format(tests=os.path.dirname(__file__))]
    assert subprocess.run(words, timeout=60, check=False).returncode == 0


PROGRAM = """
    import sys, time, torch, torch.nn.functional as F
    sys.path.insert(0, {tests!r})
    from test_signals import ITEMS, train
    from potstill.core import Batches, Validation
    def score(student):
        if {slow}:
            print("validating", flush=True)
            time.sleep(600)
        return float(student.weight.sum())
    def show(row, share):
        print("step", flush=True)
        time.sleep(0.02)
    train({folder!r}, Batches(ITEMS, 2, workers=2), steps=50, progress=show,
          validation=Validation(score, every=10))
"""


def test_slurm_and_kubernetes_send_term_and_later_kill(tmp_path):
    """TERM to the whole group in the middle of a long validation, KILL after the grace."""

    def start(slow):
        values = {"tests": os.path.dirname(__file__), "folder": str(tmp_path), "slow": slow}
        return subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(PROGRAM).format(**values)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, text=True,
        )  # fmt: skip

    process = start(slow=True)
    assert "validating\n" in process.stdout
    os.killpg(process.pid, signal.SIGTERM)
    try:
        errors = process.communicate(timeout=60)[1]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail("the grace was over before the checkpoint was written")
    assert "Interrupted: fit: stopped by signal 15 after step 10" in errors
    process = start(slow=False)
    assert "Error" not in process.communicate(timeout=120)[1]
    rows = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(50))
