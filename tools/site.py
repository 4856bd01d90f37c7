"""Build the documentation: ``docs/``, the reference, a page for each criterion, and the results.

python tools/site.py [--strict]    writes build/docs, build/mkdocs.yml, build/site

What is made here is made from what the code says: the exported modules, the docstrings of the
criteria, and the records in benchmarks/results with the notes beside them. None of it is committed.
"""

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import yaml
from workspace import DOMAINS, ROOT, SOURCES, project

from potstill.core.measure.bench import read, sections

BUILD = ROOT / "build"
REPOSITORY = project("core")["urls"]["Repository"]
FORMULA = re.compile(r" = |\bmean|\bsum_|KL\(| / \(")
SECTION = re.compile(r"^(Args|Call|Attributes|Returns|Raises|Example):$", re.MULTILINE)


@dataclass(frozen=True)
class Criterion:
    """A public criterion, as its source says it."""

    name: str
    module: str  # where it is defined: potstill.core.criteria.logit
    public: str  # where it is imported from: potstill.core.criteria
    docstring: str
    about: str  # docstring of the module, which may hold the source of all

    @property
    def summary(self) -> str:
        return " ".join(self.docstring.partition("\n\n")[0].split())

    @property
    def head(self) -> str:
        """What is said before arguments and example."""
        return SECTION.split(self.docstring)[0]

    @property
    def source(self) -> str:
        """Authors, venue and equation, up to the formula; those of the module where none."""
        for text in (self.head, self.about):
            found = re.search(r"Source(?: of all)?: (.+?)(?=``|\n\n|\Z)", text, re.DOTALL)
            if found:
                return _sentences(found[1])
        return ""

    @property
    def formulas(self) -> list[str]:
        spans = (" ".join(span.split()) for span in re.findall(r"``(.+?)``", self.head, re.DOTALL))
        return [span for span in spans if FORMULA.search(span)]


def _sentences(text: str) -> str:
    """Without the half sentence that leads to a formula."""
    text = " ".join(text.split())
    whole = re.match(r".*[.);](?= [A-Z]|$)", text)
    return (whole[0] if whole else text).rstrip(" .;:") + "."


def exported(package: str) -> dict[tuple[str, str], str]:
    """By defining module and name: from where a package exports it, or one of its folders does."""
    top, found = ROOT / "packages" / package / "src", {}
    for stub in sorted((top / "potstill" / package).rglob("__init__.pyi")):
        public = ".".join(stub.parent.relative_to(top).parts)
        for node in ast.parse(stub.read_text(encoding="utf-8")).body:
            assert isinstance(node, ast.ImportFrom)
            for alias in node.names:
                module = f"{public}.{node.module or alias.name}"  # `from . import plots`
                if not (top / module.replace(".", "/") / "__init__.pyi").exists():  # that says more
                    found.setdefault((module, alias.name), public)
    return found


def criteria() -> Iterator[Criterion]:
    """Of the core, then of each domain."""
    for package in ("core", *DOMAINS):
        for (module, name), public in exported(package).items():
            if module.startswith(f"potstill.{package}.criteria"):
                path = ROOT / "packages" / package / "src" / f"{module.replace('.', '/')}.py"
                yield from _defined(path, module, public, name)


def _defined(path: Path, module: str, public: str, name: str) -> Iterator[Criterion]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            text = ast.get_docstring(node) or ""
            yield Criterion(name, module, public, text, ast.get_docstring(tree) or "")


def criterion_page(criterion: Criterion) -> str:
    """Formula and source first, then the whole docstring with its signature."""
    formula = "<br>".join(formula_html(text) for text in criterion.formulas)
    return f"""---
title: {criterion.name}
---

# {criterion.name}

{criterion.summary}

!!! abstract "Formula and source"

    <p class="formula">{formula}</p>

    {criterion.source}

```python
from {criterion.public} import {criterion.name}
```

::: {criterion.module}.{criterion.name}
    options:
      heading_level: 2
      show_root_heading: true
      show_root_toc_entry: false
"""


GREEK = dict(
    alpha="α", beta="β", gamma="γ", delta="δ", eps="ε", lam="λ", tau="τ", sigma="σ", pi="π"
)
GREEK |= dict(theta="θ", mu="μ", rho="ρ", phi="φ", psi="ψ", omega="ω")
SIGNS = {"sum": "∑", "sqrt": "√", "prod": "∏", ">=": "≥", "<=": "≤", "*": "·", "||": "∥", "->": "→"}
PART = re.compile(
    r"(?P<script>[_^])(?P<what>\{[^}]*\}|\([^()]*\)|[A-Za-z0-9+]+)|(?P<word>[A-Za-z]+)"
    r"|(?P<sign>>=|<=|\*|\|\||->)|(?P<rest>.)"
)


def formula_html(text: str) -> str:
    """A formula as our docstrings write it, set with indices, exponents, Greek letters and signs.

    >>> formula_html("L = mean_n (u_s - tau)^2")
    '<i>L</i> = mean<sub><i>n</i></sub> (<i>u</i><sub><i>s</i></sub> - <i>τ</i>)<sup>2</sup>'
    """
    out = []
    for part in PART.finditer(text.replace("**", "^").replace("^ ", "^")):
        if part["script"]:
            tag = "sub" if part["script"] == "_" else "sup"
            what = part["what"]
            what = what[1:-1] if what[0] in "{(" else what
            out.append(f"<{tag}>{formula_html(what)}</{tag}>")
        elif word := part["word"]:
            said = SIGNS.get(word) or GREEK.get(word, word)
            single = len(said.rstrip("'")) == 1 and word not in SIGNS
            out.append(f"<i>{said}</i>" if single else said)
        else:
            out.append(SIGNS.get(part["sign"] or "", escape(part[0])))
    return "".join(out)


def examples_page() -> str:
    """Every program in docs/examples with what it is for and all of its lines."""
    parts = [
        "# Examples",
        "One program for each family of criteria, scheme and method; our tests run all of them.",
    ]
    for path in sorted((ROOT / "docs" / "examples").glob("*.py")):
        text = path.read_text(encoding="utf-8")
        about = (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
        parts += [f"## {path.stem}", about, f"```python\n{text}```"]
    return "\n\n".join(parts) + "\n"


def gallery(docs: Path) -> str:
    """The pictures of apps, each with its caption and the command that draws it."""
    parts = [
        "# Gallery",
        "What the programs in `apps` draw; each picture is of one run of the command below it.",
    ]
    for page in sorted((ROOT / "apps").glob("*/README.md")):
        text = page.read_text(encoding="utf-8")
        title = text.partition("\n")[0].strip("# ")
        command = re.search(r"^(?:python|potstill) .+?(?= {2,}#|$)", text, re.MULTILINE)
        for caption, name in re.findall(r"!\[([^]]*)\]\(([\w-]+\.png)\)", text):
            target = f"gallery/{page.parent.name}-{name}"
            (docs / target).parent.mkdir(exist_ok=True)
            shutil.copy(page.parent / name, docs / target)
            parts += [f"## {title}", f"![{caption}]({target})", caption + "."]
            parts += [f"```\n{command[0]}\n```"] if command else []
    return "\n\n".join(parts) + "\n"


def criteria_index(found: list[Criterion]) -> str:
    lines = [
        "# Criteria",
        "",
        "Pure functions `(student, teacher, *context) -> scalar`; options are",
    ]
    lines += ["keywords, so `functools.partial(kd, T=2.0)` is a criterion too.", ""]
    for package in dict.fromkeys(criterion.public for criterion in found):
        lines += [f"## {package}", "", "| criterion | what it matches | source |", "|---|---|---|"]
        for criterion in found:
            if criterion.public == package:
                cells = (f"[{criterion.name}]({_file(criterion)})", criterion.summary)
                cells = (*cells, criterion.source)
                lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
        lines.append("")
    return "\n".join(lines)


def _file(criterion: Criterion) -> str:
    # A class says so: `Taid` and `taid` are one file where case does not count.
    kind = "-class" if criterion.name[0].isupper() else ""
    return f"{criterion.public.split('.')[1]}-{criterion.name}{kind}.md"


def reference(domain: str) -> str:
    """All modules that a domain exports names from; its criteria have pages of their own."""
    modules = dict.fromkeys(module for module, _ in exported(domain))
    own = f"potstill.{domain}.criteria"
    return "\n\n".join(f"::: {module}" for module in modules if not module.startswith(own))


def results_page(record: Path) -> str:
    """What was promised and measured, misses in bold, then the notes beside the record."""
    rows = read(record)
    days = sorted({row["date"][:10] for row in rows})
    found = sections(rows)
    missed = sum(section.html.count(">missed</td>") for section in found)
    parts = [
        f"# Results: {record.stem}",
        f"Printed by `hatch run bench {record.stem} <benchmark>` between {days[0]} and "
        f"{days[-1]}, and drawn from `benchmarks/results/{record.stem}.csv`, which holds device, "
        "versions, commit and seed of each row. What a benchmark does is in its docstring: "
        f"`hatch run bench {record.stem} --list`. Bold: missed ({missed}).",
    ]
    for section in found:
        # Markdown must not look into it: empty lines would end the block.
        html = re.sub(r"\n\s*\n", "\n", section.html)
        html = re.sub(r'(<td class="[^"]*\bbest">)(.*?)(?=</td>)', r"\1<strong>\2</strong>", html)
        parts += [f"## {_with_instructions(section.title)}", html]
    notes = record.with_suffix(".md")
    if notes.exists():
        text = notes.read_text(encoding="utf-8").partition("\n\n")[2]
        text = re.sub(r"\(\.\./\.\./(packages/[^)]+|docs/[^)]+)\)", _inside, text)
        parts += ["## How to read it", re.sub(r"^##", "###", text.rstrip(), flags=re.MULTILINE)]
    return "\n\n".join(parts) + "\n"


# What processors could do on which figures were taken before a record said so itself.
INSTRUCTIONS = {"Intel(R) Xeon(R) Processor x2": "AVX-512, AMX", "AMD EPYC x2": "AVX2"}


def _with_instructions(title: str) -> str:
    for processor, instructions in INSTRUCTIONS.items():
        title = title.replace(f"{processor},", f"{processor} ({instructions}),")
    return title


def _inside(link: re.Match[str]) -> str:
    """A link out of benchmarks/results, as the site has it: what is no page there is on GitHub."""
    path = link[1]
    return f"(../{path[5:]})" if path.startswith("docs/") else f"({REPOSITORY}/blob/main/{path})"


def write(docs: Path) -> list[dict[str, Any]]:
    """Write the pages and give their part of the navigation."""
    found = [c for c in criteria() if c.source and c.formulas]
    shutil.rmtree(docs, ignore_errors=True)
    shutil.copytree(ROOT / "docs", docs)
    for name in DOMAINS:
        page = docs / "api" / f"{name}.md"
        page.write_text(f"{page.read_text('utf-8')}\n{reference(name)}\n", "utf-8")
    pages: dict[str, str] = {"criteria/index.md": criteria_index(found)}
    pages |= {"gallery.md": gallery(docs), "examples.md": examples_page()}
    pages |= {f"criteria/{_file(c)}": criterion_page(c) for c in found}
    records = sorted((ROOT / "benchmarks" / "results").glob("*.csv"))
    pages |= {f"results/{record.stem}.md": results_page(record) for record in records}
    for name, text in pages.items():
        (docs / name).parent.mkdir(parents=True, exist_ok=True)
        (docs / name).write_text(text, encoding="utf-8")
    listed: list[Any] = ["criteria/index.md"]
    for package in dict.fromkeys(c.public for c in found):
        members = [{c.name: f"criteria/{_file(c)}"} for c in found if c.public == package]
        listed.append({package.removeprefix("potstill.").removesuffix(".criteria"): members})
    navigation: list[dict[str, Any]] = [{"Gallery": "gallery.md"}, {"Examples": "examples.md"}]
    navigation.append({"Criteria": listed})
    if records:
        measured = [{record.stem: f"results/{record.stem}.md"} for record in records]
        navigation.append({"Results": measured})
    return navigation


def configure(navigation: list[dict[str, Any]]) -> Path:
    """The configuration of the repository with the pages of domains and those made here."""
    configuration = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    configuration |= {"docs_dir": "docs", "site_dir": "site"}
    nav = configuration["nav"]
    for section, folder in (("Tutorials", "tutorials"), ("Reference", "api")):
        pages = next(entry[section] for entry in nav if section in entry)
        pages += [f"{folder}/{name}.md" for name in DOMAINS]  # called by their first heading
    where = next(i for i, entry in enumerate(nav) if "Decisions" in entry)
    configuration["nav"] = nav[:where] + navigation + nav[where:]
    handler = configuration["plugins"][1]["mkdocstrings"]["handlers"]["python"]
    handler["paths"] = [str(ROOT / source) for source in SOURCES]
    options = handler["options"]
    options["extensions"] = [str(ROOT / path) for path in options["extensions"]]
    path = BUILD / "mkdocs.yml"
    path.write_text(yaml.safe_dump(configuration, sort_keys=False), encoding="utf-8")
    return path


def main() -> int:
    configuration = configure(write(BUILD / "docs"))
    program = Path(sys.executable).with_name("zensical")
    command = [str(program), "build", "-f", str(configuration), *sys.argv[1:]]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
