"""Which way of distilling passes a backdoor on: teachers and students of your own functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from potstill.audit.attacks.poison import Poisoned, check_target, poison, stamp
from potstill.audit.attacks.success import Success, inheritance, success
from potstill.audit.attacks.triggers import Trigger, triggered
from potstill.audit.kept import Kept
from potstill.core import Column, ConfigError, Report, fingerprint

__all__ = ["Bench", "Cell", "Data", "backdoor"]

MOST_LOST = 0.05  # accuracy that an attacked model may lose before its success means collapse

Train = Callable[[Tensor, Tensor, int], Any]
Distil = Callable[[Any, Tensor, Tensor, int], Any]


class Data(NamedTuple):
    """Three sets that share no item, inputs and classes each.

    Attributes:
        teacher: What the teacher trains on; this part is poisoned.
        student: The transfer set, with true labels.
        test: What success is measured on.
    """

    teacher: tuple[Tensor, Tensor]
    student: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


class Cell(NamedTuple):
    """One model.

    Attributes:
        arm: Name of the arm; ``teacher``, or ``labels`` for a student without a teacher.
        transfer: Inputs that the student saw: ``own``, or ``poisoned`` (some have the trigger).
        rate: Share of the teacher's training set that was poisoned.
        seed: Seed.
        found: Accuracy, success and base rate.
    """

    arm: str
    transfer: str
    rate: float
    seed: int
    found: Success


@dataclass(frozen=True)
class Bench:
    """All models of a bench, and the table of them.

    Attributes:
        cells: One entry for each model.
        seeds: The seeds.
    """

    cells: tuple[Cell, ...]
    seeds: tuple[int, ...]

    def of(self, arm: str, transfer: str, rate: float) -> list[Success]:
        """What was measured of an arm, by seed."""
        found = [c.found for c in self.cells if c[:3] == (arm, transfer, rate)]
        if not found:
            raise ConfigError(f"Bench.of: no arm {arm!r} with {transfer} inputs and rate {rate}")
        return found

    def rows(self) -> Iterator[tuple[str, str, float]]:
        """Arms in order."""
        return iter(dict.fromkeys(cell[:3] for cell in self.cells))

    def collapsed(self, arm: str, transfer: str, rate: float) -> bool:
        """Whether the attack cost so much accuracy that its success cannot be spoken of."""
        lost = [
            clean.accuracy - cell.accuracy
            for clean, cell in zip(
                self.of(arm, transfer, 0.0), self.of(arm, transfer, rate), strict=True
            )
        ]
        return sum(lost) / len(lost) > MOST_LOST

    def report(self, title: str = "Who inherits the backdoor", **options: Any) -> Report:
        """The table: success in percent beside its controls; "collapsed" where there is none."""
        report = Report(
            title,
            label="arm, inputs",
            columns={
                "poisoned": Column("%"), "accuracy": Column("%"), "success": Column("%"),
                "without trigger": Column("%"), "of a clean teacher": Column("%"),
                "of labels only": Column("%"), "inherited": Column("%"),
            },
            seed=f"{self.seeds[0]}-{self.seeds[-1]}",
            **options,
        )  # fmt: skip
        for arm, transfer, rate in self.rows():
            report.add(f"{arm}, {transfer}", **self._row(arm, transfer, rate))
        return report

    def _row(self, arm: str, transfer: str, rate: float) -> dict[str, Any]:
        found, clean = self.of(arm, transfer, rate), self.of(arm, transfer, 0.0)
        own = "own" if arm == "teacher" else transfer
        labels = self.of("labels", own, 0.0)
        values: dict[str, Any] = {
            "poisoned": 100 * rate,
            "accuracy": [100 * s.accuracy for s in found],
            "success": [100 * s.rate for s in found],
            "without trigger": [100 * s.base for s in found],
            "of a clean teacher": [100 * s.rate for s in clean],
            "of labels only": [100 * s.rate for s in labels],
        }
        if self.collapsed(arm, transfer, rate):
            values["success"] = "collapsed"
        elif rate and arm not in ("teacher", "labels"):
            teacher, no = self.of("teacher", "own", rate), self.of("teacher", "own", 0.0)
            each = zip(found, clean, teacher, no, strict=True)
            values["inherited"] = [100 * inheritance(*(s.rate for s in row)) for row in each]
        return values


def backdoor(
    train_teacher: Train,
    students: Mapping[str, Distil],
    data: Data,
    *,
    trigger: Trigger,
    target: int,
    rates: Sequence[float] = (0.0, 0.05),
    seeds: Sequence[int] = (0, 1, 2),
    transfer: float = 0.05,
    labels: Train | None = None,
    classes: int | None = None,
    bounds: tuple[float, float] | None = (0.0, 1.0),
    run: Path | str | None = None,
) -> Bench:
    """Poison teachers, distil students of them in several ways, and measure who inherits.

    Each student is distilled twice: on the user's own clean inputs, and on inputs of which a share
    has the trigger, labels true, as a stranger might supply them. Rate 0 is always
    there: the clean teacher is the control of all others. Audit trains nothing itself.

    Args:
        train_teacher: ``(x, y, seed) -> model`` that gives logits.
        students: By name ``(teacher, x, y, seed) -> model``; `potstill.audit.Learning.arm` makes
            one for each criterion of the core.
        data: Three disjoint sets.
        trigger: The trigger.
        target: Class of the attack.
        rates: Shares of the teacher's set that are poisoned.
        seeds: One teacher and one student of each kind for each seed.
        transfer: Share of the stranger's transfer inputs that has the trigger.
        labels: ``(x, y, seed) -> model``, the student without a teacher; ``train_teacher`` by
            default.
        classes: Number of classes; those of the teacher's labels by default.
        bounds: Range of the values, as of `triggered`.
        run: Folder in which finished models' figures are kept; a run found there is continued.

    Raises:
        ConfigError: No students or seeds, a name that is taken, or what `poison` refuses.
        CheckpointError: ``run`` holds another bench.
    """
    if not students or not seeds or {"teacher", "labels"} & set(students):
        raise ConfigError(
            "backdoor: students by name (not 'teacher' or 'labels') and seeds are needed, got "
            f"{list(students)} and {list(seeds)}"
        )
    classes = check_target("backdoor", target, data.teacher[1], classes)
    rates = tuple(dict.fromkeys([0.0, *rates]))
    shown = triggered(trigger, data.test[0], bounds)
    about = {
        "data": fingerprint(*data), "trigger": fingerprint(shown), "target": target,
        "transfer": transfer,
    }  # fmt: skip
    kept, cells = Kept(run, about), []
    for seed in seeds:
        x, y = data.student
        stamped = stamp(x, trigger, transfer, among=y != target, bounds=bounds, seed=seed)
        models = _Models(train_teacher, labels or train_teacher, seed)
        for rate in rates:
            models.sets[rate] = poison(
                *data.teacher, trigger, target, rate, classes=classes, bounds=bounds, seed=seed
            )
        for (arm, inputs, rate), make in models.all(students, {"own": x, "poisoned": stamped}, y):

            def piece(make: Callable[[], Any] = make) -> list[float]:
                return list(success(make(), *data.test, trigger, target, bounds=bounds))

            found = kept(f"{arm}-{inputs}-{rate:g}-{seed}", piece)
            cells.append(Cell(arm, inputs, rate, seed, Success(*found)))
    return Bench(tuple(cells), tuple(seeds))


class _Models:
    """What makes each model of one seed; a teacher is trained once, and only where it is needed."""

    def __init__(self, train: Train, labels: Train, seed: int) -> None:
        self.train, self.labels, self.seed = train, labels, seed
        self.sets: dict[float, Poisoned] = {}
        self.teacher = cache(self._teacher)

    def _teacher(self, rate: float) -> Any:
        return self.train(self.sets[rate].x, self.sets[rate].y, self.seed)

    def all(
        self, students: Mapping[str, Distil], inputs: Mapping[str, Tensor], y: Tensor
    ) -> Iterator[tuple[tuple[str, str, float], Callable[[], Any]]]:
        """Arm, inputs and rate of each model, and a function that trains it."""
        for name, x in inputs.items():
            yield ("labels", name, 0.0), partial(self.labels, x, y, self.seed)
        for rate in self.sets:
            yield ("teacher", "own", rate), partial(self.teacher, rate)
            for arm, distil in students.items():
                for name, x in inputs.items():
                    yield (arm, name, rate), partial(self._student, distil, rate, x, y)

    def _student(self, distil: Distil, rate: float, x: Tensor, y: Tensor) -> Any:
        return distil(self.teacher(rate), x, y, self.seed)
