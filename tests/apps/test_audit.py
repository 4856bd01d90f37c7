"""FF-G2M under two triggers."""

import runpy
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "apps" / "audit" / "graph.py"


def test_an_mlp_does_not_see_a_subgraph(tmp_path: Path) -> None:
    main = runpy.run_path(str(PROGRAM))["main"]
    (rows,) = main(["--epochs", "20", "--out", str(tmp_path)])
    students = [row for row in rows if row["arm"] != "teacher"]
    assert len(rows) == 12
    assert len(students) == 8
    for row in students:
        assert row["same bits"] == (row["trigger"] == "subgraph")
        if row["trigger"] == "subgraph":
            assert row["success"] == pytest.approx(row["without trigger"])
    assert all(not row["same bits"] for row in rows if row["arm"] == "teacher")
    assert "same" in (tmp_path / "report.md").read_text()
