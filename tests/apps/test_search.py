"""The Pareto page of the search app."""

from pathlib import Path

import pytest

from potstill.search import Budget


def test_the_page_of_a_short_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from apps.search import pareto

    monkeypatch.setattr(pareto, "WIDTHS", (2, 4))
    monkeypatch.setattr(pareto, "DEPTHS", ((1, 1), (1, 2)))
    found = pareto.search(Budget(macs=3e5), tmp_path, steps=4, shortlist=2)
    assert found.best.costs["macs"] <= 3e5
    assert "parameters, used" in found.report().save(tmp_path).read_text()
