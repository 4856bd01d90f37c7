"""Students as folders: bit-equal round trips, and one clear error for each damaged folder."""

from __future__ import annotations

import copy
import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
import yaml
from safetensors import SafetensorError
from torch import nn

from potstill.core import Objective
from potstill.core.adapters.pretrained import MissingModelError, Pretrained
from potstill.core.errors import BackendError, CheckpointError, ConfigError, DataError
from potstill.core.vocabulary.distiller import Distiller


class Net(nn.Module, Pretrained, paper="Someone, Somewhere 2024"):
    def __init__(self, width: int, sizes: tuple[int, ...] = (4, 3), drop: float = 0.5) -> None:
        super().__init__()
        self.sizes = sizes
        widths = (width, *sizes)
        self.layers = nn.ModuleList(map(nn.Linear, widths[:-1], widths[1:]))
        self.drop = nn.Dropout(drop)
        self.register_buffer("mean", torch.randn(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x - self.mean
        for layer in self.layers:
            x = self.drop(layer(x).relu())
        return x


@dataclass(frozen=True)
class Part:
    width: int = 3
    kind: str = "a"


class Nested(nn.Module, Pretrained):
    def __init__(self, part: Part, scale: float = 1.0) -> None:
        super().__init__()
        self.part, self.linear = part, nn.Linear(part.width, part.width)


class Whole(nn.Module, Pretrained):
    def __init__(self, config: Part = Part()) -> None:
        super().__init__()
        self.part, self.linear = config, nn.Linear(config.width, 2)


class Tied(nn.Module, Pretrained):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight
        self.module = nn.Linear(1, 1)  # a name that the mixin takes for a wrapper


class Odd(nn.Module, Pretrained):
    def __init__(self, inner: nn.Module | None = None, **sizes: int) -> None:
        super().__init__()
        self.inner, self.sizes = inner, sizes


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing about a local folder may ask the Hub: without a network that takes 23 s."""

    def refuse(*args, **kwargs):
        raise AssertionError("asked the Hub")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)


def same_state(a: nn.Module, b: nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_a_full_disk_leaves_the_folder_as_it_was(tmp_path, monkeypatch):
    Net(2).save_pretrained(tmp_path)
    (tmp_path / ".writing-00000000-1-00000000-files").mkdir()  # of a writer that was killed
    os.utime(tmp_path / ".writing-00000000-1-00000000-files", (0, 0))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}

    def full(model, path):
        Path(path).write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("potstill.core.adapters.pretrained.save_model", full)
    with pytest.raises(DataError, match="could not write .*No space left"):
        Net(3).save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    "model",
    [Net(2), Net(3, sizes=(5,), drop=0.1), Nested(Part(4, "b"), scale=2.0), Whole(Part(5)), Tied()],
    ids=["defaults", "arguments", "nested", "config", "tied"],
)
def test_save_and_load_are_bit_equal(model, tmp_path: Path, capsys) -> None:
    model.save_pretrained(tmp_path / "a" / "student")
    again = type(model).from_pretrained(tmp_path / "a" / "student")
    assert same_state(model, again)
    assert not again.training
    assert getattr(again, "part", None) == getattr(model, "part", None)
    assert getattr(again, "sizes", None) == getattr(model, "sizes", None)
    again.save_pretrained(tmp_path / "b")
    assert same_state(type(model).from_pretrained(tmp_path / "b"), model)
    assert capsys.readouterr().out == ""


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    Tied().save_pretrained(tmp_path)
    again = Tied.from_pretrained(tmp_path)
    assert again.head.weight is again.embed.weight


def test_a_copy_keeps_its_configuration(tmp_path: Path) -> None:
    copy.deepcopy(Net(7, sizes=(2,))).save_pretrained(tmp_path)
    assert Net.from_pretrained(tmp_path).sizes == (2,)


def test_the_configuration_has_no_class_path_and_says_where_it_came_from(tmp_path: Path) -> None:
    Net(2).save_pretrained(tmp_path, teacher="a large one", metrics={"accuracy": 0.91})
    text = (tmp_path / "config.json").read_text()
    assert json.loads(text) == {
        "width": 2,
        "sizes": [4, 3],
        "drop": 0.5,
        "potstill_package": "potstill-core",
        "potstill_version": json.loads(text)["potstill_version"],
        "paper": "Someone, Somewhere 2024",
        "teacher": "a large one",
        "metrics": {"accuracy": 0.91},
    }
    assert "Net" not in text
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    card = (tmp_path / "README.md").read_text()
    for words in ("library_name: potstill", "a large one", "| accuracy | 0.91 |", "Someone"):
        assert words in card
    assert "from_pretrained" in card


def test_saving_again_replaces_the_weights_and_leaves_the_rest(tmp_path: Path) -> None:
    Net(2).save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text("mine")
    (tmp_path / "notes.txt").write_text("mine")
    second = Net(3)
    second.save_pretrained(tmp_path)
    assert same_state(Net.from_pretrained(tmp_path), second)
    assert (tmp_path / "README.md").read_text() == (tmp_path / "notes.txt").read_text() == "mine"


def test_an_interrupted_save_leaves_the_old_model(tmp_path: Path, monkeypatch) -> None:
    first = Net(2)
    first.save_pretrained(tmp_path)

    def stop(self, name, about):
        raise KeyboardInterrupt

    monkeypatch.setattr(Pretrained, "_card", stop)
    with pytest.raises(KeyboardInterrupt):
        Net(2).save_pretrained(tmp_path)
    assert same_state(Net.from_pretrained(tmp_path), first)
    assert len(list(tmp_path.iterdir())) == 3


def test_arguments_replace_the_configuration(tmp_path: Path) -> None:
    Net(2).save_pretrained(tmp_path)
    assert Net.from_pretrained(tmp_path, drop=0.25).drop.p == 0.25


def test_what_json_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Odd\.save_pretrained.*inner"):
        Odd(nn.Linear(1, 1)).save_pretrained(tmp_path / "odd")
    assert not (tmp_path / "odd" / "model.safetensors").exists()
    Odd(small=2).save_pretrained(tmp_path / "odd")
    assert Odd.from_pretrained(tmp_path / "odd").sizes == {"small": 2}


def test_the_export_holds_no_teacher_and_no_projector(tmp_path: Path) -> None:
    student = Net(2)
    projector = nn.Linear(3, 8)
    Distiller(student, Objective(hint=(1.0, projector)), teacher=nn.Linear(2, 8))
    student.save_pretrained(tmp_path)
    from safetensors import safe_open

    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(student.state_dict())


def change_config(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


DAMAGES = {
    "fewer layers": lambda f: change_config(f, sizes=[4]),
    "more layers": lambda f: change_config(f, sizes=[4, 3, 2]),
    "other width": lambda f: change_config(f, width=5),
    "unknown key": lambda f: change_config(f, widht=5),
    "wrong type": lambda f: change_config(f, width="two"),
    "not json": lambda f: (f / "config.json").write_text("{"),
    "empty config": lambda f: (f / "config.json").write_text(""),
    "no object": lambda f: (f / "config.json").write_text("[]"),
    "missing argument": lambda f: (f / "config.json").write_text("{}"),
    "truncated": lambda f: (f / "model.safetensors").write_bytes(
        (f / "model.safetensors").read_bytes()[:-8]
    ),
    "truncated header": lambda f: (f / "model.safetensors").write_bytes(
        (f / "model.safetensors").read_bytes()[:20]
    ),
    "empty weights": lambda f: (f / "model.safetensors").write_bytes(b""),
    "random bytes": lambda f: (f / "model.safetensors").write_bytes(bytes(range(256)) * 8),
}


@pytest.mark.parametrize("damage", DAMAGES, ids=str)
def test_a_damaged_folder_gives_one_clear_error(damage: str, tmp_path: Path) -> None:
    Net(2).save_pretrained(tmp_path)
    DAMAGES[damage](tmp_path)
    with pytest.raises(CheckpointError) as caught:
        Net.from_pretrained(tmp_path)
    message = str(caught.value)
    assert message.startswith("Net.from_pretrained: ")
    assert str(tmp_path) in message
    assert len(message) < 700
    assert "\n" not in message


def test_another_class_is_refused(tmp_path: Path) -> None:
    Net(2).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="'drop', which Tied does not take"):
        Tied.from_pretrained(tmp_path)
    Whole().save_pretrained(tmp_path / "w")
    change_config(tmp_path / "w", widht=3)
    with pytest.raises(CheckpointError, match="widht"):
        Whole.from_pretrained(tmp_path / "w")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_an_incomplete_folder_names_the_file(name: str, tmp_path: Path) -> None:
    Net(2).save_pretrained(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(MissingModelError, match=f"got no {name}"):
        Net.from_pretrained(tmp_path)


def test_a_missing_path_is_no_name_of_the_hub(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "file").write_text("")
    names = ["/nowhere/x", "./x", "../x/y", "x", "runs/x", "a/b/c", "~/no/such", tmp_path / "no"]
    for name in names:
        with pytest.raises(FileNotFoundError, match="nothing there"):
            Net.from_pretrained(name)
    with pytest.raises(MissingModelError, match="got a file"):
        Net.from_pretrained("file")


def test_a_name_of_the_hub_loads_what_was_fetched(tmp_path: Path, monkeypatch) -> None:
    model = Net(2)
    model.save_pretrained(tmp_path)
    asked = {}

    def fetch(name, **options):
        asked.update(options, name=name)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert same_state(Net.from_pretrained("owner/name", revision="v1"), model)
    assert (asked["name"], asked["revision"]) == ("owner/name", "v1")
    assert asked["allow_patterns"] == ["config.json", "model.safetensors"]  # no pickle


def test_an_unreachable_hub_is_one_error(monkeypatch) -> None:
    def fail(*args, **kwargs):
        raise huggingface_hub.errors.LocalEntryNotFoundError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(DataError, match="'owner/name' must be a folder or a repository"):
        Net.from_pretrained("owner/name")


def test_folders_need_no_hub_and_the_hub_says_what_it_needs(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # as if it were not installed
    model = Net(2)
    model.save_pretrained(tmp_path)
    assert same_state(Net.from_pretrained(tmp_path), model)
    for ask in (
        lambda: Net.from_pretrained("owner/name"),
        lambda: model.push_to_hub("owner/name"),
        lambda: model.save_pretrained(tmp_path, push_to_hub=True),
    ):
        with pytest.raises(BackendError, match=r"pip install 'potstill-core\[hub\]'"):
            ask()


def test_a_model_is_uploaded_whole(tmp_path: Path, monkeypatch) -> None:
    asked: dict[str, object] = {}

    class Api:
        def __init__(self, token):
            asked["token"] = token

        def create_repo(self, repo_id, private, exist_ok):
            asked.update(private=private, exist_ok=exist_ok)
            return SimpleNamespace(repo_id=f"me/{repo_id}")

        def create_branch(self, repo_id, branch, exist_ok):
            asked.update(branch=branch)

        def upload_folder(self, folder_path, **options):
            copied = shutil.copytree(folder_path, tmp_path / "uploaded", dirs_exist_ok=True)
            asked.update(options, files=sorted(path.name for path in copied.iterdir()))
            return "https://hub/me/net/commit/1"

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    model = Net(2)
    options = {"token": "secret", "private": True, "branch": "v1", "commit_message": "first"}
    address = model.save_pretrained(
        tmp_path / "net", teacher="a large one", push_to_hub=True, **options
    )
    assert address == "https://hub/me/net/commit/1"
    assert asked == {
        **options,
        "repo_id": "me/net",
        "revision": "v1",
        "exist_ok": True,
        "files": ["README.md", "config.json", "model.safetensors"],
    }
    assert same_state(Net.from_pretrained(tmp_path / "uploaded"), model)
    assert "a large one" in (tmp_path / "uploaded" / "README.md").read_text()
    model.push_to_hub("me/other", create_pr=True)
    assert (asked["create_pr"], asked["token"], asked["revision"]) == (True, None, None)


def test_a_card_has_the_metadata_of_its_class_and_of_the_parents(tmp_path: Path) -> None:
    class Licensed(Net, license="mit", tags=["graphs"]):
        pass

    Licensed(2).save_pretrained(tmp_path)
    _, front, text = (tmp_path / "README.md").read_text().split("---\n", 2)
    expected = {"library_name": "potstill", "license": "mit", "tags": ["distillation", "graphs"]}
    assert yaml.safe_load(front) == expected
    assert "Someone, Somewhere 2024" in text
