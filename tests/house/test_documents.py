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
DOMAINS_AND_CORE = sorted(path.parent.name for path in ROOT.glob("packages/*/pyproject.toml"))
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
            page = path.parent / target.split("#")[0]
            if page.parent.name == "results" and path.is_relative_to(ROOT / "docs"):
                page = ROOT / "benchmarks" / "results" / f"{page.stem}.csv"  # drawn from it
            assert page.exists(), f"{target} in {names(path)}"


def anchors(text: str) -> set[str]:
    """Headings as links name them."""
    heads = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    words = (re.sub(r"[^\w\s-]", "", head.lower()).strip() for head in heads)
    return {re.sub(r"[\s-]+", "-", head) for head in words}


@pytest.mark.parametrize("path", DOCUMENTS, ids=names)
def test_links_into_a_page_name_a_heading(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target, anchor in re.findall(r"\]\(([^)\s#:]*)#([^)\s]+)\)", text):
        page = path.parent / target if target else path
        if page.suffix == ".md" and page.exists():
            assert anchor in anchors(page.read_text("utf-8")), f"#{anchor} in {names(path)}"


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


READMES = sorted([ROOT / "README.md", *ROOT.glob("packages/*/README.md")])
NUMBER = re.compile(r"(?<![\w.,-])(?:\d{1,3}(?:,\d{3})+|\d+\.\d+)(?![\w.])")


@pytest.mark.parametrize("path", READMES, ids=names)
def test_a_readme_is_a_shop_window(path: Path) -> None:
    """What reads like a laboratory's notebook belongs to benchmarks/results and the guides."""
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 80, "move seeds, spreads, misses and machines to the results"
    assert "pip install" in text.partition("```python")[0], "how to install comes before the code"


def measured(text: str) -> set[str]:
    """Numbers of four figures or more outside of code: shorter ones meet by chance."""
    words = re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)", "", text, flags=re.DOTALL)
    found = NUMBER.findall(words)
    found = [n for n in found if not n.endswith(",000")]
    return {n for n in found if len(n.replace(",", "").replace(".", "").lstrip("0")) > 3}


def strays(texts: dict[str, str]) -> dict[str, list[str]]:
    """Figures that stand in more than one of the texts, and where."""
    where: dict[str, list[str]] = {}
    for name, text in texts.items():
        for number in measured(text):
            where.setdefault(number, []).append(name)
    return {number: sorted(places) for number, places in where.items() if len(places) > 1}


@pytest.mark.parametrize("domain", DOMAINS_AND_CORE)
def test_a_figure_stands_in_one_hand_written_place(domain: str) -> None:
    """What is measured anew in one place must not live on in another."""
    about = [path for path in DOCUMENTS if domain in (path.stem, path.parent.name)]
    about = [path for path in about if path.name != "CHANGELOG.md"]
    texts = {names(path): path.read_text(encoding="utf-8") for path in about}
    guide = (ROOT / "docs" / "guides" / "which-method.md").read_text(encoding="utf-8")
    sections = re.split(r"^(?=## )", guide, flags=re.MULTILINE)
    texts["guide"] = "".join(s for s in sections if f"](../tutorials/{domain}.md)" in s)
    texts["README.md"] = (ROOT / "README.md").read_text(encoding="utf-8")
    assert strays(texts) == {}


def test_a_stray_figure_is_seen() -> None:
    texts = {"a": "| ours | 83.14 % |", "b": "It has 83.14 % and `12.34`.", "c": "12.34 and 0.5"}
    assert strays(texts) == {"83.14": ["a", "b"]}
    texts = {"a": "1,592,504 and 0.50", "b": "1,592,504 of 0.50"}
    assert strays(texts) == {"1,592,504": ["a", "b"]}


def test_the_citation_file_is_complete() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors", "license", "type"} <= set(citation)
    for reference in citation["references"]:
        assert {"type", "title", "authors", "year"} <= set(reference), reference
        assert all(
            {"family-names", "given-names"} <= set(author) for author in reference["authors"]
        )
