"""What ``potstill search costs`` and ``check`` do."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from potstill.core import ConfigError, DataError, Report, generator, reading
from potstill.core.engine import resolve_device
from potstill.search.candidate import Candidate
from potstill.search.check import agreement, agreement_report, column, read_table
from potstill.search.costs import measure, static_costs
from potstill.search.report import costs_report
from potstill.search.scores import NEED_TEACHER, SCORES
from potstill.search.space import Space

__all__ = ["check_table", "measure_costs"]


def measure_costs(
    space: Space | str | Path,
    shape: Sequence[int],
    *,
    candidates: int = 50,
    device: str = "auto",
    seed: int = 0,
) -> Report:
    """What candidates cost, as a table; timings that are not steady are marked.

    Args:
        space: A space, or its file.
        shape: Shape of what a call gets.
        candidates: Largest number of candidates; larger spaces are sampled.
        device: Device.
        seed: Seed of the sample.

    Raises:
        ConfigError: No candidate that can be built.
    """
    space = space if isinstance(space, Space) else Space.load(space)
    where = resolve_device(device)
    example = torch.rand(*shape, generator=generator("example", seed)).to(where)
    found = []
    for choice in space.sample(candidates, seed):
        one = Candidate(choice)
        try:
            model = space.make(choice, seed).to(where)
        except Exception as error:  # whatever a builder of somebody raises
            one.error = f"{type(error).__name__}: {error}"
        else:
            one.latency = measure(model, example)
            one.costs = static_costs(model, example)
            one.costs["milliseconds"] = one.latency.milliseconds
        found.append(one)
    if all(one.error for one in found):
        raise ConfigError(
            f"costs: no candidate can be built; {found[0].name}: {found[0].error}"
            if found
            else "costs: space must hold a candidate, got none"
        )
    title = f"Costs of {len(found)} of {space.size} candidates"
    return costs_report(found, title, seed=seed, device=str(where))


def check_table(
    table: str | Path,
    truth: str,
    scores: Sequence[str] = (),
    *,
    cost: str | None = None,
    space: Space | str | Path | None = None,
    shape: Sequence[int] = (1, 3, 32, 32),
    seed: int = 0,
) -> Report:
    """How well scores rank measured accuracies.

    Args:
        table: A table for `read_table`, or the folder of a search: the first rung's accuracies are
            its column ``half``, the last one's ``whole``.
        truth: Column with the accuracy.
        scores: Columns to compare; all other numbers by default. With a space also scores of
            untrained students by name: synflow, naswot, jacob_cov.
        cost: Column with the cost, for the regret under a budget.
        space: A space, or its file, whose choices the rows fill: parameters and macs are added.
        shape: Shape of what a call gets.
        seed: Seed of the bootstrap.

    Raises:
        DataError: A table or a column that is not there.
        ConfigError: Rows that do not fill the choices of the space.
    """
    path = Path(table)
    rows = _rows_of_search(path) if path.is_dir() else read_table(path)
    if space is not None:
        space = space if isinstance(space, Space) else Space.load(space)
        own = [n for n in scores if n in SCORES and n not in NEED_TEACHER and n not in rows[0]]
        rows = [{**row, **_counted(space, row, shape, own, seed)} for row in rows]
    chosen = list(scores) or [
        name for name in dict.fromkeys(name for row in rows for name in row)
        if name != truth and all(isinstance(row.get(name), int | float | None) for row in rows)
    ]  # fmt: skip
    values = {name: column(rows, name, path) for name in chosen}
    values["random"] = torch.rand(len(rows), generator=generator("random", seed)).tolist()
    found = agreement(
        values, column(rows, truth, path), seed=seed,
        cost=None if cost is None else column(rows, cost, path),
    )  # fmt: skip
    return agreement_report(found, f"{truth} of {path.name}", seed=seed)


def _counted(
    space: Space, row: dict[str, Any], shape: Sequence[int], names: Sequence[str], seed: int
) -> dict[str, float]:
    """Size of the student of a row, and scores of it with fresh weights on noise."""
    if missing := [name for name in space.choices if name not in row]:
        raise ConfigError(f"check: rows must have a column {missing[0]!r} for the space, got {row}")
    model = space.make({name: row[name] for name in space.choices}, seed)
    costs = static_costs(model, torch.zeros(*shape))
    noise = torch.randn(16, *shape[1:], generator=generator("noise", seed)), None
    found = {name: SCORES[name](model, noise) for name in names}
    return {**found, "parameters": costs["parameters"], "macs": costs["macs"]}


def _rows_of_search(folder: Path) -> list[dict[str, Any]]:
    """What a search measured, by candidate; those that were distilled."""
    path = folder / "search.jsonl"
    if not path.is_file():
        raise DataError(f"check: {folder} must hold the search.jsonl of a search, got none")
    found: dict[str, dict[str, Any]] = {}
    with reading(path, "the lines of a search"):
        for line in path.read_text(encoding="utf-8").splitlines()[1:]:
            stage, name, value = json.loads(line)
            row = found.setdefault(name, {})
            if stage == "costs":
                row.update(value.get("costs", {}))
            elif stage == "latency":
                row["milliseconds"] = value["milliseconds"]
            elif stage.startswith("score "):
                row[stage.removeprefix("score ")] = sum(value) / len(value)
            else:
                row[{"rung 0": "half", "rung 1": "whole"}[stage]] = value
    return [row for row in found.values() if "half" in row]
