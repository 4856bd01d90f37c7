"""What `tools/release.py` checks before a tag is made."""

import subprocess
from pathlib import Path

import pytest

VERSION = '[project]\nname = "potstill-{name}"\nversion = "{version}"\ndependencies = [{needs}]\n'
TODAY = (
    "# Changelog\n\n## 0.2.0 - 2026-11-21\n\n- Something new.\n\n## 0.1.0 - 2026-01-01\n\n- Old.\n"
)


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import release
    import workspace

    for module in (release, workspace):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(release, "PACKAGES", ["core", "graph"])
    for name, needs in (("core", ""), ("graph", '"potstill-core>=0.2,<0.3"')):
        folder = tmp_path / "packages" / name
        folder.mkdir(parents=True)
        text = VERSION.format(name=name, version="0.2.0", needs=needs)
        (folder / "pyproject.toml").write_text(text)
        (folder / "CHANGELOG.md").write_text(TODAY)
    git(tmp_path, "init", "-q")
    commit(tmp_path)
    return release


def git(folder: Path, *words: str) -> None:
    who = ["-c", "user.name=t", "-c", "user.email=t@t", "-c", "tag.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *who, *words], check=True, capture_output=True)


def commit(folder: Path) -> None:
    git(folder, "add", ".")
    git(folder, "commit", "-q", "--allow-empty", "-m", "x")


def test_a_package_that_is_ready(release) -> None:
    assert release.troubles("core", "potstill-core-v0.2.0", given=False) == []
    assert release.changelog("core") == ("0.2.0", "2026-11-21", "- Something new.")


def test_a_tag_must_be_new_or_be_here(release, tmp_path: Path) -> None:
    tag = "potstill-core-v0.2.0"
    assert "there is no tag" in release.troubles("core", tag, given=True)[0]
    git(tmp_path, "tag", tag)
    assert release.troubles("core", tag, given=True) == []
    assert "exists already" in release.troubles("core", tag, given=False)[0]
    commit(tmp_path)
    assert "is not the commit" in release.troubles("core", tag, given=True)[0]


@pytest.mark.parametrize(
    ("path", "old", "new", "trouble"),
    [
        ("core/pyproject.toml", "0.2.0", "0.3.0", "the version of packages/core is 0.3.0"),
        ("core/CHANGELOG.md", "0.2.0 - 2026-11-21", "0.2.0 - unreleased", "must be dated"),
        ("core/CHANGELOG.md", "- Something new.\n", "", "is empty"),
        ("graph/pyproject.toml", ">=0.2,<0.3", ">=0.1,<0.2", "does not accept potstill-core"),
    ],
)
def test_what_is_wrong_is_said(
    release, tmp_path: Path, path: str, old: str, new: str, trouble: str
) -> None:
    file = tmp_path / "packages" / path
    file.write_text(file.read_text().replace(old, new))
    found = release.troubles("core", "potstill-core-v0.2.0", given=False)
    assert any("not committed" in line for line in found)
    commit(tmp_path)
    found = release.troubles("core", "potstill-core-v0.2.0", given=False)
    assert any(trouble in line for line in found), found
    assert not any("not committed" in line for line in found)


def test_fragments_become_lines_of_the_newest_entry(release, tmp_path: Path) -> None:
    folder = tmp_path / "packages" / "core" / "changelog.d"
    folder.mkdir()
    (folder / "27.md").write_text("Pages of results.\n")
    (folder / "28.md").write_text("- Two\n  lines.\n")
    (tmp_path / "packages" / "core" / "changelog.d" / "notes.txt").write_text("kept")
    found = release.troubles("core", "potstill-core-v0.2.0", given=False)
    assert any("changelog.d has fragments" in line for line in found)
    assert release.collect("core") == 2
    text = "- Pages of results.\n- Two\n  lines.\n- Something new."
    assert release.changelog("core") == ("0.2.0", "2026-11-21", text)
    assert "## 0.1.0 - 2026-01-01\n\n- Old.\n" in (folder.parent / "CHANGELOG.md").read_text()
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
