"""Inputs and outputs of layers on 8-bit grids: calibrated, then constant."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from potstill.core import ConfigError
from potstill.quant.post.inputs import pass_through
from potstill.quant.weights.activations import (
    SIDES,
    ActivationGrid,
    activation_grids,
    round_activations,
)
from potstill.quant.weights.lower import lowered

__all__ = ["calibrate"]

_SAMPLES = 1 << 16  # values of an input that a percentile is taken over


def calibrate(
    student: nn.Module,
    inputs: Iterable[Any],
    *,
    percentile: float = 100.0,
    keep: Iterable[str] = (),
    outputs: bool = False,
) -> list[str]:
    """Put the inputs of the lowered layers of a student onto 8-bit grids, in place.

    Each layer gets an `ActivationGrid` with the range of its first input over ``inputs``. It is
    part of the student from then on: trained with, saved with it, and gone after `bake`.

    Args:
        student: A lowered model.
        inputs: Inputs of the model: tensors, tuples or mappings.
        percentile: Share of values inside of the range, in percent; 100 takes the extremes.
        keep: Paths of layers whose inputs stay in full precision.
        outputs: Round the outputs of these layers too: onnxruntime multiplies 8-bit integers only
            where input, weight and output of a convolution are rounded.

    Returns:
        Paths of lowered layers whose inputs stay in full precision, since another module's forward
        uses their weights.

    Raises:
        ConfigError: A model that is not lowered or was calibrated before, or a percentile outside
            of (50, 100].
        DataError: No inputs, or an input of a layer that is not finite.
    """
    layers = {each.path: each.module for each in lowered(student) if each.path not in set(keep)}
    before = activation_grids(student)
    if not layers or before:
        raise ConfigError(
            "calibrate: student must be a lowered model without calibrated inputs, got "
            f"{len(layers)} lowered layers and {len(before)} calibrated ones"
        )
    if not 50 < percentile <= 100:
        raise ConfigError(f"calibrate: percentile must be in (50, 100], got {percentile}")
    bypassed: list[str] = []
    for side in SIDES[: 1 + outputs]:
        ranges: dict[str, list[Tensor]] = {path: [] for path in layers}

        def see(path: str, x: Tensor, ranges: dict[str, list[Tensor]] = ranges) -> None:
            ranges[path].append(_range(x.detach().float().reshape(-1), percentile))

        seen = side == "output"
        bypassed = pass_through("calibrate", student, inputs, layers, see, outputs=seen)
        for path, module in layers.items():
            if found := ranges[path]:
                both = torch.stack(found)
                grid = ActivationGrid(both[:, 0].amin(), both[:, 1].amax())
                round_activations(module, side, grid)
    return bypassed


def _range(flat: Tensor, percentile: float) -> Tensor:
    if percentile == 100:
        return torch.stack(flat.aminmax())
    shares = torch.tensor([100 - percentile, percentile], device=flat.device) / 100
    return flat[:: max(1, len(flat) // _SAMPLES)].quantile(shares)
