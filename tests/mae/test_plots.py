from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from potstill.core.errors import ShapeError
from potstill.mae import RandomMasking, plots


def drawn(figure, tmp_path, rows=()):
    path = plots.save(figure, tmp_path / "x.png", list(rows))
    pixels = np.asarray(Image.open(path).convert("L"))
    assert pixels.std() > 5, "the picture is blank"
    return path


def test_reconstruction_grid_shows_the_four_columns(tmp_path):
    images = torch.rand(3, 3, 32, 32)
    mask = RandomMasking(0.75)(3, (4, 4)).mask
    figure = plots.reconstruction_grid(images, mask, images.clone(), (4, 4))
    titles = [axes.get_title() for axes in figure.axes[:4]]
    assert titles == ["input", "visible (25%)", "reconstruction", "error"]
    shown = figure.axes[1].images[0].get_array()
    hidden = mask[0].view(4, 4).repeat_interleave(8, 0).repeat_interleave(8, 1).bool().numpy()
    np.testing.assert_allclose(shown[hidden], 0.85, atol=1e-6)
    expected = images[0].permute(1, 2, 0).numpy()[~hidden]
    np.testing.assert_allclose(shown[~hidden], expected, atol=1e-6)
    drawn(figure, tmp_path)
    with pytest.raises(ShapeError, match=r"mask \[3, 16\], got"):
        plots.reconstruction_grid(images, mask, images[:2], (4, 4))


def test_cka_heatmap_marks_the_aligned_blocks(tmp_path):
    values = torch.rand(3, 5)
    figure = plots.cka_heatmap({"before": values, "after": values + 0.1}, [(1, 4)])
    assert [a.get_title(loc="left") for a in figure.axes[:2]] == ["before", "after"]
    assert figure.axes[0].lines[0].get_xydata().tolist() == [[4, 1]]
    path = drawn(figure, tmp_path, plots.rows_of(values, "student", "teacher", "cka"))
    lines = path.with_suffix(".csv").read_text().splitlines()
    assert lines[0] == "student,teacher,cka"
    assert len(lines) == 16


def test_ratio_curve_has_two_axes(tmp_path):
    rows = [(0.5, [40, 42], [100, 110]), (0.75, [44, 45], [200, 210]), (0.9, [43, 43], [300, 280])]
    figure = plots.masking_ratio_curve(rows)
    top1, speed = figure.axes
    assert top1.lines[0].get_ydata().tolist() == [41, 44.5, 43]
    assert speed.lines[0].get_ydata().tolist() == [105, 205, 290]
    drawn(figure, tmp_path)


def test_alignment_error_map(tmp_path):
    errors = torch.arange(32.0).view(2, 16)
    figure = plots.alignment_error_map(torch.rand(2, 3, 32, 32), errors, (4, 4))
    assert figure.axes[1].images[1].get_array().tolist() == errors[0].view(4, 4).tolist()
    drawn(figure, tmp_path)


def test_step_time_stack_adds_up(tmp_path):
    times = {"all": {"teacher": 5.0, "student": 3.0}, "75 %": {"teacher": 1.0, "student": 1.0}}
    figure = plots.step_time_stack(times)
    assert [text.get_text() for text in figure.axes[0].texts] == ["8 ms", "2 ms"]
    drawn(figure, tmp_path)
