"""The command: plug-ins, configuration files, and every way to get it wrong."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from potstill.core.command import cli
from potstill.core.errors import CheckpointError, Interrupted

PLUGIN = '''
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cyclopts import App, Parameter

from potstill.core.command.config import record

app = App(name="{name}", help="A domain for tests.")


@dataclass(frozen=True)
class Optim:
    """Options of the optimizer.

    Args:
        lr: Learning rate.
        betas: Decay rates.
    """

    lr: float = 0.1
    betas: tuple[float, float] = (0.9, 0.99)


@Parameter(name="*")
@dataclass(frozen=True)
class Train:
    """Options.

    Args:
        epochs: Passes over the data.
    """

    epochs: int = 1
    kind: Literal["gcn", "sage"] = "gcn"
    out: Path | None = None
    optim: Optim = field(default_factory=Optim)

    def __post_init__(self):
        if self.epochs < 1:
            raise ValueError(f"Train: epochs must be at least 1, got {{self.epochs}}")


CALLS = []


@app.command
def train(config: Train = Train()):
    """Train."""
    CALLS.append(config)
    if config.out is not None:
        record(config, config.out)


@app.command
def fails(how: str = "bug"):
    """Fail."""
    from potstill.core import errors

    if how == "bug":
        raise ValueError("a bug of the run")
    if how == "code":
        return 7
    if how == "keyboard":
        raise KeyboardInterrupt
    if how == "interrupted":
        raise errors.Interrupted("fit: stopped by signal 15", exit_code=143)
    raise errors.DataError("locate: nothing there")
'''


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """Runs the command with the plug-ins alpha (good), broken, absent and misnamed."""
    folder = tmp_path / "plugins"
    folder.mkdir()
    (folder / "plugin_alpha.py").write_text(PLUGIN.format(name="alpha"))
    (folder / "plugin_misnamed.py").write_text(PLUGIN.format(name="other"))
    (folder / "plugin_broken.py").write_text("raise RuntimeError('no such luck')")
    monkeypatch.syspath_prepend(folder)
    names = ("alpha", "broken", "absent", "misnamed")
    points = [EntryPoint(n, f"plugin_{n}:app", "potstill.domains") for n in names]
    monkeypatch.setattr(cli, "entry_points", lambda group: points)
    monkeypatch.setenv("COLUMNS", "100")

    def call(*words: str) -> tuple[int, str, str]:
        code = cli.main([str(word) for word in words])
        out, err = capsys.readouterr()
        return code, out, err

    yield call
    for name in names:
        sys.modules.pop(f"plugin_{name}", None)


def last_call() -> object:
    return sys.modules["plugin_alpha"].CALLS[-1]


def test_help_lists_the_plugins_and_imports_none(run) -> None:
    code, out, err = run("--help")
    assert (code, err) == (0, "")
    assert all(
        name in out for name in ("alpha", "broken", "env", "bench", "--config", "Exit codes")
    )
    assert not [name for name in sys.modules if name.startswith("plugin_")]
    assert run()[1] == out


def test_version(run) -> None:
    from importlib.metadata import version

    assert run("--version") == (0, version("potstill-core") + "\n", "")


def test_help_of_a_verb_shows_its_options(run) -> None:
    code, out, _ = run("alpha", "train", "--help")
    assert code == 0
    assert all(w in out for w in ("--epochs", "Passes over", "--optim.lr", "gcn", "--config"))


def test_flags_reach_the_configuration(run) -> None:
    assert run("alpha", "train", "--epochs", "3", "--optim.lr", "0.5")[0] == 0
    assert (last_call().epochs, last_call().optim.lr) == (3, 0.5)


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize(
    "text",
    [
        "epochs: 4\noptim: {lr: 0.25}",
        "alpha: {train: {epochs: 4, optim: {lr: 0.25}}, fails: {how: x}}\nnerf: {a: 1}",
    ],
)
def test_a_file_gives_options_and_flags_win(run, tmp_path: Path, before: bool, text: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    option, words = ["--config", tmp_path / "c.yaml"], ["alpha", "train", "--optim.lr", "2"]
    code, _, err = run(*option, *words) if before else run(*words, *option)
    assert (code, err) == (0, "")
    assert (last_call().epochs, last_call().optim.lr) == (4, 2.0)


def test_what_a_run_leaves_behind_repeats_it(run, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run("alpha", "train", "--epochs", "6", "--kind", "sage", "--out", out, "--optim.lr", "1e-4")
    first = last_call()
    assert run("alpha", "train", "--config", out / "config.yaml") == (0, "", "")
    assert last_call() == first


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["alhpa"], ["'alhpa'", "did you mean 'alpha'?", "installed:"]),
        (["quux"], ["'quux'", "installed: absent, alpha, broken", "if it is a domain"]),
        (["graph", "distill"], ["if it is a domain of potstill: pip install potstill-graph"]),
        (["alpha", "trian"], ["trian", '"train"']),
        (["alpha", "train", "--epohcs", "3"], ["--epohcs", "--epochs"]),
        (["alpha", "train", "--kind", "gat"], ["gat", '"gcn", "sage"']),
        (["alpha", "train", "--epochs", "nine"], ["--epochs", "nine", "int"]),
        (["alpha", "train", "--epochs", "1.5"], ["--epochs", "whole number", "1.5"]),
        (["alpha", "train", "--epochs"], ["--epochs", "requires"]),
        (["alpha", "train", "--epochs", "0"], ["epochs must be at least 1, got 0"]),
        (["alpha", "train", "1", "gcn", "o", "0.1", "2", "3", "stray"], ["stray"]),
        (["env", "--jsn"], ["--jsn", "--json"]),
        (["alpha", "train", "--config"], ["--config", "requires"]),
    ],
)
def test_a_wrong_command_line_is_code_2_and_one_message(run, words, parts) -> None:
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert err.startswith("potstill: ")
    assert "Traceback" not in err
    assert [part for part in parts if part not in err] == [], err


@pytest.mark.parametrize(
    ("name", "text", "parts"),
    [
        ("absent.yaml", None, ["absent.yaml", "nothing there"]),
        ("folder.yaml", "folder", ["folder.yaml", "a folder"]),
        ("c.ini", "epochs=1", ["c.ini", "must end in"]),
        ("c.yaml", "", ["c.yaml", "got nothing"]),
        ("c.yaml", "epohcs: 3", ["epohcs", "c.yaml", "--epochs"]),
        ("c.yaml", "epochs: nine", ["epochs", "c.yaml", "nine"]),
        ("c.yaml", "epochs: 2.5", ["epochs", "c.yaml", "whole number"]),
        ("c.yaml", "epochs: 0", ["epochs must be at least 1"]),
        ("c.yaml", "optim: {betas: [1]}", ["betas", "c.yaml", "expected 2"]),
        ("c.yaml", "alpha: {trian: {epochs: 3}}", ["'trian'", "c.yaml", "'train'"]),
        ("c.yaml", "alpha: {train: 3}", ["'train'", "c.yaml", "by name"]),
        ("c.yaml", "{alpha: {train: {}}, brokn: {}}", ["'brokn'", "c.yaml", "'broken'"]),
        ("c.yaml", "{alpha: {train: {}}, epochs: 3}", ["'epochs'", "c.yaml", "known: "]),
        ("c.toml", "[alpha.train]\nepohcs = 3", ["epohcs", "c.toml", "--epochs"]),
    ],
)
def test_a_wrong_file_is_code_2_and_names_the_file(run, tmp_path, name, text, parts) -> None:
    if text == "folder":
        (tmp_path / name).mkdir()
    elif text is not None:
        (tmp_path / name).write_text(text)
    code, out, err = run("alpha", "train", "--config", tmp_path / name)
    assert (code, out) == (2, "")
    assert "Traceback" not in err
    assert [part for part in parts if part not in err] == [], err


def test_an_output_folder_that_cannot_be_used_is_code_2(run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = run("alpha", "train", "--out", tmp_path / "file" / "x")
    assert code == 2
    assert "can be written" in err
    out = tmp_path / "run"
    assert run("alpha", "train", "--out", out)[0] == 0
    code, _, err = run("alpha", "train", "--out", out, "--epochs", "2")
    assert code == 2
    assert "another epochs (1, now 2)" in err


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("broken", "RuntimeError: no such luck"),
        ("absent", "No module named 'plugin_absent'"),
        ("misnamed", "App(name='misnamed')"),
    ],
)
def test_a_broken_plugin_is_named_and_leaves_the_others_alone(run, name, reason) -> None:
    for words in ([name], [name, "train"], [name, "--help"]):
        code, _, err = run(*words)
        assert code == 1
        assert f"the domain {name!r} cannot be loaded" in err
        assert reason in err
        assert "pip install --force-reinstall" in err
    assert run("alpha", "train")[0] == 0


def test_errors_of_the_run(run) -> None:
    assert run("alpha", "fails", "data") == (1, "", "potstill: locate: nothing there\n")
    assert run("alpha", "fails", "interrupted") == (
        143,
        "",
        "potstill: fit: stopped by signal 15\n",
    )
    assert run("alpha", "fails", "keyboard")[0] == 130
    assert run("alpha", "fails", "code")[0] == 7
    with pytest.raises(ValueError, match="a bug of the run"):  # keeps its traceback
        run("alpha", "fails")


def test_every_error_of_ours_has_a_code(run, monkeypatch: pytest.MonkeyPatch) -> None:
    for error, code in ((CheckpointError("damaged"), 1), (Interrupted("x", 130), 130)):
        monkeypatch.setattr(cli, "_parse", lambda *_, error=error: _raise(error))
        assert run("alpha")[0] == code


def _raise(error: Exception) -> None:
    raise error


def test_env_as_json_and_as_tables(run) -> None:
    code, out, err = run("env", "--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert report["torch"]["version"]
    assert report["torch"]["devices"][0]["name"] == "cpu"
    assert "export" in {row["extra"].rstrip("]").split("[")[1] for row in report["optional"]}
    code, out, _ = run("env")
    assert code == 0
    assert all(word in out for word in ("torch", "data root", "onnxruntime", "core "))


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; from potstill.core.command.cli import main; code = main(['--help']); "
        "heavy = {'torch', 'numpy', 'accelerate', 'matplotlib', 'huggingface_hub', 'timm', "
        "'torch_geometric', 'scipy', 'packaging', 'markdown_it'} & set(sys.modules); "
        "assert not heavy, heavy; raise SystemExit(code)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_bench_runs_the_programs_of_a_clone(run, tmp_path: Path, monkeypatch) -> None:
    from potstill.core.measure import bench

    calls = []
    monkeypatch.setattr(bench, "main", lambda folder, words: calls.append((folder, words)) or 3)
    monkeypatch.setattr(cli, "__file__", str(tmp_path / "site-packages" / "cli.py"))
    monkeypatch.chdir(tmp_path)
    code, _, err = run("bench", "graph")
    assert code == 2
    assert "clone" in err
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "__main__.py").write_text("")
    assert run("bench", "graph", "cora", "--check", "--pairs", "5")[0] == 3
    monkeypatch.chdir(tmp_path / "benchmarks")
    assert run("bench", "--official", "IMDN")[0] == 3
    assert calls == [
        (tmp_path / "benchmarks", ["graph", "cora", "--pairs", "5", "--check"]),
        (tmp_path / "benchmarks", ["all", "--pairs", "20", "--official", "IMDN"]),
    ]


def test_a_verb_that_is_no_job_is_refused_on_several_processes(run, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, error = run("alpha", "train")
    assert code == 2
    assert "potstill alpha train: runs in one process, got WORLD_SIZE=2" in error
