"""READMEs and documentation are true: their Python runs, their commands exist, their links lead."""

import re
import tomllib
from importlib.util import find_spec
from pathlib import Path
from unittest import SkipTest

import pytest
import yaml
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "packages/*/*.md", "docs/**/*.md", "apps/**/*.md", "benchmarks/**/*.md")
    for path in ROOT.glob(pattern)
)
WITH_PYTHON = [path for path in DOCUMENTS if "```python" in path.read_text(encoding="utf-8")]
COMMAND = re.compile(r"hatch run|potstill \w+ \w+|python (-m )?[\w./]+|pytest|```python")
FIGURE = re.compile(r"\d[\d.,]* ?(dB|ms|MiB|GiB|%|seconds|minutes|points|x faster)(?!\w)")
HATCH = tomllib.loads((ROOT / "hatch.toml").read_text())


def names(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", WITH_PYTHON, ids=names)
def test_python_blocks_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other, as a reader would; ``<!-- skip: next "reason" -->`` leaves one out."""
    monkeypatch.chdir(tmp_path)
    document = Sybil(parsers=[PythonCodeBlockParser(), SkipParser()]).parse(path)
    document.namespace["__name__"] = "__main__"  # classes know the module that they come from
    document.namespace["has_wandb"] = find_spec("wandb") is not None
    for example in document.examples():
        try:
            example.evaluate()
        except (pytest.skip.Exception, SkipTest):
            continue


@pytest.mark.parametrize("path", DOCUMENTS, ids=names)
def test_hatch_commands_exist(path: Path) -> None:
    scripts = set(HATCH["envs"]["default"]["scripts"])
    others = {f"{env}:{script}" for env in HATCH["envs"] for script in scripts}
    for word in re.findall(r"hatch run ([\w:-]+)", path.read_text(encoding="utf-8")):
        assert word in scripts | others | {"python", "potstill", "pytest"}, (
            f"hatch run {word} in {names(path)}"
        )


@pytest.mark.parametrize("path", DOCUMENTS, ids=names)
def test_relative_links_lead_somewhere(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:|#", target):
            assert (path.parent / target.split("#")[0]).exists(), f"{target} in {names(path)}"


def unproved(text: str) -> list[str]:
    """Headings of sections with measured figures, and neither a command nor "published"."""
    found = []
    for section in re.split(r"^(?=#+ )", text, flags=re.MULTILINE):
        words = re.sub(r"```.*?```|`[^`]*`", "", section, flags=re.DOTALL)
        rows = [line for line in words.splitlines() if line.startswith("|")]
        measured = FIGURE.search(words) or any(re.search(r"\d\.\d", row) for row in rows)
        if measured and not COMMAND.search(section) and "published" not in section:
            found.append(section.partition("\n")[0])
    return found


@pytest.mark.parametrize("path", DOCUMENTS, ids=names)
def test_figures_stand_beside_the_command_that_printed_them(path: Path) -> None:
    assert unproved(path.read_text(encoding="utf-8")) == []


def test_a_figure_without_a_command_is_seen() -> None:
    table = "| model | accuracy |\n|---|---|\n| ours | 83.1 |\n"
    assert unproved(f"# Title\n\n## Speed\n\n{table}") == ["## Speed"]
    assert unproved("## Speed\n\nIt takes 3 ms.\n") == ["## Speed"]
    assert unproved(f"## Speed\n\nBy `hatch run bench core`:\n\n{table}") == []
    assert unproved("## Speed\n\n38.0 dB (published).\n") == []
    assert unproved("## Options\n\n| `share=0.25` | a quarter |\n") == []


@pytest.mark.parametrize("name", ["core", "graph", "mae", "sr", "acm"])
def test_the_guide_repeats_figures_as_the_package_states_them(name: str) -> None:
    """A figure that is measured anew in one place must not live on in the other."""
    guide = (ROOT / "docs" / "guides" / "which-method.md").read_text(encoding="utf-8")
    sections = re.split(r"^(?=## )", guide, flags=re.MULTILINE)
    (section,) = (part for part in sections if f"](../tutorials/{name}.md)" in part)
    stated = (ROOT / "packages" / name / "README.md").read_text(encoding="utf-8")
    figures, known = (set(re.findall(r"(?<![\w.-])\d+\.\d+", text)) for text in (section, stated))
    assert figures
    assert figures <= known, figures - known


def test_the_citation_file_is_complete() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors", "license", "type"} <= set(citation)
    for reference in citation["references"]:
        assert {"type", "title", "authors", "year"} <= set(reference), reference
        assert all(
            {"family-names", "given-names"} <= set(author) for author in reference["authors"]
        )
