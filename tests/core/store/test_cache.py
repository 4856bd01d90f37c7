"""The teacher cache: what is read is what was written, and only of what it was written for."""

import json
import pickle
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from potstill.core import Batches, Objective, fit
from potstill.core.criteria import kd, sparse_kl, topk_kl
from potstill.core.engine import run_ranks
from potstill.core.errors import CheckpointError, ConfigError, DataError
from potstill.core.schemes import LogitDistiller
from potstill.core.store.cache import TeacherCache, TopK


@pytest.fixture
def data():
    g = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(23, 4, generator=g), torch.randint(0, 6, (23,), generator=g))


@pytest.fixture
def teacher():
    torch.manual_seed(0)
    return nn.Linear(4, 6)


def jitter(item, rng):
    x, y = item
    return x + 0.1 * torch.randn(x.shape, generator=rng), y


def write(folder, teacher, data, **options):
    return TeacherCache.write(folder, teacher, data, batch_size=5, progress=False, **options)


def test_full(tmp_path, teacher, data) -> None:
    cache = write(tmp_path, teacher, data)
    z = teacher(data.tensors[0]).detach()
    torch.testing.assert_close(cache[torch.arange(23)], z.half().float())
    assert len(cache) == 23
    assert cache[3].dtype == torch.float32
    x, y, z_t = cache.dataset(data)[7]
    assert torch.equal(x, data[7][0])
    torch.testing.assert_close(z_t, z[7], rtol=1e-3, atol=1e-3)
    assert y == data[7][1]


def test_topk_and_its_tail(tmp_path, teacher, data) -> None:
    cache = write(tmp_path, teacher, data, kind="topk", k=3, T=2.0)
    stored = cache[torch.arange(23)]
    assert isinstance(stored, TopK)
    z = teacher(data.tensors[0]).detach()
    p = torch.softmax(z / 2, 1).sort(1, descending=True)
    assert torch.equal(stored.indices, p.indices[:, :3])
    torch.testing.assert_close(stored.tail, p.values[:, 3:].sum(1), rtol=1e-4, atol=1e-5)
    z_s = torch.randn(23, 6, generator=torch.Generator().manual_seed(1))
    found = sparse_kl(z_s, stored.indices, stored.log_p, T=2.0)
    torch.testing.assert_close(found, topk_kl(z_s, z, k=3, T=2.0), rtol=1e-2, atol=1e-3)


def test_views_are_what_the_teacher_saw(tmp_path, teacher, data) -> None:
    cache = write(tmp_path, teacher, data, views=3, augment=jitter, seed=5)
    items = cache.dataset(data, jitter)
    assert len(cache) == len(items) == 69
    for entry in (0, 23, 50, 68):
        x, _, z_t = items[entry]
        torch.testing.assert_close(z_t, teacher(x).detach(), rtol=1e-2, atol=1e-3)
    assert not torch.equal(items[1][0], items[24][0])


def test_interrupted_writing_resumes(tmp_path, data) -> None:
    class Tired(nn.Linear):
        calls = 0
        limit = 3

        def forward(self, x):
            Tired.calls += len(x)
            if Tired.calls > Tired.limit:
                raise KeyboardInterrupt
            return super().forward(x)

    torch.manual_seed(0)
    teacher = Tired(4, 6)
    Tired.limit = 1 + 12  # the probe, and two batches of 5
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, teacher, data)
    with pytest.raises(DataError, match="holds 10 of 23"):
        TeacherCache.open(tmp_path, teacher=teacher, dataset=data)
    Tired.limit, Tired.calls = 1000, 0
    cache = write(tmp_path, teacher, data)
    assert Tired.calls == 1 + 13  # the probe, and only what was missing
    torch.testing.assert_close(
        cache[torch.arange(23)], teacher(data.tensors[0]).detach().half().float()
    )
    Tired.calls = 0
    write(tmp_path, teacher, data)
    assert Tired.calls == 1
    assert TeacherCache.open(tmp_path, teacher=teacher, dataset=data).complete


def test_a_cache_of_something_else_is_refused(tmp_path, teacher, data) -> None:
    write(tmp_path, teacher, data, augment=jitter)
    TeacherCache.open(tmp_path, teacher=teacher, dataset=data, augment=jitter)
    other = nn.Linear(4, 6)
    moved = TensorDataset(data.tensors[0] + 1, data.tensors[1])
    for changed, word in (
        ({"teacher": other}, "teacher"),
        ({"dataset": moved}, "data"),
        ({"augment": lambda item, rng: item}, "transform"),
        ({"augment": None}, "transform"),
    ):
        same = {"teacher": teacher, "dataset": data, "augment": jitter}
        with pytest.raises(CheckpointError, match=f"another {word}"):
            TeacherCache.open(tmp_path, **{**same, **changed})
    with pytest.raises(CheckpointError, match="kind full"):
        write(tmp_path, teacher, data, augment=jitter, kind="topk", k=2)
    cache = TeacherCache.open(tmp_path, teacher=teacher, dataset=data, augment=jitter)
    with pytest.raises(DataError, match="23 items, got 5"):
        cache.dataset(torch.utils.data.Subset(data, range(5)), jitter)


def test_errors(tmp_path, teacher, data) -> None:
    with pytest.raises(DataError, match="no cache"):
        TeacherCache.open(tmp_path, teacher=teacher, dataset=data)
    with pytest.raises(ConfigError, match="k in"):
        write(tmp_path, teacher, data, kind="topk", k=7)
    with pytest.raises(ConfigError, match="views"):
        write(tmp_path, teacher, data, views=2)
    teacher.bias.data += 1e6
    with pytest.raises(DataError, match="float16"):
        write(tmp_path / "large", teacher, data)
    (tmp_path / "large" / "cache.json").write_text(json.dumps({"teacher": 1}))
    with pytest.raises(DataError, match="cache.json must be the description of a teacher cache"):
        TeacherCache.open(tmp_path / "large", teacher=teacher, dataset=data)


def test_training_from_the_cache(tmp_path, teacher, data) -> None:
    """The student learns from stored outputs, no teacher in sight."""
    cache = write(tmp_path, teacher, data, views=4, augment=jitter)
    student = nn.Linear(4, 6)
    objective = Objective(task=(0.1, F.cross_entropy), kd=(0.9, kd))
    batches = Batches(cache.dataset(data, jitter), 16)
    distiller = LogitDistiller(student, objective)
    history = fit(distiller, batches, steps=80, lr=0.05, progress=False)
    assert history[-1]["kd"] < 0.2 * history[0]["kd"]


LIMITED = """
import resource, sys, torch
from torch import nn
from potstill.core import DataError, TeacherCache
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
items = [(torch.zeros(4),)] * 1024
try:
    TeacherCache.write(sys.argv[1], nn.Linear(4, 64), items, progress=False)
except DataError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits of the system")
def test_the_space_of_a_cache_is_reserved_first(tmp_path, monkeypatch):
    words = [sys.executable, "-c", LIMITED, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "logits.npy: File too large; 0.1 MB are needed" in done.stdout
    assert list(tmp_path.iterdir()) == []
    items = [(torch.zeros(4),)] * 1024
    monkeypatch.setattr(TeacherCache, "_fill", lambda *_: None)
    TeacherCache.write(tmp_path, nn.Linear(4, 64), items, progress=False)
    file = (tmp_path / "logits.npy").stat()
    assert file.st_blocks * 512 >= file.st_size  # no holes before the first value


@pytest.mark.parametrize("kind", ["full", "topk"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_without_a_softmax_are_refused_by_entry(tmp_path, data, kind, value) -> None:
    class Breaks(nn.Linear):
        broken = True

        def forward(self, x):
            z = super().forward(x)
            return (
                z.where((x != data.tensors[0][12]).any(1, keepdim=True), value)
                if self.broken
                else z
            )

    teacher = Breaks(4, 6)
    with pytest.raises(DataError, match=r"must not be NaN or \+inf, got that for entries \[12\]"):
        write(tmp_path, teacher, data, kind=kind, k=2 if kind == "topk" else 0)
    Breaks.broken = False  # it goes on behind what was good
    assert write(tmp_path, teacher, data, kind=kind, k=2 if kind == "topk" else 0).complete


def test_classes_masked_by_the_teacher_are_kept(tmp_path, data) -> None:
    class Masks(nn.Linear):
        def forward(self, x):
            return super().forward(x).masked_fill(torch.arange(6) == 2, -float("inf"))

    cache = write(tmp_path, Masks(4, 6), data)
    assert cache[torch.arange(23)][:, 2].isneginf().all()


@pytest.mark.parametrize("maps", [True, False], ids=["maps", "tokens"])
def test_dense_outputs(tmp_path, maps) -> None:
    torch.manual_seed(0)
    x = torch.randn(7, 3, 5, 4) if maps else torch.randn(7, 5, 3)
    dense = nn.Conv2d(3, 6, 1) if maps else nn.Linear(3, 6)
    z = dense(x).detach()
    cache = write(tmp_path / "full", dense, TensorDataset(x))
    torch.testing.assert_close(cache[torch.arange(7)], z.half().float())
    options = {"kind": "topk", "k": 2}
    with pytest.raises(ConfigError, match="class_dim must say which axis"):
        write(tmp_path / "top", dense, TensorDataset(x), **options)
    for wrong in (0, 5):
        with pytest.raises(ConfigError, match="class_dim must be an axis"):
            write(tmp_path / "top", dense, TensorDataset(x), **options, class_dim=wrong)
    with pytest.raises(ConfigError, match="class_dim is for"):
        write(tmp_path / "top", dense, TensorDataset(x), class_dim=1)
    cache = write(tmp_path / "top", dense, TensorDataset(x), **options, class_dim=1 if maps else 2)
    stored, last = cache[torch.arange(7)], z.movedim(1, -1) if maps else z
    assert torch.equal(stored.indices, last.topk(2).indices)
    torch.testing.assert_close(
        sparse_kl(torch.zeros_like(last), stored.indices, stored.log_p, dim=-1),
        topk_kl(torch.zeros_like(last), last, k=2, dim=-1), rtol=1e-2, atol=1e-3,
    )  # fmt: skip


class Said(dict):
    """As a ModelOutput of transformers."""


class Reader(nn.Module):
    """A teacher in the style of Hugging Face."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(9, 6)
        self.head = nn.Linear(6, 6)

    def forward(self, input_ids=None, attention_mask=None):
        z = self.head(self.words(input_ids))
        assert z.dtype in (torch.float32, torch.bfloat16)
        return Said(logits=z * attention_mask[..., None], hidden=z)


def tokens(lengths=(5, 5, 5)):
    return [
        {"input_ids": torch.arange(n) + i, "attention_mask": torch.ones(n), "labels": i}
        for i, n in enumerate(lengths)
    ]


def test_mappings_and_what_models_return(tmp_path) -> None:
    torch.manual_seed(0)
    teacher = Reader()
    cache = write(tmp_path / "all", teacher, tokens())
    item = cache.dataset(tokens())[1]
    assert sorted(item) == ["attention_mask", "input_ids", "labels", "teacher"]
    z = teacher(item["input_ids"], item["attention_mask"])
    torch.testing.assert_close(item["teacher"], z["logits"].detach(), rtol=1e-3, atol=1e-3)
    chosen = write(tmp_path / "hidden", teacher, tokens(), output=lambda said: said["hidden"])
    torch.testing.assert_close(chosen[1], z["hidden"].detach(), rtol=1e-3, atol=1e-3)
    with pytest.raises(TypeError):  # the teacher needs both
        write(tmp_path / "less", teacher, tokens(), inputs=["input_ids"])
    with pytest.raises(DataError, match=r"must be \[5, 6\], got \[4, 6\] for entry 1; pad"):
        TeacherCache.write(tmp_path / "ragged", teacher, tokens((5, 4)), batch_size=1)


def test_autocast_is_part_of_what_a_cache_is(tmp_path, teacher, data) -> None:
    cache = write(tmp_path, teacher, data, precision="bf16")
    z = teacher(data.tensors[0]).detach()
    found = cache[torch.arange(23)]
    torch.testing.assert_close(found, z, rtol=2e-2, atol=2e-2)
    assert torch.equal(found, found.bfloat16().float())  # it ran in bf16
    with pytest.raises(CheckpointError, match="another precision bf16 \\(asked: fp32\\)"):
        write(tmp_path, teacher, data)
    with pytest.raises(ConfigError, match="precision must be"):
        write(tmp_path, teacher, data, precision="half")


def test_workers_read_a_cache_and_write_one(tmp_path, teacher, data) -> None:
    cache = write(tmp_path, teacher, data, workers=1)
    assert len(pickle.dumps(cache)) < 1500  # a description, not the values
    again = pickle.loads(pickle.dumps(cache))
    assert torch.equal(again[torch.arange(23)], cache[torch.arange(23)])
    loader = DataLoader(cache.dataset(data), 10, num_workers=1)
    assert torch.equal(torch.cat([z for *_, z in loader]), cache[torch.arange(23)])


def test_a_cache_of_before_and_arrays_of_another_shape(tmp_path, teacher, data) -> None:
    cache = write(tmp_path, teacher, data)
    about = json.loads((tmp_path / "cache.json").read_text())
    for new in ("shape", "class_dim", "precision"):
        del about[new]
    (tmp_path / "cache.json").write_text(json.dumps(about))
    old = TeacherCache.open(tmp_path, teacher=teacher, dataset=data)
    assert torch.equal(old[torch.arange(23)], cache[torch.arange(23)])
    (tmp_path / "cache.json").write_text(json.dumps({**about, "shape": [3, 2], "classes": 2}))
    with pytest.raises(DataError, match="logits.npy of float16"):
        TeacherCache(tmp_path, replace(old.spec, shape=[3, 2]))
    (tmp_path / "cache.json").write_text(" " * (1 << 21))
    with pytest.raises(DataError, match="cache.json must be the description"):
        TeacherCache.open(tmp_path, teacher=teacher, dataset=data)


class Counting(nn.Linear):
    """A teacher that fails once, in the second process, at its third batch."""

    seen, limit = 0, 8

    def forward(self, x):
        self.seen += len(x)
        if torch.distributed.get_rank() == 1 and self.seen > self.limit:
            raise FloatingPointError("tired")
        return super().forward(x)


def on_ranks(folder):
    torch.manual_seed(0)
    teacher, items = Counting(4, 6), [(x,) for x in torch.randn(23, 4)]
    try:
        write(folder, teacher, items)
        said = ""
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
    marks = int(TeacherCache(folder, write_spec(folder))._done.sum())
    torch.distributed.barrier()
    teacher.seen, teacher.limit = 0, 99
    cache = write(folder, teacher, items)
    right = torch.stack([F.linear(x, teacher.weight, teacher.bias) for (x,) in items])
    torch.testing.assert_close(cache[torch.arange(23)], right.detach().half().float())
    return said, marks, teacher.seen


def write_spec(folder):
    from potstill.core.store.cache import _read

    return _read(folder)


def test_each_process_writes_its_rows_and_one_that_fails_is_told(tmp_path) -> None:
    (first, marks, more), (second, _, rest) = run_ranks(on_ranks, 2, tmp_path)
    assert first == "DataError: TeacherCache: process 1 failed: tired"
    assert second == "FloatingPointError: tired"
    assert (marks, more + rest) == (12 + 5, 2 * 1 + 6)  # a probe each, and what was missing
