"""Backends: one function, ``backend(x, choices, learners) -> y``, in several ways.

``y[t] = sum over n <= choices[t] of learner_n(x[t])`` for tokens ``x`` [tokens in], ``choices``
[tokens] from 0 to N, and ``learners``. ``torch``, `dense_masked`, is the reference; the others skip
work.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from potstill.acm.backends.dense_masked import dense_masked, weighted
from potstill.acm.backends.gathered import gathered
from potstill.acm.backends.grouped_mm import grouped_mm
from potstill.acm.backends.learners import Learners
from potstill.acm.backends.sorted_prefix import sorted_prefix
from potstill.core import BackendError, ShapeError
from potstill.core.backends import Backend, Backends

__all__ = [
    "BACKENDS", "dense_masked", "gathered", "grouped_mm", "run", "sorted_prefix", "weighted",
]  # fmt: skip


def _triton(x: Tensor, choices: Tensor, learners: Learners) -> Tensor:
    from potstill.acm.backends.triton import triton  # needs the package

    return triton(x, choices, learners)


def _has_grouped_mm() -> None:
    if not hasattr(torch.nn.functional, "grouped_mm"):
        raise BackendError(f"torch {torch.__version__} has no grouped_mm; update to 2.10 or newer")


BACKENDS: Backends[Callable[[Tensor, Tensor, Learners], Tensor]] = Backends(
    "acm",
    Backend(
        "triton",
        "one fused Triton kernel",
        _triton,
        ("cuda",),
        ("triton",),
        lacks=("float64", "gated"),
    ),
    Backend("sorted_prefix", "dense products over tokens sorted by choice", sorted_prefix),
    Backend("grouped_mm", "grouped products, no waiting", grouped_mm, check=_has_grouped_mm),
    Backend("gathered", "learner by learner; what graph capture understands", gathered),
    Backend("torch", "all learners and a mask, the reference", dense_masked),
)
"""All backends by name."""

_WEIGHTS = ("up", "bias", "down", "shift", "lift", "offset")


def run(x: Tensor, choices: Tensor, learners: Learners, backend: str = "auto") -> Tensor:
    """Apply to each token the first ``choices[t]`` learners.

    Args:
        x: Tokens, [tokens in].
        choices: Learners of each token, [tokens] of integers from 0 to N.
        learners: The learners.
        backend: A key of `BACKENDS`, or ``"auto"``: `gathered` while a graph is captured
            (`torch.compile`, `torch.export`, ONNX), Triton on CUDA where it is installed (not for
            float64 or gated networks), else `sorted_prefix`.

    Returns:
        [tokens out]; rows whose choice is 0 are zero.

    Raises:
        ShapeError: Tokens and choices that do not fit.
        ConfigError: No such backend.
        BackendError: The backend cannot run here.
    """
    if x.ndim != 2 or choices.shape != x.shape[:1] or choices.is_floating_point():
        raise ShapeError(
            f"acm: choices must be one integer for each token [tokens], got "
            f"{list(choices.shape)} of {choices.dtype} for tokens {list(x.shape)}"
        )
    if torch.compiler.is_compiling():  # what is missing was said before
        call = BACKENDS["gathered" if backend == "auto" else backend].run
    else:
        wanted = {"float64": x.dtype == torch.float64, "gated": learners.lift is not None}
        needs = tuple(name for name, yes in wanted.items() if yes)
        call = BACKENDS.resolve(backend, x.device, needs).run
    kind = x.device.type
    if not torch.is_autocast_enabled(kind):
        return call(x, choices, learners)
    dtype = torch.get_autocast_dtype(kind)  # cast once, not in every small product
    held = {name: getattr(learners, name) for name in _WEIGHTS}
    cast = learners._replace(**{n: t.to(dtype) for n, t in held.items() if t is not None})
    with torch.autocast(kind, enabled=False):
        return call(x.to(dtype), choices, cast)
