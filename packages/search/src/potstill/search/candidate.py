"""A candidate, and all that a search finds about it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from potstill.search.costs import Latency
from potstill.search.space import Choice, label

__all__ = ["Candidate"]


@dataclass
class Candidate:
    """A candidate, and all that was found about it.

    Attributes:
        choice: Arguments of the builder.
        costs: Parameters, multiply-adds and megabytes; milliseconds where they were measured.
        latency: Time with its spread, where it was measured.
        excess: Bounds that it exceeds, as shares of them; empty where it is allowed.
        scores: Values of each score, one for each seed.
        rank: Mean rank by the score that made the shortlist; 0 is the best.
        accuracy: Accuracies after each rung of short distillations.
        error: Message of the builder, where it refused the choice.
    """

    choice: Choice
    costs: dict[str, float] = field(default_factory=dict)
    latency: Latency | None = None
    excess: dict[str, float] = field(default_factory=dict)
    scores: dict[str, list[float]] = field(default_factory=dict)
    rank: float = math.inf
    accuracy: list[float] = field(default_factory=list)
    error: str = ""

    @property
    def name(self) -> str:
        """The choice as a word."""
        return label(self.choice)
