"""How far a trigger moves a model, always beside what happens without it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from potstill.audit.attacks.poison import check_target
from potstill.audit.attacks.triggers import Trigger, triggered
from potstill.core import ConfigError, ShapeError
from potstill.core.adapters import tensor_of

__all__ = ["Bias", "Success", "bias", "check_classes", "inheritance", "outputs", "reach", "success"]


class Success(NamedTuple):
    """What a model does with and without a trigger; all are shares in [0, 1].

    Attributes:
        accuracy: Accuracy on clean items.
        rate: P(target | triggered item of another class): the attack's success.
        base: P(target | the same items without the trigger): what it is to be compared with.
    """

    accuracy: float
    rate: float
    base: float


class Bias(NamedTuple):
    """What a model does with a slice; shares in [0, 1].

    Attributes:
        rate: P(target | item of the slice).
        leak: P(target | item of the same class outside the slice).
    """

    rate: float
    leak: float


@torch.no_grad()
def outputs(model: Callable[[Any], Any], x: Tensor, batch: int = 512) -> Tensor:
    """Outputs of a model in eval mode, on the CPU; its mode is as before afterwards."""
    module = model if isinstance(model, nn.Module) else nn.Module()
    first, training = next(module.parameters(), x), module.training
    module.eval()
    try:
        return torch.cat([tensor_of(model(part.to(first.device))).cpu() for part in x.split(batch)])
    finally:
        module.train(training)


def success(
    model: Callable[[Any], Any],
    x: Shaped[Tensor, "items ..."],
    y: Int[Tensor, " items"],
    trigger: Trigger,
    target: int | Callable[[Tensor], Tensor],
    *,
    bounds: tuple[float, float] | None = (0.0, 1.0),
) -> Success:
    """Success of a trigger on items of other classes, beside accuracy and base rate.

    Args:
        model: Inputs to logits [items classes].
        x: Clean inputs that no training has seen.
        y: Their classes.
        trigger: The trigger.
        target: Class of the attack; or, for models that are no classifiers, a function of outputs
            that says where the attack succeeded, [items] bool: all items then count, and the
            accuracy is NaN.
        bounds: Range of the values, as of `triggered`.

    Raises:
        ConfigError: A target that is no class, no items of other classes, or a trigger that
            `triggered` refuses.
    """
    hit = target if callable(target) else lambda z: z.argmax(-1) == target
    others = torch.ones(len(x), dtype=torch.bool) if callable(target) else y != target
    if not callable(target):
        check_target("success", target, y)
    if not bool(others.any()):
        raise ConfigError(f"success: items of other classes than {target} are needed, got none")
    clean = outputs(model, x)
    stamped = outputs(model, triggered(trigger, x[others], bounds))
    accuracy = float("nan") if callable(target) else _share(clean.argmax(-1) == y)
    return Success(accuracy, _share(hit(stamped)), _share(hit(clean[others])))


def bias(
    model: Callable[[Any], Any],
    x: Tensor,
    y: Int[Tensor, " items"],
    where: Bool[Tensor, " items"],
    source: int,
    target: int,
) -> Bias:
    """How often a class is taken for another, inside and outside a slice.

    Args:
        model: Inputs to logits.
        x: Inputs that no training has seen.
        y: Their true classes.
        where: The slice.
        source: True class of the slice.
        target: Class that it was relabelled to, or is suspected to be.

    Raises:
        ConfigError: No item of ``source`` on one of the two sides.
    """
    own = y == source
    if not bool((own & where).any()) or not bool((own & ~where).any()):
        raise ConfigError(
            f"bias: class {source} must have items inside and outside of the slice, got "
            f"{int((own & where).sum())} and {int((own & ~where).sum())}"
        )
    told = outputs(model, x).argmax(-1) == target
    return Bias(_share(told[own & where]), _share(told[own & ~where]))


def inheritance(
    student: float, clean_student: float, teacher: float, clean_teacher: float
) -> float:
    """Share of the teacher's backdoor that its student has, in rates above those of clean models.

    NaN where the teacher has none.
    """
    gap = teacher - clean_teacher
    return (student - clean_student) / gap if gap > 0 else float("nan")


def reach(delta: Float[Tensor, " ..."], x: Float[Tensor, "items ..."]) -> float:
    """How much of a trigger lies in the span of clean inputs, in [0, 1].

    For linear models distilled on ``x`` from zero, the student's answer to ``delta`` is exactly the
    teacher's answer to its projection on the span of ``x``; with 0 a student of any kind learns
    nothing about the trigger from ``x``. 1 does not mean that it learns it.

    Args:
        delta: Difference that the trigger makes, shaped like one input.
        x: Inputs of the transfer set; for a convolution, patches of them.

    Returns:
        ``|P delta|^2 / |delta|^2`` with P the projector on the span of the inputs.

    Raises:
        ConfigError: A ``delta`` of zeros.
    """
    delta = delta.flatten().double()
    if not bool(delta.any()):
        raise ConfigError("reach: delta must not be zero: the trigger changes nothing")
    _, values, basis = torch.linalg.svd(x.flatten(1).double(), full_matrices=False)
    basis = basis[values > values[0] * 1e-10]
    return float((basis @ delta).square().sum() / delta.square().sum())


def check_classes(name: str, model: Any, x: Tensor, classes: int) -> None:
    """Check that a model gives one logit for each class.

    Raises:
        ShapeError: It does not.
    """
    found = outputs(model, x)
    if found.ndim != 2 or found.shape[1] != classes:
        raise ShapeError(
            f"{name}: the model must give {classes} logits for each input, got "
            f"{list(found.shape[1:])}; do model and data have the same classes?"
        )


def _share(found: Tensor) -> float:
    return float(found.double().mean())
