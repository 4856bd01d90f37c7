"""Sources: what people hold, from any step on, for any number of processes."""

import itertools
import multiprocessing
import os
import random
import signal
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    TensorDataset,
    WeightedRandomSampler,
)

from potstill.core import Batches, ConfigError, Distiller, Engine, Objective, Run, fit
from potstill.core.engine import Shard, Source, as_source, run_ranks

FORK = multiprocessing.get_context("fork")


class Noisy(Dataset):
    """Items with noise from the global streams, as augmentations of torchvision draw it."""

    def __init__(self, size=23):
        self.x = torch.randn(size, 4, generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        noise = torch.rand(4) + random.random() + np.random.rand()  # noqa: NPY002
        return self.x[index] + 0.1 * noise, index


class Counting(IterableDataset):
    """A stream of batches that can be begun again."""

    def __init__(self, size=7):
        self.size = size

    def __iter__(self):
        return iter([torch.full((2, 4), float(n)) for n in range(self.size)])


class Position:
    """A stream that knows where it is, as a StatefulDataLoader does."""

    def __init__(self, size=7):
        self.size, self.next = size, 0

    def __iter__(self):
        while self.next < self.size:
            self.next += 1
            yield torch.full((2, 4), float(self.next))
        self.next = 0

    def state_dict(self):
        return {"next": self.next}

    def load_state_dict(self, state):
        self.next = state["next"]


def take(source, start, count, shard=Shard(seed=3)):  # noqa: B008
    return list(itertools.islice(as_source(source).stream(start, shard), count))


def ids(batches):
    return [batch[1].tolist() for batch in batches]


def flat(lists):
    return sorted(itertools.chain.from_iterable(lists))


# --- DataLoader over a map-style dataset ---------------------------------------------------------


def loader(workers=0, batch=5, **options):
    return DataLoader(Noisy(), batch, shuffle=True, num_workers=workers, **options)


def test_a_loader_gives_each_item_once_an_epoch_in_an_order_of_its_own():
    first, second = ids(take(loader(), 0, 5)), ids(take(loader(), 5, 5))
    assert flat(first) == flat(second) == list(range(23))
    assert first != second
    assert first != ids(take(loader(), 0, 5, Shard(seed=4)))
    assert as_source(loader()).steps_per_epoch(1) == 5


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_can_be_begun_anywhere_with_any_number_of_workers(workers):
    whole = take(loader(), 0, 13)
    late = take(loader(workers), 8, 5)
    for expected, batch in zip(whole[8:], late, strict=True):
        torch.testing.assert_close(batch, expected, rtol=0, atol=0)  # the noise, too


def test_drawing_a_batch_leaves_the_streams_of_dropout_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    take(loader(), 0, 3)
    assert torch.equal(torch.rand(3), expected)


def test_processes_share_the_batches_of_a_loader():
    alone = ids(take(loader(batch=4), 0, 4))
    ranks = [ids(take(loader(batch=2), 0, 4, Shard(3, rank, 2))) for rank in range(2)]
    for step in range(4):
        assert sorted(ranks[0][step] + ranks[1][step]) == sorted(alone[step])


@pytest.mark.parametrize(
    "make",
    [
        lambda: DataLoader(Noisy(), sampler=WeightedRandomSampler([1.0] * 23, 10), batch_size=2),
        lambda: loader(generator=torch.Generator().manual_seed(9)),
        lambda: DataLoader(Noisy(), batch_sampler=BatchSampler(range(23), 4, drop_last=True)),
        lambda: DataLoader(Noisy(), batch_size=None, shuffle=True),
        lambda: DataLoader(Noisy(), 5, collate_fn=lambda items: (len(items), torch.ones(2))),
    ],
    ids=["weighted", "generator", "batch_sampler", "single items", "collate"],
)
def test_samplers_and_collators_of_the_user_are_kept_and_can_be_begun_anywhere(make):
    whole = take(make(), 0, 12)
    for expected, batch in zip(whole[7:], take(make(), 7, 5), strict=True):
        torch.testing.assert_close(batch, expected, rtol=0, atol=0)


def test_a_distributed_sampler_divides_by_itself():
    def share(rank, start=0):
        sampler = DistributedSampler(Noisy(24), num_replicas=2, rank=rank, seed=1)
        source = DataLoader(Noisy(24), 4, sampler=sampler)
        return ids(take(source, start, 6, Shard(3, rank, 2)))

    first, second = share(0), share(1)
    assert flat(first[:3] + second[:3]) == list(range(24))
    assert first[:3] != first[3:]  # set_epoch is called
    assert share(0, start=4)[:2] == first[4:]
    lonely = DataLoader(Noisy(24), sampler=DistributedSampler(Noisy(24), num_replicas=4, rank=0))
    with pytest.raises(ConfigError, match="num_replicas=4"):
        as_source(lonely).steps_per_epoch(2)


# --- iterables -----------------------------------------------------------------------------------


def test_an_iterable_is_begun_again_and_shared_batch_by_batch():
    values = [float(b[0, 0]) for b in take(DataLoader(Counting(), batch_size=None), 0, 9)]
    assert values == [0, 1, 2, 3, 4, 5, 6, 0, 1]
    second = take(Counting(), 0, 4, Shard(0, 1, 2))
    assert [float(b[0, 0]) for b in second] == [1, 3, 5, 1]  # the seventh has no partner


def test_what_can_be_iterated_over_once_says_so_when_it_ends():
    batches = (torch.ones(2, 4) for _ in range(3))
    with pytest.raises(ConfigError, match="ended after 3 steps and could not be begun again"):
        take(batches, 0, 4)


def test_a_stream_with_state_continues_exactly_also_at_the_end_of_an_epoch():
    for stop in range(1, 10):
        source = as_source(Position())
        stream = source.stream(0, Shard())
        before = [float(next(stream)[0, 0]) for _ in range(stop)]
        other = as_source(Position())
        other.load_state_dict(source.state_dict())
        after = [float(b[0, 0]) for b in itertools.islice(other.stream(stop, Shard()), 9)]
        assert before + after == [1.0 + n % 7 for n in range(stop + 9)]


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "batches must be"),
        ("abc", "batches must be"),
        (3, "batches must be"),
        (Noisy(), "a dataset of single items .Noisy.; give it to Batches"),
        (torch.zeros(3, 2), "a dataset of single items"),
        (DataLoader(Noisy(), 5, drop_last=True, sampler=[1]), "must have at least 1 batches"),
    ],
    ids=["empty", "text", "number", "dataset", "tensor", "no batch"],
)
def test_what_is_no_source_is_refused(batches, message):
    with pytest.raises(ConfigError, match=message):
        as_source(batches).steps_per_epoch(1)


# --- fingerprints --------------------------------------------------------------------------------


def draw_zeros(step, rank, world):
    return torch.zeros(2, 4)


def draw_ones(step, rank, world):
    return torch.ones(2, 4)


def with_other_pixels():
    changed = Noisy()
    changed.x += 1
    return changed


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda: draw_zeros, lambda: draw_ones),
        (lambda: [torch.zeros(2, 4)], lambda: [torch.ones(2, 4)]),
        (lambda: Batches(Noisy(), 5), lambda: Batches(with_other_pixels(), 5)),
        (lambda: Batches(Noisy(), 5), lambda: Batches(Noisy(), 5, shuffle=False)),
        (loader, lambda: DataLoader(with_other_pixels(), 5, shuffle=True)),
        (loader, lambda: DataLoader(Noisy(), 5)),
        (loader, lambda: loader(batch=6)),
        (Position, Counting),
    ],
)
def test_other_data_have_another_fingerprint(one, other):
    assert as_source(one()).fingerprint() == as_source(one()).fingerprint()
    assert as_source(one()).fingerprint() != as_source(other()).fingerprint()


def test_all_of_them_are_sources():
    for batches in (draw_ones, [1], Batches([1], 1), loader(), Position(), Counting()):
        assert isinstance(as_source(batches), Source)


# --- through fit: kills, epochs, processes -------------------------------------------------------


class Regression(Distiller):
    def forward(self, batch, step):
        x = batch[0] if isinstance(batch, list) else batch
        return self.objective(step, task=(self.student(x), self.teacher(x)))


def regression():
    torch.manual_seed(0)
    student = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.2))
    return Regression(student, Objective(task=(1.0, F.mse_loss)), nn.Linear(4, 4))


def train(batches, folder=None, **options):
    torch.set_num_threads(1)
    distiller = regression()
    run = None if folder is None else Run(folder, every=1)
    history = fit(distiller, batches, lr=0.05, run=run, **{"progress": False, **options})
    return history, {k: v.clone() for k, v in distiller.student.state_dict().items()}


def test_epochs_are_a_budget_where_an_epoch_is_known():
    assert len(train(loader(), epochs=2)[0]) == 10
    assert len(train(loader(), epochs=0.4)[0]) == 2
    assert len(train(loader(), epochs=2, accumulate=2)[0]) == 5
    assert len(train(loader(), epochs=2, steps=3)[0]) == 3
    assert len(train([torch.ones(2, 4)] * 3, epochs=2)[0]) == 6
    with pytest.raises(ConfigError, match=r"epochs=2 needs a source whose epoch is known"):
        train(draw_ones, epochs=2)
    with pytest.raises(ConfigError, match="epochs must be positive"):
        train(loader(), epochs=0)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("killed", [2, 5, 8])
def test_a_killed_run_on_a_loader_goes_on_to_the_same_weights(tmp_path, workers, killed):
    _, whole = train(loader(workers), epochs=2)

    def kill(row, share):
        if row["step"] == killed:
            os.kill(os.getpid(), signal.SIGKILL)

    process = FORK.Process(
        target=train, args=(loader(workers), tmp_path), kwargs={"epochs": 2, "progress": kill}
    )
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    _, state = train(loader(workers), tmp_path, epochs=2)
    assert all(torch.equal(state[name], whole[name]) for name in whole)
    assert set(load_file(tmp_path / "student.safetensors")) == set(whole)


def test_a_killed_run_on_a_stream_with_state_goes_on_to_the_same_weights(tmp_path):
    _, whole = train(Position(), steps=17)
    with pytest.raises(InterruptedError):
        train(Position(), tmp_path, steps=17, progress=interrupt_at(9))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, state = train(Position(), tmp_path, steps=17)
    assert all(torch.equal(state[name], whole[name]) for name in whole)


def test_a_run_on_another_iterable_says_once_what_its_resuming_does_not_promise(tmp_path):
    stream = DataLoader(Counting(), batch_size=None)
    anew = "begins its epoch of DataLoader anew"
    with pytest.warns(UserWarning, match=anew) as said, pytest.raises(InterruptedError):
        train(stream, tmp_path, steps=17, progress=interrupt_at(9))
    assert len(said) == 1
    with pytest.warns(UserWarning, match=anew):
        history, _ = train(stream, tmp_path, steps=17)
    assert len(history) == 17
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # without a folder there is nothing to continue
        train(Counting(), steps=3)


def interrupt_at(step):
    def interrupt(row, share):
        if row["step"] == step:
            raise InterruptedError

    return interrupt


def on_loader(batch):
    distiller = regression()
    distiller.student[1].p = 0.0  # dropout would differ by process
    data = DataLoader(TensorDataset(Noisy(24).x), batch, shuffle=True)
    with Engine(device="cpu") as engine:
        fit(distiller, data, epochs=2, lr=0.05, engine=engine, progress=False)
    return {k: v.clone() for k, v in distiller.student.state_dict().items()}


@pytest.mark.dist
def test_two_processes_on_a_loader_are_one():
    alone = on_loader(8)
    for state in run_ranks(on_loader, 2, 4):
        for name, value in alone.items():
            torch.testing.assert_close(state[name], value, rtol=0, atol=1e-6)
