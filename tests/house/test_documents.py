"""READMEs and documentation are true: their Python runs, their commands exist, their links lead."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "packages/*/*.md", "docs/**/*.md", "apps/**/*.md", "benchmarks/*.md")
    for path in ROOT.glob(pattern)
)
WITH_PYTHON = [path for path in DOCUMENTS if "```python" in path.read_text(encoding="utf-8")]
HATCH = tomllib.loads((ROOT / "hatch.toml").read_text())


def names(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", WITH_PYTHON, ids=names)
def test_python_blocks_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other, as a reader would; ``<!-- skip: next "reason" -->`` leaves one out."""
    monkeypatch.chdir(tmp_path)
    document = Sybil(parsers=[PythonCodeBlockParser(), SkipParser()]).parse(path)
    document.namespace["__name__"] = "__main__"  # classes know the module that they come from
    for example in document.examples():
        try:
            example.evaluate()
        except pytest.skip.Exception:
            continue


@pytest.mark.parametrize("path", DOCUMENTS, ids=names)
def test_hatch_commands_exist(path: Path) -> None:
    scripts = set(HATCH["envs"]["default"]["scripts"])
    for word in re.findall(r"hatch run ([\w:]+)", path.read_text(encoding="utf-8")):
        assert word in scripts | {"python", "potstill", "pytest"}, (
            f"hatch run {word} in {names(path)}"
        )


@pytest.mark.parametrize("path", DOCUMENTS, ids=names)
def test_relative_links_lead_somewhere(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:|#", target):
            assert (path.parent / target.split("#")[0]).exists(), f"{target} in {names(path)}"


def test_the_navigation_names_every_page() -> None:
    # Plain text first: the file has tags that only the site generator knows.
    text = re.sub(r"!!python/\S+", "", (ROOT / "mkdocs.yml").read_text())
    listed = set(re.findall(r"[\w/-]+\.md", str(yaml.safe_load(text)["nav"])))
    assert listed == {
        path.relative_to(ROOT / "docs").as_posix() for path in ROOT.glob("docs/**/*.md")
    }


def test_the_citation_file_is_complete() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors", "license", "type"} <= set(citation)
    for reference in citation["references"]:
        assert {"type", "title", "authors", "year"} <= set(reference), reference
        assert all(
            {"family-names", "given-names"} <= set(author) for author in reference["authors"]
        )
