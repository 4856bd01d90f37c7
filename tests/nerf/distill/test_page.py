"""Reports: their files, the matrix, and pages that are drawn from files alone."""

import numpy as np
import pytest
import torch

from potstill.core.command.cli import main
from potstill.core.errors import DataError
from potstill.nerf import load_field, save_field
from potstill.nerf.distill.convert import convert
from potstill.nerf.distill.page import conversion_page, error_map, matrix_of
from potstill.nerf.distill.results import load_conversion, picture, pixels


@pytest.fixture(scope="module")
def report(teacher, prior, sizes, scene):
    options = {"config": sizes["hash"], "samples": 500, "progress": False, "every": 4}
    return convert(teacher, "hash", prior, steps=12, truth=scene.test, **options)[1]


def test_a_report_comes_back_from_its_file(report, tmp_path):
    assert load_conversion(report.save(tmp_path / "conversion.json")) == report
    assert [step for step, _ in report.curve("teacher")] == sorted(
        step for step, _ in report.curve("truth")
    )
    assert len(report.curve("teacher")) == 3
    assert {"teacher", "truth"} == set(report.scores)
    assert report.provenance["torch"] == torch.__version__
    good = (tmp_path / "conversion.json").read_text()
    for text in ("{}", "[" * 20_000, good.replace('"occupied": ', '"occupied": "a", "was": ')):
        (tmp_path / "other.json").write_text(text)
        with pytest.raises(DataError, match=r"other\.json"):
            load_conversion(tmp_path / "other.json")


def test_pictures_survive_as_text():
    image = torch.rand(5, 7, 3)
    again = pixels(picture(image))
    assert np.abs(again - image.numpy()).max() <= 0.5 / 255 + 1e-6
    dark = error_map(again, again)
    assert dark.shape == (5, 7, 3)
    assert dark.max() < 0.1
    assert error_map(np.zeros((2, 2, 3)), np.ones((2, 2, 3))).min() > 0.7


def test_the_matrix_has_a_place_for_each_pair(report):
    other = load_like(report, teacher="hash", student="vm", scores={"teacher": 20.0})
    names, values = matrix_of([report, other])
    assert names == ["hash", "vm"]
    assert values[0, 1] == 20
    assert np.isnan(values[1]).all()


def load_like(report, **changes):
    from dataclasses import replace

    return replace(report, **changes)


def test_the_page_is_drawn_from_files_and_says_what_a_student_cannot(report, tmp_path):
    first = report.save(tmp_path / "a.json")
    second = load_like(report, teacher="vm").save(tmp_path / "b.json")
    page = conversion_page([load_conversion(p) for p in (first, second)], tmp_path / "page")
    text = page.read_text()
    assert "does not pass its teacher" in text
    assert "Any into any" in text
    assert text.count("data:image/png") == 2 * (3 * 3 + 3 * 5) + 1  # and the matrix
    assert (tmp_path / "page" / "plot-1.png").stat().st_size > 0
    with pytest.raises(DataError, match="must hold at least one"):
        conversion_page([], tmp_path)


def test_the_command_converts_where_no_image_is(teacher, prior, tmp_path, capsys):
    run = tmp_path / "teacher"
    save_field(teacher, run / "field.safetensors")
    prior.save(run / "prior.json")
    out = tmp_path / "student"
    small = ["--size.resolution", "16", "--samples", "400", "--steps", "6", "--every", "3"]
    box = [f"--erase={v}" for v in (-1, -1, -1, 0, 1, 1)]
    assert main(["nerf", "convert", str(run), "--kind", "cp", "--out", str(out), *small, *box]) == 0
    assert "PSNR to the teacher" in capsys.readouterr().out
    for name in ("field.safetensors", "prior.json", "conversion.json", "index.html", "config.yaml"):
        assert (out / name).stat().st_size > 0
    assert load_field(out)[0].activation.low == -100
    again = tmp_path / "again"  # students are teachers of others
    assert main(["nerf", "convert", str(out), "--kind", "vm", "--out", str(again), *small]) == 0
    assert main(["nerf", "report", str(out), str(again), "--out", str(tmp_path / "page")]) == 0
    assert (tmp_path / "page" / "index.html").stat().st_size > 0
    assert (
        main(["nerf", "render", str(again), "--frames", "1", "--out", str(tmp_path / "x.png")]) == 0
    )
    assert (tmp_path / "x.png").stat().st_size > 0


def test_the_command_refuses(teacher, tmp_path, capsys):
    save_field(teacher, tmp_path / "field.safetensors")
    assert main(["nerf", "convert", str(tmp_path), "--out", str(tmp_path / "a")]) == 1
    assert "prior.json must be a pose prior" in capsys.readouterr().err
    assert main(["nerf", "convert", str(tmp_path), "--steps", "0"]) == 2
    assert "Training: steps must be positive, got 0" in capsys.readouterr().err
    assert main(["nerf", "convert", str(tmp_path), "--hand-over", "0.5"]) == 2
    assert "with data whose images it learns from" in capsys.readouterr().err
    assert main(["nerf", "convert", str(tmp_path), "--erase", "1", "--erase", "2"]) == 2
    assert "must be six numbers" in " ".join(capsys.readouterr().err.split())
