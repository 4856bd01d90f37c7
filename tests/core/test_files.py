import os
import pickle
import zipfile

import pytest

from potstill.core.errors import DataError
from potstill.core.files import Files, atomic


def test_replaces_in_one_step_and_keeps_the_suffix(tmp_path):
    target = tmp_path / "deep" / "rows.csv"
    with atomic(target) as temporary:
        temporary.write_text("new")
        assert temporary.suffix == ".csv"
        assert not target.exists()
    assert target.read_text() == "new"
    assert [p.name for p in target.parent.iterdir()] == ["rows.csv"]


def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "rows.csv"
    target.write_text("old")

    def interrupted():
        with atomic(target) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["rows.csv"]


@pytest.fixture
def tree(tmp_path):
    """The same files as a folder and, below ``deep/train``, in a zip file."""
    folder = tmp_path / "folder"
    for name in ("b/2.PNG", "b/1.png", "a/notes.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.mkdir("deep/train/b.png")  # a folder that looks like a file
        archive.writestr("deep/else.png", "not below")
        for path in folder.rglob("*.*"):
            archive.write(path, "deep/train/" + path.relative_to(folder).as_posix())
    return folder, tmp_path / "all.zip" / "deep" / "train"


def test_folders_and_zips_hold_the_same_files(tree):
    for source in tree:
        files = Files(source)
        assert list(files) == ["a/notes.txt", "b/1.png", "b/2.PNG"]
        assert files.read("b/1.png") == b"b/1.png"
        assert list(Files(source, (".png", ".jpg"))) == ["b/1.png", "b/2.PNG"]
        assert not Files(source, ".csv")
    assert "deep/else.png" in list(Files(tree[1].parents[1]))


def test_other_processes_open_the_archive_for_themselves(tree, monkeypatch):
    files = Files(tree[1])
    assert files.read("b/1.png") == b"b/1.png"
    mine = files._zip()
    assert files._zip() is mine
    monkeypatch.setattr(os, "getpid", lambda: -1)  # as after a fork
    assert files._zip() is not mine
    again = pickle.loads(pickle.dumps(files))  # as a spawned worker gets it
    assert again.read("b/2.PNG") == b"b/2.PNG"


def test_what_cannot_be_read_is_said(tree, tmp_path):
    with pytest.raises(DataError, match=r"must be a folder or a \.zip file, got nothing there"):
        Files(tmp_path / "absent")
    for source in tree:
        with pytest.raises(DataError, match=r"Files: c\.png must be readable, got "):
            Files(source).read("c.png")
    (tmp_path / "half.zip").write_bytes((tmp_path / "all.zip").read_bytes()[:100])
    with pytest.raises(DataError, match=r"half\.zip must be a zip file, got .* copied whole"):
        Files(tmp_path / "half.zip")
