"""A small form of the grid of `docs/trust.md`: updates that are cut up equal those in one piece."""

import pytest
import split_grid


@pytest.mark.dist
def test_an_update_does_not_depend_on_how_it_is_cut():
    rows = split_grid.grid(micro_batches=(2,), masks=("uneven",))
    assert len(rows) == 1 * 2 * 2 * 1 * 3
    assert [row for row in rows if not row["deviation"] <= row["bound"]] == []


def test_a_dropped_mask_is_caught(monkeypatch):
    kd = split_grid.kd
    monkeypatch.setattr(
        split_grid, "kd", lambda z, t, target=None, **more: kd(z, t, target, **more) * 1
    )
    rows = split_grid.grid(micro_batches=(2,), ranks=(1,), masks=("uneven",), precisions=("fp32",))
    assert all(row["deviation"] > 1e-2 for row in rows)
