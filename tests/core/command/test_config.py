"""Configurations as files: round trips, strictness, and messages that name file and key."""

import enum
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from potstill.core.command import config
from potstill.core.errors import ConfigError


class Kind(enum.Enum):
    LEAKY_RELU = 1
    GELU = 2


@dataclass(frozen=True)
class Optim:
    lr: float = 1e-3
    name: Literal["adam", "sgd"] = "adam"
    betas: tuple[float, float] = (0.9, 0.99)


@dataclass(frozen=True)
class Train:
    epochs: int = 3
    out: Path | None = None
    folder: Path = Path("runs")
    optim: Optim = field(default_factory=Optim)
    second: Optim | None = None
    hidden: tuple[int, ...] = (64, 64)
    pretrained: bool = False
    clip: float | None = 1.0
    note: str = "x"
    label: str | None = "y"
    weights: dict[str, float] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=lambda: {"a": 1.0})
    scale: Literal[2, 3, 4] = 4
    kind: Kind = Kind.GELU

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"Train: epochs must be at least 1, got {self.epochs}")


@dataclass(frozen=True)
class Needs:
    data: Path
    epochs: int = 1


floats = st.floats(allow_nan=False)
texts = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), max_size=12) | (
    st.sampled_from(["null", "none", "~", "yes", "1e3", "--epochs", "{a: 1}", "[1]", " ", "# x"])
)
optims = st.builds(
    Optim,
    lr=floats,
    name=st.sampled_from(["adam", "sgd"]),
    betas=st.tuples(floats, floats),
)
trains = st.builds(
    Train,
    epochs=st.integers(1),
    out=st.none() | st.sampled_from(["a", "a/b.c", "/x y"]).map(Path),
    optim=optims,
    second=st.none() | optims,
    hidden=st.lists(st.integers(-9, 9), max_size=3).map(tuple),
    pretrained=st.booleans(),
    clip=st.none() | floats,
    note=texts,
    label=st.none() | texts,
    weights=st.dictionaries(st.sampled_from(["low", "high", "task"]), floats, max_size=3),
    scale=st.sampled_from([2, 3, 4]),
    kind=st.sampled_from(Kind),
)


@given(trains)
@settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_dump_and_load_give_an_equal_configuration(tmp_path: Path, train: Train) -> None:
    path = config.dump(train, tmp_path / "config.yaml")
    assert config.load(Train, path) == train


def test_formats_mean_the_same(tmp_path: Path) -> None:
    expected = replace(Train(), epochs=7, optim=Optim(lr=0.5), hidden=(1, 2))
    (tmp_path / "c.yaml").write_text("epochs: 7\noptim: {lr: 0.5}\nhidden: [1, 2]\n")
    (tmp_path / "c.toml").write_text("epochs = 7\nhidden = [1, 2]\n[optim]\nlr = 0.5\n")
    (tmp_path / "c.json").write_text(
        json.dumps({"epochs": 7, "optim": {"lr": 0.5}, "hidden": [1, 2]})
    )
    for suffix in ("yaml", "toml", "json"):
        assert config.load(Train, tmp_path / f"c.{suffix}") == expected


def test_what_is_not_given_keeps_its_default() -> None:
    assert config.build(Train, {}) == Train()
    assert config.build(Train, {"second": {"lr": 2}}).second == Optim(lr=2.0)
    assert config.build(Needs, {"data": "d"}) == Needs(Path("d"))


def test_scientific_notation_without_a_point_is_a_number() -> None:
    # YAML 1.1 reads 1e-3 as a string.
    assert config.build(Train, {"optim": {"lr": "1e-3"}}).optim.lr == 1e-3


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"epohcs": 3}, ["epohcs", "c.yaml", "--epochs"]),
        ({"optim": {"lrr": 1}}, ["[optim][lrr]", "c.yaml", "--optim.lr"]),
        ({"epochs": "nine"}, ["[epochs]", "c.yaml", "nine", "int"]),
        ({"epochs": 5.5}, ["[epochs]", "c.yaml", "whole number", "5.5"]),
        ({"epochs": None}, ["[epochs]", "c.yaml", "null"]),
        ({"epochs": True}, ["[epochs]", "c.yaml", "True"]),
        ({"epochs": [1, 2]}, ["[epochs]", "c.yaml"]),
        ({"epochs": {"a": 1}}, ["[epochs][a]", "c.yaml"]),
        ({"hidden": [1.5]}, ["[hidden]", "c.yaml", "whole number"]),
        ({"pretrained": 3}, ["[pretrained]", "c.yaml", "bool"]),
        ({"optim": 3}, ["[optim]", "c.yaml", "by its parts"]),
        ({"optim": {"name": "adm"}}, ["[optim][name]", "c.yaml", '"adam"']),
        ({"optim": {"betas": [0.1]}}, ["betas", "c.yaml", "expected 2"]),
        ({"scale": 5}, ["[scale]", "c.yaml", "2, 3, 4"]),
        ({"kind": "relu"}, ["[kind]", "c.yaml", "gelu"]),
        ({"epochs": 0}, ["c.yaml", "epochs must be at least 1, got 0"]),
    ],
)
def test_wrong_values_are_refused_with_file_and_key(values: dict, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        config.build(Train, values, "c.yaml")
    message = str(caught.value)
    assert "\n" not in message
    assert [word for word in words if word not in message] == [], message


def test_a_required_field_that_is_missing_is_named() -> None:
    with pytest.raises(ConfigError, match="data"):
        config.build(Needs, {"epochs": 2})


@pytest.mark.parametrize(
    ("name", "text", "word"),
    [
        ("c.ini", "a=1", "must end in"),
        ("c", "a: 1", "no suffix"),
        ("c.yaml", "", "got nothing"),
        ("c.toml", "", "got nothing"),
        ("c.json", "", "got nothing"),
        ("c.yaml", "- 1", "got list"),
        ("c.yaml", "1: 2", "must be text, got 1"),
        ("c.yaml", "optim: {lr: 1, yes: 2}", r"c\.yaml does not parse: .* must be text, got True"),
        ("c.yaml", "a: [1", "does not parse"),
        ("c.toml", "a = ", "does not parse"),
        ("c.json", "{", "does not parse"),
        ("c.json", f'{{"epochs": {" " * (1 << 20)}3}}', "longer than 1,048,576 characters"),
        ("c.yaml", "a: &a [*a]", "does not parse"),
        (
            "c.yaml",
            "a: &a [0,0,0,0,0,0,0,0,0,0]\n"
            + "".join(
                f"{new}: &{new} [{','.join(10 * ['*' + old])}]\n"
                for old, new in ("ab", "bc", "cd", "de", "ef", "fg", "gh")
            ),
            "more than 20,000 values",
        ),
        ("c.yaml", "!!python/object/apply:os.getcwd []", "does not parse"),
    ],
)
def test_files_that_are_no_configuration(tmp_path: Path, name: str, text: str, word: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=word) as caught:
        config.load(Train, tmp_path / name)
    assert name in str(caught.value)


def test_files_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml must be a file, got nothing there"):
        config.load(Train, tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match="got a folder"):
        config.load(Train, tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(ConfigError, match="readable text file"):
        config.load(Train, tmp_path / "binary.yaml")


def test_what_a_file_cannot_hold_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Odd:
        thing: object = field(default_factory=object)

    with pytest.raises(ConfigError, match=r"Odd\.thing"):
        config.dump(Odd(), tmp_path / "c.yaml")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match="dataclass instance"):
        config.as_dict(Train)


def test_record_accepts_the_same_and_refuses_another(tmp_path: Path) -> None:
    out = tmp_path / "a" / "run"
    path = config.record(Train(epochs=2), out)
    assert config.load(Train, path) == Train(epochs=2)
    config.record(Train(epochs=2), out)
    with pytest.raises(ConfigError, match=r"another epochs \(2, now 3\)"):
        config.record(Train(epochs=3), out)
    with pytest.raises(ConfigError, match=r"optim\.lr"):
        config.record(Train(epochs=2, optim=Optim(lr=1.0)), out)
    assert config.load(Train, path) == Train(epochs=2)
    config.record(Train(epochs=2, note="other"), out, ignore=("note",))


def test_record_takes_the_default_for_an_option_that_the_run_did_not_know(tmp_path: Path) -> None:
    run = Train(second=Optim(lr=0.5), shares={"b": 1.0})
    path = config.record(run, tmp_path)
    values = config.read(path)
    del values["note"], values["weights"], values["optim"]["name"], values["second"]["name"]
    path.write_text(json.dumps(values))
    for other, name in (
        ({"note": "other"}, r"note \(x, now other\)"),
        ({"second": Optim(lr=0.5, name="sgd")}, r"second\.name \(adam, now sgd\)"),
        ({"weights": {"kd": 1.0}}, r"weights\.kd \(absent, now 1\.0\)"),
        ({"second": None}, r"second\.lr"),
    ):
        with pytest.raises(ConfigError, match=name):
            config.record(replace(run, **other), tmp_path)
    config.record(run, tmp_path)


def test_record_names_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="must be a folder that can be written"):
        config.record(Train(), tmp_path / "file" / "run")
    with pytest.raises(ConfigError, match="must be a folder that can be written"):
        config.record(Train(), "/proc/potstill")
