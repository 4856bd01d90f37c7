"""Spaces that are too large to enumerate: candidates are proposed by optuna."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from potstill.core import BackendError
from potstill.search.space import Choice, Space, label

__all__ = ["explore"]


def explore(
    space: Space,
    evaluate: Callable[[Choice], tuple[float, float]],
    *,
    evaluations: int = 200,
    seed: int = 0,
) -> list[Choice]:
    """Propose candidates by NSGA-II (optuna, extra ``potstill-search[optuna]``), 20 a population.

    Source: Deb et al., IEEE TEVC 2002, with its constrained domination. A candidate that is
    proposed again is not evaluated again.

    Args:
        space: The candidates.
        evaluate: Score of a candidate, of which more is better, and by how much it violates the
            budget: at most 0 where it does not. A score that is not finite counts as the worst.
        evaluations: Different candidates to evaluate.
        seed: Seed of the proposals; the same one proposes the same, given the same scores.

    Returns:
        What was evaluated, in order.

    Raises:
        BackendError: optuna is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise BackendError(
            f"explore: spaces of {space.size} candidates need optuna, which could not be imported "
            f"({error}); pip install 'potstill-search[optuna]', or sample at random: sampler=random"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.NSGAIISampler(population_size=20, seed=seed)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    seen: dict[str, tuple[float, float]] = {}
    found: list[Choice] = []
    for _ in range(10 * evaluations):
        trial = study.ask()
        choice: dict[str, Any] = {
            name: values[trial.suggest_categorical(name, range(len(values)))]
            for name, values in space.choices.items()
        }
        valid, name = space.valid is None or space.valid(**choice), label(choice)
        if valid and name not in seen:
            seen[name] = evaluate(choice)
            found.append(choice)
        score, excess = seen.get(name, (-math.inf, math.inf))
        trial.set_constraint("budget", min(excess, 1e9))
        study.tell(trial, max(score, -1e300) if math.isfinite(score) else -1e300)
        if len(found) == evaluations:
            break
    return found
