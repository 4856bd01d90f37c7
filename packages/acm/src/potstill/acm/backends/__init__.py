"""Backends: one function, ``backend(x, choices, learners) -> y``, in several ways.

``y[t] = sum over n <= choices[t] of learner_n(x[t])`` for tokens ``x`` [tokens in], ``choices``
[tokens] from 0 to N, and ``learners``. `dense_masked` is the reference; the others skip work.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor

from potstill.acm.backends.dense_masked import dense_masked, weighted
from potstill.acm.backends.gathered import gathered
from potstill.acm.backends.grouped_mm import grouped_mm
from potstill.acm.backends.sorted_prefix import sorted_prefix
from potstill.acm.learners import Learners
from potstill.core import BackendError, ConfigError, ShapeError, nearest

__all__ = [
    "BACKENDS",
    "Backend",
    "available",
    "dense_masked",
    "gathered",
    "grouped_mm",
    "require",
    "run",
    "sorted_prefix",
    "weighted",
]

Backend = Callable[[Tensor, Tensor, Learners], Tensor]


def _triton(x: Tensor, choices: Tensor, learners: Learners) -> Tensor:
    from potstill.acm.backends.triton import triton  # needs the library, so not at import

    return triton(x, choices, learners)


BACKENDS: dict[str, Backend] = {
    "dense_masked": dense_masked,
    "sorted_prefix": sorted_prefix,
    "grouped_mm": grouped_mm,
    "gathered": gathered,
    "triton": _triton,
}
"""All backends by name."""


_WEIGHTS = ("up", "bias", "down", "shift")


def available(name: str, device: torch.device | str) -> str | None:
    """Why the backend ``name`` cannot run on ``device``; None when it can."""
    kind = torch.device(device).type
    if name == "triton":
        if find_spec("triton") is None:
            return "triton is not installed; pip install triton"
        if kind != "cuda":
            return f"it needs a CUDA device, got {kind}; use sorted_prefix"
    if name == "grouped_mm" and not hasattr(torch.nn.functional, "grouped_mm"):
        return f"torch {torch.__version__} has no grouped_mm; update torch to 2.10 or newer"
    return None


def require(name: str, device: torch.device | str) -> None:
    """Check, before anything starts, that a backend exists and can run on ``device``.

    Raises:
        ConfigError: No such backend.
        BackendError: It cannot run there; says what to do.
    """
    if name == "auto":
        return
    if name not in BACKENDS:
        raise ConfigError(
            f"acm: backend must be auto or one of {', '.join(BACKENDS)}, got {name!r}; "
            f"{nearest(name, BACKENDS)}"
        )
    reason = available(name, device)
    if reason is not None:
        raise BackendError(f"acm: backend {name!r} must be able to run on {device}: {reason}")


def run(x: Tensor, choices: Tensor, learners: Learners, backend: str = "auto") -> Tensor:
    """Apply to each token the first ``choices[t]`` learners.

    Args:
        x: Tokens, [tokens in].
        choices: Learners of each token, [tokens] of integers from 0 to N.
        learners: The learners.
        backend: A key of `BACKENDS`, or ``"auto"``: Triton on CUDA where it is installed,
            `gathered` while a graph is captured (`torch.compile`, `torch.export`, ONNX), else
            `sorted_prefix`.

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
    if backend == "auto":
        backend = _automatic(x.device)
    else:
        require(backend, x.device)
    kind = x.device.type
    if not torch.is_autocast_enabled(kind):
        return BACKENDS[backend](x, choices, learners)
    dtype = torch.get_autocast_dtype(kind)  # cast once, not in every small product
    cast = learners._replace(**{n: getattr(learners, n).to(dtype) for n in _WEIGHTS})
    with torch.autocast(kind, enabled=False):
        return BACKENDS[backend](x.to(dtype), choices, cast)


def _automatic(device: torch.device) -> str:
    if torch.compiler.is_compiling():
        return "gathered"
    if device.type == "cuda" and available("triton", device) is None:
        return "triton"
    return "sorted_prefix"
