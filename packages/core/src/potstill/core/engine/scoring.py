"""The scores of a validation, the same in every process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from potstill.core.engine.device import Engine
from potstill.core.engine.plan import Validation
from potstill.core.errors import ConfigError
from potstill.core.vocabulary.mean import Mean

__all__ = ["scores"]


def scores(validation: Validation, student: nn.Module, engine: Engine) -> dict[str, float]:
    """Score the student by name: each process its part of the items, or all the whole.

    Collective. A sharded student needs all processes for each forward, so all score the whole.

    Raises:
        ConfigError: A split value is no `Mean`.
    """
    if not validation.split:
        found = _named(validation, validation.score(student))
        return {name: float(value) for name, value in engine.agree(found).items()}
    alone = engine.world == 1 or engine.sharded
    part = slice(None) if alone else slice(engine.rank, None, engine.world)
    with engine.as_main(student):
        found = _named(validation, validation.score(student, part))
    for name, value in found.items():
        if not isinstance(value, Mean):
            raise ConfigError(
                f"Validation: {name!r} must be a Mean(total, count) where processes score a part "
                f"each, got {type(value).__name__}; return a Mean, or leave split=False where the "
                "score of the whole is no mean over items"
            )
    if alone:
        return {name: float(mean) for name, mean in found.items()}
    own = {name: (float(mean), float(mean.count)) for name, mean in found.items()}
    parts = engine.gather(own)
    counts = {name: sum(part[name][1] for part in parts) for name in own}
    return {
        name: sum(part[name][0] * part[name][1] for part in parts) / max(count, 1)
        for name, count in counts.items()
    }


def _named(validation: Validation, result: Any) -> dict[str, Any]:
    return dict(result) if isinstance(result, Mapping) else {validation.key or "score": result}
