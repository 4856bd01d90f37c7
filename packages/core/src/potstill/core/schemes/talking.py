"""Talking Models: messages in both directions between the states of two models."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from potstill.core.criteria.feature import mse
from potstill.core.errors import ConfigError
from potstill.core.vocabulary.distiller import Distiller
from potstill.core.vocabulary.objective import Criterion, Losses, Objective
from potstill.core.vocabulary.output import tensor_of
from potstill.core.vocabulary.schedule import Weight
from potstill.core.vocabulary.tap import inject, tap

__all__ = ["TalkingDistiller"]


class TalkingDistiller(Distiller):
    """A student that tells the teacher its state, and learns from how the teacher goes on.

    Source: after Talking Models, 2023 (arXiv 2310.03188), whose losses and weights could not be
    read; these are ours. Lower states h and upper states H of both models; coders E and D
    over messages of ``message`` numbers. The student says ``E_s(h_s)``; the teacher hears
    ``D_t(E_s h_s)`` *in place of* its own h_t, goes on to H~_t and answers ``E_t(H~_t)``.

    Terms, all by `mse` unless given: ``told`` = (D_t E_s h_s, h_t), ``answer`` =
    (H_s, D_s E_t H~_t), ``state`` = (D_s E_t H_t, H_s without gradient), and ``task`` =
    (z_s, y). ``hatch run bench core talking`` measures it beside `kd` and labels alone.

    Args:
        student: Gives logits.
        teacher: Gives logits.
        lower: Names of the modules whose outputs are the lower states, of student and teacher.
        upper: The same of the upper states.
        widths: Widths of h_s, h_t, H_s and H_t, all [items width].
        message: Numbers in a message.
        weights: Weights of the terms, by name; those left out have none.
        task: Criterion of the term ``task``.

    Raises:
        ConfigError: Unknown terms, or a message of nothing.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        lower: tuple[str, str],
        upper: tuple[str, str],
        widths: tuple[int, int, int, int],
        message: int = 32,
        weights: dict[str, Weight] | None = None,
        task: Criterion = nn.functional.cross_entropy,
    ) -> None:
        weights = weights or dict.fromkeys(("told", "answer", "state", "task"), 1.0)
        if message < 1 or not set(weights) <= {"told", "answer", "state", "task"}:
            raise ConfigError(
                "TalkingDistiller: message must be at least 1 and weights those of told, answer, "
                f"state and task, got {message} and {sorted(weights)}"
            )
        criteria: dict[str, Criterion] = {
            "told": mse, "answer": _both_ways, "state": mse, "task": task,
        }  # fmt: skip
        super().__init__(
            student, Objective({n: (w, criteria[n]) for n, w in weights.items()}), teacher
        )
        h_s, h_t, H_s, H_t = widths
        # Parts of the objective: they train along, and stay out of the student.
        self.objective.criteria["coders"] = nn.ModuleDict(
            {"tell": nn.Linear(h_s, message), "hear": nn.Linear(message, h_t),
             "reply": nn.Linear(H_t, message), "read": nn.Linear(message, H_s)}
        )  # fmt: skip
        self.lower, self.upper = lower, upper

    def forward(self, batch: Any, step: int) -> Losses:
        """Route a batch ``(x, y)``."""
        assert self.teacher is not None
        x, y = batch
        coders: Any = self.objective.criteria["coders"]
        with tap(self.student, self.lower[0], self.upper[0]) as own:
            z_s = tensor_of(self.student(x))
        with tap(self.teacher, self.lower[1], self.upper[1]) as theirs:
            self.teacher(x)
        heard = coders.hear(coders.tell(own[self.lower[0]].output))
        said = inject(self.teacher, self.lower[1], heard)
        with tap(self.teacher, self.upper[1], stop=True) as went_on, said:
            self.teacher.model(x)
        reply = coders.read(coders.reply(went_on[self.upper[1]].output))
        state = coders.read(coders.reply(theirs[self.upper[1]].output))
        H_s = own[self.upper[0]].output
        given = {
            "told": (heard, theirs[self.lower[1]].output), "answer": (H_s, reply),
            "state": (state, H_s.detach()), "task": (z_s, y),
        }  # fmt: skip
        return self.objective(step, {n: given[n] for n in self.objective.at(step)})


def _both_ways(own: Tensor, reply: Tensor) -> Tensor:
    return mse(own, reply, teacher_grad=True)
