import base64
import csv
import html.parser
import io
import json
import re

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread
from rich.console import Console

from potstill.core.errors import ConfigError, DataError, ShapeError
from potstill.core.measure.report import Column, Report, Section, data_uri, markdown, number, page


@pytest.fixture
def report():
    report = Report(
        "Digits <1>",
        summary="A & B.",
        columns={"accuracy": Column("%", best="max"), "time": Column("ms", best="min", digits=3)},
        seed="0-1",
        data="abc",
    )
    report.add("teacher", accuracy=[92.0, 93.0], time=1.5)
    report.add("student", accuracy=[91.0, 91.5], time=0.125, note="no edges")
    report.add("theirs", accuracy=99.0, published="Them 2023, Table 1")
    return report


def test_units_are_shown_and_not_taken_for_markup():
    report = Report("Distances [dB]", columns={"quality": Column("dB")})
    report.add("a", quality=30.0)
    out = io.StringIO()
    report.show(Console(file=out, width=60))
    assert "Distances [dB]" in out.getvalue()
    assert "quality [dB]" in out.getvalue()


def test_markdown_shows_mean_spread_and_sources(report):
    assert report.markdown().splitlines() == [
        "| method             | accuracy [%] | time [ms] | note     |",
        "|--------------------|--------------|-----------|----------|",
        "| teacher            | 92.50 ± 0.71 | 1.50      |          |",
        "| student            | 91.25 ± 0.35 | 0.125     | no edges |",
        "| theirs (published) | 99.00        |           |          |",
        "",
        "Published figures: theirs, Them 2023, Table 1.",
    ]


def test_csv_has_full_precision_and_provenance_of_own_rows_only(report):
    rows = list(csv.DictReader(io.StringIO(report.csv())))
    teacher, student, theirs = rows
    assert float(teacher["accuracy"]) == 92.5
    assert float(teacher["accuracy std"]) == pytest.approx(0.5**0.5, rel=1e-15)
    assert (teacher["accuracy n"], student["time"], student["note"]) == ("2", "0.125", "no edges")
    assert (teacher["seed"], teacher["data"], teacher["torch"]) == ("0-1", "abc", torch.__version__)
    assert (theirs["published"], theirs["torch"]) == ("Them 2023, Table 1", "")


def test_bold_is_for_the_best_of_our_own(report):
    assert re.findall(r'class="number best">([^<]*)<', report.page()) == ["92.50 ± 0.71", "0.125"]


def test_terminal_table(report):
    out = io.StringIO()
    report.show(Console(file=out, width=120))
    for text in ("Digits <1>", "92.50 ± 0.71", "theirs (published)", "Them 2023"):
        assert text in out.getvalue()


def test_a_table_that_is_too_wide_is_told_row_by_row(report):
    """On 80 columns no cell is broken: long names stay whole, and empty cells are left out."""
    report.add("a teacher with a name that is as long as those of the tour", accuracy=90.0, time=2)
    out = io.StringIO()
    report.show(Console(file=out, width=80))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    where = lines.index("a teacher with a name that is as long as those of the tour")
    assert lines[where + 1].strip() == "accuracy [%] 90.00, time [ms] 2"
    assert "  accuracy [%] 91.25 ± 0.35, time [ms] 0.125, note no edges" in map(str.rstrip, lines)
    assert "\x1b" not in out.getvalue()


VOID = {"meta", "img", "input", "link", "br", "path", "use", "rect"}


class Checker(html.parser.HTMLParser):
    """Collects open tags and every address."""

    def __init__(self):
        super().__init__()
        self.open, self.addresses = [], []

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)
        self.addresses += [v for k, v in attributes if k in ("src", "href", "xlink:href", "srcset")]

    def handle_startendtag(self, tag, attributes):
        self.addresses += [v for k, v in attributes if k in ("src", "href", "xlink:href", "srcset")]

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


def full(report):
    report.text("One.\n\nTwo <b>.", "Text & title")
    report.table(["a", "b"], [["x", 1], ["y", 2.5]], "Other")
    report.bars("accuracy")
    report.scatter("time", "accuracy", log=True)
    report.plot(lambda axes: axes.plot([1, 2]), "A curve")
    figure = Figure(layout="constrained")
    figure.add_subplot().plot([1, 2])
    report.figure(figure, "Theirs")
    report.images({"noise": np.random.default_rng(0).random((8, 8))}, pixels=True)
    report.html("<button onclick='x()'>go</button>", "Raw")
    return report


def test_page_is_well_formed_escaped_and_self_contained(report):
    text = full(report).page()
    checker = Checker()
    checker.feed(text)
    assert checker.open == []
    assert all(address.startswith(("data:image/", "#")) for address in checker.addresses)
    assert sum(address.startswith("data:") for address in checker.addresses) == 1
    assert "default-src 'none'" in text
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text
    assert "Digits &lt;1&gt;" in text
    assert "Two &lt;b&gt;." in text
    assert "<button onclick='x()'>go</button>" in text
    assert text.count("currentColor") > 10
    assert "#010203" not in text
    assert text.count('role="img"') == 4


def test_equal_reports_make_equal_pages(report):
    twin = Report("Digits <1>")
    twin.__dict__.update(report.__dict__ | {"_sections": [], "_plots": []})
    assert full(report).page() == full(twin).page()


def test_save_writes_everything_whole(report, tmp_path):
    index = full(report).save(tmp_path / "out")
    names = sorted(path.name for path in index.parent.iterdir())
    assert names == [
        "index.html", "plot-1.png", "plot-2.png", "plot-3.png", "provenance.json", "report.md",
        "rows.csv",
    ]  # fmt: skip
    assert json.loads((index.parent / "provenance.json").read_text()) == report.provenance
    assert "![A curve](plot-3.png)" in (index.parent / "report.md").read_text()
    image = imread(index.parent / "plot-1.png")
    assert image[..., :3].min() < 0.5 < image[0, 0, :3].min()  # something dark on white


def decoded(uri):
    return imread(io.BytesIO(base64.b64decode(uri.partition(",")[2])), format="png")


def test_pictures_keep_their_pixels(tmp_path):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    for given in (image, image / 255.0, torch.tensor(image).permute(2, 0, 1)):
        np.testing.assert_array_equal((decoded(data_uri(given))[..., :3] * 255).round(), image)
    gray = decoded(data_uri(np.array([[0.0, 0.5], [1.0, 2.0]])))
    np.testing.assert_array_equal((gray[..., 0] * 255).round(), [[0, 128], [255, 255]])
    (tmp_path / "a.jpg").write_bytes(b"jpeg")
    assert data_uri(tmp_path / "a.jpg") == "data:image/jpeg;base64,anBlZw=="


def test_bad_input(report, tmp_path):
    with pytest.raises(ShapeError, match=r"got \[2, 2, 2\]"):
        data_uri(np.zeros((2, 2, 2)))
    with pytest.raises(DataError, match="must be an existing PNG"):
        data_uri(tmp_path / "none.png")
    with pytest.raises(ConfigError, match="accuracy must hold a value for each seed"):
        report.add("empty", accuracy=[])
    with pytest.raises(ConfigError, match="did you mean 'accuracy'"):
        report.bars("acuracy")
    with pytest.raises(ConfigError, match="column must be in a row"):
        report.scatter("time", "speed")


def test_scalar_tensors_are_numbers():
    report = Report("x")
    report.add("a", value=torch.tensor(2.5), other=np.float32(0.5))
    assert "| a      | 2.500 | 0.5" in report.markdown()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (0.0, "0"), (-1.5, "-1.500"), (1e-7, "1e-07"), (2.5e12, "2.5e+12"),
        (float("nan"), "nan"), (999.96, "1,000.0"), (12345.6, "12,346"), (0.05, "0.05"),
    ],
)  # fmt: skip
def test_numbers(value, text):
    assert number(value) == text


def test_markdown_cells_cannot_break_the_table():
    assert markdown(["a"], [["x|y\nz"]]).splitlines()[-1] == r"| x\|y z |"


def test_bare_page():
    assert "<footer>" not in page("t", [Section("s", "<p>x</p>")])
