"""What a student may cost; importing this is cheap."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated

from cyclopts import Parameter

from potstill.core import ConfigError

__all__ = ["Budget"]

UNITS = {"milliseconds": "ms", "megabytes": "MB", "macs": "", "parameters": ""}


def _short(name: str) -> Parameter:
    return Parameter(alias=f"--{name}")


@dataclass(frozen=True)
class Budget:
    """Upper bounds on what a student may cost; any mix of them.

    Attributes:
        milliseconds: Time of a call on this device, of the batch that is deployed.
        megabytes: Weights and buffers, in 10^6 bytes.
        macs: Multiply-adds of a call.
        parameters: Number of parameters.

    Raises:
        ConfigError: A bound that is not positive.

    Example:
        >>> budget = Budget(parameters=1000)
        >>> budget.excess({"parameters": 1500}), budget.excess({"parameters": 800})
        ({'parameters': 0.5}, {})
    """

    milliseconds: Annotated[float | None, _short("milliseconds")] = None
    megabytes: Annotated[float | None, _short("megabytes")] = None
    macs: Annotated[float | None, _short("macs")] = None
    parameters: Annotated[float | None, _short("parameters")] = None

    def __post_init__(self) -> None:
        for name, bound in self.bounds.items():
            if not bound > 0:
                raise ConfigError(f"Budget: {name} must be positive, got {bound}")

    @property
    def bounds(self) -> dict[str, float]:
        """The bounds that are given, by name."""
        return {name: bound for name, bound in asdict(self).items() if bound is not None}

    def excess(self, costs: Mapping[str, float]) -> dict[str, float]:
        """By how much costs exceed their bounds, as shares of them; empty where all is allowed.

        Costs that are not among ``costs`` are not judged.
        """
        ratios = {k: costs[k] / bound - 1 for k, bound in self.bounds.items() if k in costs}
        return {name: ratio for name, ratio in ratios.items() if not ratio <= 0}
