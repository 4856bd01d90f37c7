import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from potstill.acm import acms, forced, plots, profile, record_gates
from potstill.core.errors import ConfigError, ShapeError


def test_maps_put_tokens_where_they_lie(adaptive, images):
    grid, prefix = plots.grid_of(adaptive)
    assert (grid, prefix) == ((4, 4), 1)
    choices = torch.zeros(6, 17, dtype=torch.long)
    choices[2, 1 + 4 * 3 + 1] = 4  # row 3, column 1
    choices[:, 0] = 4  # the class token is not in the map
    with (
        torch.no_grad(),
        forced(adaptive, dict.fromkeys(acms(adaptive), choices)),
        record_gates(adaptive) as readings,
    ):
        adaptive(images)
    maps = plots.compute_maps(readings, grid, prefix)
    assert maps.shape == (6, 3, 4, 4)
    expected = torch.zeros(6, 3, 4, 4)
    expected[2, :, 3, 1] = 1
    assert torch.equal(maps, expected)
    with pytest.raises(ShapeError, match=r"'blocks.0.mlp' must have 0 \+ 4 x 4 tokens, got 17"):
        plots.compute_maps(readings, grid, 0)
    with pytest.raises(ConfigError, match=r"must have patch_embed\.grid_size, got a Linear"):
        plots.grid_of(torch.nn.Linear(2, 2))


def test_the_overlay_is_hot_where_the_cost_is():
    image = np.full((8, 8, 3), 128, dtype=np.uint8)
    heat = np.array([[0.0, 1.0], [0.0, 0.0]])
    drawn = plots.overlay(image, heat, (0.0, 1.0)).astype(int)
    assert drawn[:4, 4:].mean() > drawn[:4, :4].mean() + 50
    assert drawn.shape == (8, 8, 3)


def test_all_plots_draw(lively, vit, images, tmp_path):
    found = profile(lively, [images], blocks=1)
    pixels = torch.randint(0, 255, (6, 3, 16, 16), dtype=torch.uint8)
    with torch.no_grad(), record_gates(lively) as readings:
        lively(images)
    maps = plots.compute_maps(readings, (4, 4), 1)
    plots.heat_maps(pixels, maps.mean(1), list("abcdef")).savefig(tmp_path / "maps.png")
    figure = plots.module_maps(pixels, maps, list(readings))
    drawn = figure.axes[:-1]  # the last is the scale
    assert len(drawn) == 6 * (1 + 3)
    assert [axes.get_title() for axes in drawn[:4]] == ["", *readings]
    figure.savefig(tmp_path / "modules.png")
    errors = plots.token_errors(lively, vit, images, "blocks.0.mlp")
    assert errors.shape == (5, 6 * 17)
    rows = [{"budget": b, "ratio": b, "linear": b, "ms": 1.0} for b in (0.5, 0.25, 1.0)]
    drawings = {
        "gates": lambda axes: plots.draw_gate_histogram(axes, found.choices),
        "costs": lambda axes: plots.draw_cost_histogram(axes, found.images),
        "latency": lambda axes: plots.draw_latency(axes, rows),
        "errors": lambda axes: plots.draw_token_errors(axes, errors),
        "curves": lambda axes: plots.draw_curves(axes, {"a": [(2, 1), (1, 3)]}, "x", "y"),
    }  # fmt: skip
    for name, draw in drawings.items():
        figure = Figure(layout="constrained")
        draw(figure.subplots())
        figure.savefig(tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 3000
    torch.testing.assert_close(plots.cost_histogram(lively, images), found.images)
