import errno
import os
import pickle
import subprocess
import sys
import zipfile

import pytest

from potstill.core import files
from potstill.core.errors import DataError
from potstill.core.files import Files, atomic, is_leftover, machine


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
        with pytest.raises(DataError, match=r"must be readable \(c\.png\), got ") as caught:
            Files(source).read("c.png")
        assert "all.zip" in str(caught.value) or "c.png must" in str(caught.value)
    (tmp_path / "half.zip").write_bytes((tmp_path / "all.zip").read_bytes()[:100])
    with pytest.raises(DataError, match=r"half\.zip must be a zip file, got .* is it whole"):
        Files(tmp_path / "half.zip")


def test_an_archive_that_unpacks_to_much_more_is_refused(tmp_path):
    """259 MiB of zeros in 0.26 MB; what a header says less than is there ends as damaged."""
    path = tmp_path / "bomb.zip"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("a", "w") as file,
    ):
        for _ in range(259):
            file.write(bytes(1 << 20))
    with pytest.raises(DataError, match=r"a in .*bomb\.zip must unpack to at most 268,435,456"):
        Files(path).read("a")


def test_an_archive_of_too_many_members_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("potstill.core.files._MEMBERS", 2)
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as file:
        for name in "abc":
            file.writestr(name, "")
    with pytest.raises(DataError, match=r"many\.zip must have at most 2 members, got 3"):
        Files(tmp_path / "many.zip")


def test_leftovers_of_killed_writers_are_removed_and_never_read(tmp_path, monkeypatch):
    script = (
        "import os, sys; from potstill.core.files import atomic\n"
        "with atomic(sys.argv[1]) as path: path.write_text('half'); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "cat.png")], check=False)
    [left] = tmp_path.iterdir()
    assert is_leftover(left)
    assert list(Files(tmp_path)) == []
    living = tmp_path / f".writing-{machine()}-{os.getppid()}-00000000-dog.png"
    elsewhere = tmp_path / ".writing-00000000-1-00000000-dog.png"
    mine = tmp_path / f".writing-{machine()}-{os.getpid()}-00000000-dog.png"  # pid 1 died, is again
    old = tmp_path / ".writing-step-000000003-1"
    for path in (living, elsewhere, mine, old):
        path.write_text("half")
    os.utime(old, (0, 0))
    with atomic(tmp_path / "cat.png") as temporary:
        temporary.write_text("whole")
    assert set(tmp_path.iterdir()) == {tmp_path / "cat.png", living, elsewhere}
    with atomic(tmp_path / "cat.png") as temporary:
        temporary.write_text("whole")
        files.clear(tmp_path)  # not what is being written


LIMITED = """
import resource, sys
from pathlib import Path
import numpy as np, torch
from safetensors.torch import save_file
from potstill.core.errors import PotstillError
from potstill.core.files import atomic
from potstill.core.store import checkpoint
folder = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
big = torch.zeros(1 << 17)
def bytes_(path): path.write_bytes(b"0" * (1 << 17))
def numpy_(path): np.save(path, big.numpy())
def torch_(path): torch.save(big, path)
def safetensors_(path): save_file({"a": big}, path)
for write in (bytes_, numpy_, torch_, safetensors_):
    target = folder / "out.npy"
    target.write_text("old")
    try:
        with atomic(target) as temporary:
            write(temporary)
    except PotstillError as error:
        print(write.__name__, error)
    assert target.read_text() == "old"
checkpoint.save(folder, 1, {"a": torch.zeros(4)})
try:
    checkpoint.save(folder, 2, {"a": big})
except PotstillError as error:
    print("checkpoint", error)
assert checkpoint.newest(folder).name == "step-000000001"
assert sorted(p.name for p in folder.iterdir()) == ["out.npy", "step-000000001"]
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits of the system")
def test_a_disk_that_fills_is_our_error_and_the_old_file_stays(tmp_path):
    words = [sys.executable, "-c", LIMITED, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert not done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == [
        "bytes_", "numpy_", "torch_", "safetensors_", "checkpoint",
    ]  # fmt: skip
    assert all("could not write" in line and "MB are free in" in line for line in lines)
    assert "0.5 MB are needed" in lines[-1]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write")
def test_a_folder_that_cannot_be_written_is_our_error(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(DataError, match="could not write .*denied"), atomic(tmp_path / "a"):
        pass


def test_errors_of_what_is_read_meanwhile_stay_theirs(tmp_path):
    error = PermissionError(errno.EACCES, "Permission denied", "/elsewhere/data.bin")
    with pytest.raises(PermissionError) as caught, atomic(tmp_path / "a"):
        raise error
    assert caught.value is error
    error = OSError(errno.EROFS, "Read-only file system")
    with pytest.raises(DataError, match="could not write .*Read-only"), atomic(tmp_path / "a"):
        raise error
