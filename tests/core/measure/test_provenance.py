import importlib
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from potstill.core.measure.provenance import commit_of, provenance

module = importlib.import_module("potstill.core.measure.provenance")


def test_every_field_is_text_and_the_known_ones_are_filled():
    row = provenance(seed=7, data="abc", device="cpu")
    assert list(row) == [
        "date", "device", "cpu", "threads", "load", "python", "torch", "potstill", "commit", "seed",
        "data",
    ]  # fmt: skip
    assert all(isinstance(value, str) for value in row.values())
    assert (row["seed"], row["data"], row["device"]) == ("7", "abc", "cpu")
    assert row["torch"] == torch.__version__
    assert "core=" in row["potstill"]
    assert float(row["load"]) >= 0
    assert row["date"].endswith("Z")
    assert provenance()["seed"] == ""


def git(folder, *arguments):
    who = ["-c", "user.name=t", "-c", "user.email=t@t"]
    subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True)


def commit_seen_by(copy):
    code = f"""
import importlib.util
spec = importlib.util.spec_from_file_location("p", {str(copy)!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print(module._commit())
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_commit_is_of_the_sources_and_says_when_they_changed(tmp_path):
    copy = tmp_path / "packages" / "core" / "src" / "provenance.py"
    copy.parent.mkdir(parents=True)
    shutil.copy(Path(module.__file__), copy)
    git(tmp_path, "init", "-q")
    assert commit_seen_by(copy) == ""  # a file that is not tracked there
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    clean = commit_seen_by(copy)
    assert len(clean) == 12
    (tmp_path / "notes.md").write_text("not a source")
    git(tmp_path, "add", ".")
    assert commit_seen_by(copy) == clean
    copy.write_text(copy.read_text() + "\n# changed\n")
    assert commit_seen_by(copy) == clean + "+"


def test_the_commit_of_a_checkout_is_that_of_its_own_root(tmp_path):
    assert commit_of(tmp_path) == ""
    git(tmp_path, "init", "-q")
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "model.py").write_text("x = 1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    clean = commit_of(tmp_path)
    assert len(clean) == 12
    assert commit_of(tmp_path / "inner") == ""
    (tmp_path / "inner" / "model.py").write_text("x = 2\n")
    assert commit_of(tmp_path) == clean + "+"


def test_a_record_names_the_instructions_of_its_processor(monkeypatch):
    cpuinfo = "processor : 0\nmodel name : Some CPU\nflags : sse2 avx2 {}\n\nprocessor : 1\n"
    cases = {"": "(AVX2)", "avx512f amx_tile": "(AVX-512, AMX)", "avx512f": "(AVX-512)"}
    for flags, said in cases.items():
        with monkeypatch.context() as patch:
            text = cpuinfo.format(flags)
            patch.setattr(Path, "read_text", lambda _, text=text, **__: text)
            assert module._cpu.__wrapped__().startswith(f"Some CPU {said} x")
