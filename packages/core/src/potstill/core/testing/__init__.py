"""Helpers for tests of criteria, models and backends; needs pytest (``potstill-core[testing]``)."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from potstill.core.seed import seed_all
from potstill.core.store.data import root

__all__ = [
    "assert_criterion",
    "full_test",
    "requires_cuda",
    "requires_data",
    "seeded",
    "unchanged",
    "with_package",
]

Test = TypeVar("Test", bound=Callable[..., Any])


def assert_criterion(
    criterion: Callable[..., Tensor],
    *args: Any,
    gradcheck: bool = True,
    half: bool = True,
    constant: tuple[int, ...] = (1,),
) -> Tensor:
    """Assert what holds for every criterion ``(student, teacher, *context) -> scalar``.

    The value is a finite scalar, the same when called again; the gradient reaches the student, is
    finite and not zero, and reaches no argument in ``constant``; no argument is written to; in
    float64 it agrees with finite differences; bfloat16 and float16 inputs give finite values near
    the float32 one. The arguments must not be a minimum of the criterion (its gradient is zero
    there), nor lie on a kink.

    Args:
        criterion: A function or a module.
        *args: The student's tensor first. Floating tensors may be of any precision; the rest is
            passed on as it is.
        gradcheck: Compare with finite differences in float64: keep the tensors small.
        half: Try bfloat16 and float16.
        constant: Positions that must get no gradient: the teacher's.

    Returns:
        The value in float32.

    Example:
        >>> import torch.nn.functional as F
        >>> seed_all(0)
        >>> value = assert_criterion(lambda s, t: F.mse_loss(s, t.detach()), *torch.randn(2, 3, 4))
    """
    name = getattr(criterion, "__name__", type(criterion).__name__)
    student, others = args[0].detach(), args[1:]
    value = _evaluate(name, criterion, (student.float(), *_as(others, torch.float32)), constant)
    if gradcheck:
        exact = criterion.double() if isinstance(criterion, nn.Module) else criterion
        fixed = _as(others, torch.float64)
        point = student.double().clone().requires_grad_()
        assert torch.autograd.gradcheck(lambda z: exact(z, *fixed), (point,)), name
        if isinstance(criterion, nn.Module):
            criterion.float()
    for dtype in (torch.bfloat16, torch.float16) if half else ():
        low = criterion(student.to(dtype), *_as(others, dtype)).detach().float()
        assert bool(torch.isfinite(low)), f"{name}: must be finite in {dtype}, got {low.item()}"
        close = torch.allclose(low, value, rtol=0.1, atol=0.05)
        assert close, f"{name}: must be near {float(value)} in {dtype}, got {float(low)}"
    return value


def _evaluate(
    name: str, criterion: Callable[..., Tensor], args: tuple[Any, ...], constant: tuple[int, ...]
) -> Tensor:
    """Value and gradients in float32, every floating argument asking for one."""
    leaves = tree_map_only(
        Tensor,
        lambda t: t.clone().requires_grad_() if t.is_floating_point() else t.clone(),
        args,
    )
    value = criterion(*leaves)
    assert isinstance(value, Tensor), f"{name}: must return a tensor, got {type(value).__name__}"
    assert value.ndim == 0, f"{name}: must return a scalar, got shape {list(value.shape)}"
    assert bool(torch.isfinite(value)), f"{name}: must be finite, got {value.item()}"
    assert value.requires_grad, f"{name}: must have a gradient to the student, got none"
    value.backward()
    gradient = leaves[0].grad
    assert gradient is not None, f"{name}: the gradient must reach the student"
    assert bool(torch.isfinite(gradient).all()), f"{name}: the gradient must be finite"
    assert bool(gradient.any()), f"{name}: the gradient must not vanish at these arguments"
    for position in constant:
        if position < len(leaves) and isinstance(leaves[position], Tensor):
            assert leaves[position].grad is None, (
                f"{name}: argument {position} must get no gradient; detach it"
            )
    for position, (leaf, given) in enumerate(zip(leaves, args, strict=True)):
        if isinstance(given, Tensor):
            assert torch.equal(leaf.detach(), given), f"{name}: argument {position} was written to"
    return value.detach()


def _as(values: Any, dtype: torch.dtype) -> Any:
    """Floating tensors of a nest in ``dtype``, detached."""
    return tree_map_only(
        Tensor, lambda t: t.detach().to(dtype) if t.is_floating_point() else t, values
    )


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Assert that a block leaves a model's parameters, buffers, gradients and modes untouched.

    Example:
        >>> with unchanged(nn.BatchNorm1d(2).eval()):
        ...     pass
    """
    state = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    yield
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), f"{key} must stay as it was, but it changed"
    for key, parameter in model.named_parameters():
        assert parameter.grad is None, f"{key} must have no gradient, but it has one"
    assert modes == [module.training for module in model.modules()], "train/eval mode changed"


@contextmanager
def seeded(*key: int | str) -> Iterator[torch.Generator]:
    """Seed all global streams from ``key`` in a block and put torch's back afterwards.

    Yields:
        A generator of the same key, for functions that take one.
    """
    from potstill.core.seed import generator

    with torch.random.fork_rng():
        seed_all(*(key or (0,)))
        yield generator(*(key or (0,)))


def requires_cuda(test: Test) -> Test:
    """Mark a test ``cuda``; it is skipped where no CUDA device can be used."""
    missing = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    return pytest.mark.cuda(missing(test))


def requires_data(*relative: str) -> Callable[[Test], Test]:
    """Mark a test ``data`` with the paths it reads; skip it, saying why, where one is missing."""
    absent = [path for path in relative if not (root() / path).exists()]
    reason = f"needs {', '.join(absent)} below {root()} (set POTSTILL_DATA)"

    def mark(test: Test) -> Test:
        return pytest.mark.data(*relative)(pytest.mark.skipif(bool(absent), reason=reason)(test))

    return mark


def with_package(*names: str) -> Callable[[Test], Test]:
    """Skip a test where a package cannot be imported."""
    absent = [name for name in names if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(absent), reason=f"needs {', '.join(absent)}")


def full_test(test: Test) -> Test:
    """Mark a test ``slow``; it runs where ``POTSTILL_FULL`` is set (nightly, before a release)."""
    short = not os.environ.get("POTSTILL_FULL")
    return pytest.mark.slow(pytest.mark.skipif(short, reason="set POTSTILL_FULL=1")(test))
