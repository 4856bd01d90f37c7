"""Native libraries: compiled once, cached for this processor, and errors that say what to do."""

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from potstill.core.backends import native, native_library
from potstill.core.errors import BackendError

SOURCE = 'extern "C" int answer() { return 42; }\n'


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A C++ file, an empty cache, and nothing loaded yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    native._load.cache_clear()
    path = tmp_path / "answer.cpp"
    path.write_text(SOURCE)
    yield path
    native._load.cache_clear()


@pytest.fixture
def compiled(source):
    """The same, where there is a compiler."""
    try:
        native_library(source)
    except BackendError as error:
        pytest.skip(str(error))
    native._load.cache_clear()
    return source


def libraries(source):
    return sorted((source.parent / "cache" / "potstill" / "native").glob("*.so"))


def test_a_library_is_compiled_once(compiled, monkeypatch):
    (first,) = libraries(compiled)
    monkeypatch.setattr(native, "_compile", None)
    assert native_library(compiled).answer() == 42
    assert native_library(compiled) is native_library(compiled)
    assert libraries(compiled) == [first]


@pytest.mark.parametrize("change", ["source", "flags", "processor"])
def test_another_source_flag_or_processor_is_another_library(compiled, change, monkeypatch):
    flags = ("-DX",) if change == "flags" else ()
    if change == "source":
        compiled.write_text(SOURCE.replace("42", "43"))
    if change == "processor":
        monkeypatch.setattr(native, "_processor", lambda: "another one that shares the cache")
    assert native_library(compiled, *flags).answer() == (43 if change == "source" else 42)
    assert len(libraries(compiled)) == 2


def test_a_cache_that_cannot_be_written_is_read(compiled, monkeypatch):
    # Root may write everywhere, so the attempt itself is forbidden.
    monkeypatch.setattr(native, "atomic", None)
    assert native_library(compiled).answer() == 42


def test_a_cache_that_cannot_be_written_is_named(compiled):
    (library,) = libraries(compiled)
    shutil.rmtree(library.parent)
    library.parent.write_text("a file where the folder should be")
    with pytest.raises(BackendError, match=r"answer.cpp could not be .*cache.*XDG_CACHE_HOME"):
        native_library(compiled)


def test_a_library_that_cannot_be_loaded_is_named(compiled, monkeypatch):
    monkeypatch.setattr(native, "_compile", lambda *a: a[-1].write_bytes(b"torn"))
    with pytest.raises(BackendError, match=r"answer.cpp could not be .*cache.*XDG_CACHE_HOME"):
        native_library(compiled, "-DANOTHER")


def test_a_torn_library_is_compiled_again(compiled):
    (library,) = libraries(compiled)
    half = library.read_bytes()[:5000]
    library.unlink()  # this process has the old one mapped
    library.write_bytes(half)
    assert native_library(compiled).answer() == 42


def test_a_compiler_may_have_words_before_it(compiled, monkeypatch):
    monkeypatch.setenv("CXX", "env LC_ALL=C g++ -DWORD")
    compiled.write_text(SOURCE.replace("int", "\n#ifdef WORD\nint").replace("}", "}\n#endif"))
    assert native_library(compiled).answer() == 42


def test_a_missing_compiler_is_named(source, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(
        BackendError, match=r"no C\+\+ compiler was found to compile answer.cpp; in"
    ):
        native_library(source)


def test_a_compiler_that_fails_is_quoted_and_leaves_nothing(compiled):
    (library,) = libraries(compiled)
    compiled.write_text("#error these words\n")
    with pytest.raises(
        BackendError,
        match=r"(?s)compiling answer.cpp with \S+ failed \(exit code 1\): .*these words.*set CXX",
    ):
        native_library(compiled)
    assert libraries(compiled) == [library]


def test_threads_share_one_compilation(compiled, monkeypatch):
    for library in libraries(compiled):
        library.unlink()
    calls, real = [], native._compile
    monkeypatch.setattr(native, "_compile", lambda *a: (calls.append(a), real(*a)))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: native_library(compiled), range(4)))
    assert len(calls) == 1
    assert all(one is found[0] for one in found)


def test_processes_may_compile_at_the_same_time(compiled):
    for library in libraries(compiled):
        library.unlink()
    program = (
        "from pathlib import Path; from potstill.core.backends import native_library; "
        f"assert native_library(Path({str(compiled)!r})).answer() == 42"
    )
    running = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(3)]
    assert [process.wait() for process in running] == [0, 0, 0]
    assert len(libraries(compiled)) == 1  # and no temporary file


def test_flags_do_not_reach_the_linker(compiled):
    """With -ffast-math at the link, loading would flush subnormal numbers in the whole process."""
    program = (
        "from pathlib import Path; from potstill.core.backends import native_library; "
        f"native_library(Path({str(compiled)!r}), '-ffast-math'); "
        "tiny = 1e-310; assert tiny * 0.5 > 0"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
