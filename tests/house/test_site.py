"""The documentation: every criterion has its page, every module its reference, and it builds."""

import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from workspace import DOMAINS, ROOT, SOURCES

PARTS = {  # of criteria, documented on one page
    *("RowOptions", "AttentionProjector", "Projected", "Resize", "conv1x1", "mlp"),
    *("LelpHead", "Subclasses", "lelp_subclasses", "lelp_targets", "null_space_projector"),
    *("RatioNet", "tgeo_state", "tgeo_reduced_state"),
}


@pytest.fixture(scope="module")
def site():
    spec = importlib.util.spec_from_file_location("site_generator", ROOT / "tools" / "site.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["site_generator"] = module  # dataclasses look it up
    spec.loader.exec_module(module)
    return module


def test_every_criterion_states_formula_and_source(site) -> None:
    found = list(site.criteria())
    named = {c.name for c in found if c.public == "potstill.core.criteria"}
    assert named == set(importlib.import_module("potstill.core.criteria").__all__)
    without = {c.name for c in found if not (c.source and c.formulas)}
    unclear = without - PARTS
    assert unclear <= {"entropy_weight", "row_std"}, unclear  # measures of rows, after a paper


def test_formula_and_source_are_read_from_a_docstring(site) -> None:
    text = """Match something.

    Source: Someone et al., Venue 2020, Eq. (3). In the code's form, with
    ``u = z / 2``: ``L = mean_n
    (u_s - u_t)^2``. Not ``T ** 2``.

    Args:
        z: Not ``x = y``.
    """
    docstring = re.sub(r"^ {4}", "", text, flags=re.MULTILINE)
    criterion = site.Criterion("c", "m", "potstill.core.criteria", docstring, "")
    assert criterion.source == "Someone et al., Venue 2020, Eq. (3)."
    assert criterion.formulas == ["u = z / 2", "L = mean_n (u_s - u_t)^2"]
    page = site.criterion_page(criterion)
    assert "mean<sub><i>n</i></sub> (<i>u</i><sub><i>s</i></sub>" in page
    assert "::: m.c" in page
    bare = site.Criterion("c", "m", "p.q", "Do it.", "All.\n\nSource of all: Others, 2021.\n")
    assert (bare.source, bare.formulas) == ("Others, 2021.", [])


def test_formulas_are_set(site) -> None:
    said = site.formula_html("L = T ** 2 mean_n KL(p_t || q_s) <= sum_{c != y} beta^2 sqrt(d)")
    assert "<i>T</i> <sup>2</sup>" in said.replace("</i><sup>", "</i> <sup>")
    assert "KL(<i>p</i><sub><i>t</i></sub> ∥ <i>q</i><sub><i>s</i></sub>) ≤" in said
    assert "∑<sub><i>c</i> != <i>y</i></sub> <i>β</i><sup>2</sup> √(<i>d</i>)" in said
    assert site.formula_html("a < b") == "<i>a</i> &lt; <i>b</i>"


def test_pictures_of_the_apps_are_in_the_gallery(site, tmp_path) -> None:
    page = site.gallery(tmp_path)
    shown = {target.stem for target in (tmp_path / "gallery").iterdir()}
    assert {"sr-page", "nerf-conversions", "tour-tour", "graph-page"} <= shown
    assert page.count("![") == len(shown)


@pytest.mark.parametrize("name", DOMAINS)
def test_every_public_module_is_in_the_reference(site, name: str) -> None:
    assert (ROOT / "docs" / "api" / f"{name}.md").exists()
    listed = re.findall(r"^::: (potstill\.[\w.]+)$", site.reference(name), re.MULTILINE)
    assert len(listed) == len(set(listed))
    package = importlib.import_module(f"potstill.{name}")
    homes = {getattr(getattr(package, public), "__module__", None) for public in package.__all__}
    assert {home for home in homes if home and home.startswith(f"potstill.{name}.")} <= {
        *listed,
        *(criterion.module for criterion in site.criteria()),
    }


def test_generated_pages_reach_the_navigation(site, tmp_path: Path) -> None:
    navigation = site.write(tmp_path / "docs")
    listed = set(re.findall(r"[\w/-]+\.md", str(navigation)))
    assert (
        "::: potstill.mae.training.distiller" in (tmp_path / "docs" / "api" / "mae.md").read_text()
    )
    written = {p.relative_to(tmp_path / "docs").as_posix() for p in tmp_path.rglob("*.md")}
    committed = {p.relative_to(ROOT / "docs").as_posix() for p in ROOT.glob("docs/**/*.md")}
    assert written - committed == listed
    records = {p.stem for p in (ROOT / "benchmarks" / "results").glob("*.csv")}
    assert {f"results/{name}.md" for name in records} <= listed


def test_results_are_one_block_of_html(site) -> None:
    """An empty line inside would end it, and Markdown would read the rest."""
    for record in (ROOT / "benchmarks" / "results").glob("*.csv"):
        page = site.results_page(record)
        for block in re.findall(r"<(?:figure|div).*?</(?:figure|div)>", page, re.DOTALL):
            assert "\n\n" not in block, record.name
        assert f"hatch run bench {record.stem}" in page


def test_a_miss_is_bold_and_the_machine_says_what_it_can(site, tmp_path) -> None:
    record = ROOT / "benchmarks" / "results" / "sr.csv"
    head, *rows = record.read_text().splitlines()
    missed = next(row for row in rows if ",missed," in row)
    copy = tmp_path / "sr.csv"
    copy.write_text("\n".join([head, missed, next(row for row in rows if ",met," in row)]) + "\n")
    copy.with_suffix(".md").write_text("# sr\n\n## Why\n\n[R](../../packages/sr/README.md)\n")
    page = site.results_page(copy)
    assert page.count("<strong>missed</strong>") == 1
    assert "<strong>met" not in page
    assert "Processor x2 (AVX-512, AMX), torch" in page
    assert page.endswith(f"### Why\n\n[R]({site.REPOSITORY}/blob/main/packages/sr/README.md)\n")


def test_it_builds_without_a_warning(site, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(site, "BUILD", tmp_path)
    configuration = site.configure(site.write(tmp_path / "docs"))
    values = yaml.safe_load(configuration.read_text())
    pages = {p.relative_to(tmp_path / "docs").as_posix() for p in tmp_path.rglob("*.md")}
    assert set(re.findall(r"[\w/-]+\.md", str(values["nav"]))) == pages
    assert [path for path in SOURCES if path not in str(values["plugins"])] == []
    program = Path(sys.executable).with_name("zensical")
    if not program.exists():
        pytest.skip("zensical is not installed")
    command = [program, "build", "--strict", "-f", configuration]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    page = (tmp_path / "site" / "criteria" / "core-kd" / "index.html").read_text()
    assert "Hinton, Vinyals and Dean" in page
