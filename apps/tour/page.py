"""The page of the tour: one table, and a section a domain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from apps.tour import widgets
from apps.tour.tour import Outcome
from potstill.core.measure import Load
from potstill.core.measure.bench import BUSY
from potstill.core.measure.report import Column, Report, number

__all__ = ["page"]


def page(outcomes: Sequence[Outcome], command: str, load: Load, seconds: float) -> Report:
    """The table of all and a section of each."""
    done = [outcome for outcome in outcomes if outcome.costs]
    report = Report(
        "The potstill tour",
        summary=f"{len(done)} teachers and their students, trained and measured in {seconds:.0f} "
        "seconds, on data that comes with the packages.",
        label="model",
        columns={
            "quality": Column(),
            "parameters": Column(),
            "MACs": Column("M", digits=3),
            "time": Column("ms", digits=3),
            "memory": Column("MiB", digits=3),
            "speed-up": Column("x", digits=3),
        },
        device="cpu",
        seed=0,
    )
    report.provenance = {"command": command, **report.provenance}
    report.html(widgets.assets() + _notes(load))
    for outcome in outcomes:
        _add_rows(report, outcome)
        report.html(*_section(outcome))
    return report


def _add_rows(report: Report, outcome: Outcome) -> None:
    told = outcome.chapter
    if told is None or outcome.costs is None or outcome.speedup is None:
        why = f"not installed: {outcome.install}" if outcome.install else f"failed: {outcome.error}"
        report.add(f"{outcome.name}: {why}")
        return
    for role, side, costs in zip(
        told.roles, (told.teacher, told.student), outcome.costs, strict=True
    ):
        figures: dict[str, Any] = {
            "quality": f"{number(side.quality)} {told.unit}",
            "parameters": costs.parameters,
            "MACs": costs.macs / 1e6,
            "time": costs.milliseconds,
        }
        if math.isfinite(costs.mebibytes):
            figures["memory"] = costs.mebibytes
        if side is told.student:
            figures["speed-up"] = outcome.speedup.value
        report.add(f"{outcome.name} {role}: {side.name}", **figures)


def _section(outcome: Outcome) -> tuple[str, str]:
    """HTML and heading of a chapter."""
    told = outcome.chapter
    if told is None or outcome.costs is None or outcome.speedup is None:
        if outcome.install:
            text = f'<p class="command"><code>{escape(outcome.install)}</code></p>'
            return text, f"{outcome.name}: not installed"
        return f'<pre class="error">{escape(outcome.trace)}</pre>', f"{outcome.name}: failed"
    teacher, student = outcome.costs
    faster = outcome.speedup
    qualities = (number(side.quality) for side in (told.teacher, told.student))
    facts = {
        f"{told.measure}, {' → '.join(told.roles)}": f"{' → '.join(qualities)}\u00a0{told.unit}",
        f"as fast ({faster.low:.1f} to {faster.high:.1f}), {told.work}": f"{faster.value:.1f} ×",
        "of the parameters": _share(student.parameters, teacher.parameters),
        "of the multiply-adds": _share(student.macs, teacher.macs),
    }
    by_hand = f'<p class="command">On your own data: <code>{escape(told.command)}</code></p>'
    return widgets.strip(facts) + told.html + by_hand, told.title


def _share(part: float, whole: float) -> str:
    share = 100 * part / whole
    return f"{share:.1f} %" if share < 10 else f"{share:.0f} %"


def _notes(load: Load) -> str:
    busy = (
        f" Other programs used {load.others:.1f} cores meanwhile, so take times as ratios only."
        if load.others > BUSY
        else ""
    )
    return widgets.paragraph(
        "Times are medians, both models in turns; memory is the most that torch held during one "
        "call, weights left out; multiply-adds are of products and convolutions, without gathers "
        f"and sparse products.{busy}"
    )
