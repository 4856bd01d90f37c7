"""The backends of the hash grid and of marching."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from potstill.core.backends import Backend, Backends
from potstill.nerf.backends import native, nerfaccgrid, reference, tcnn
from potstill.nerf.backends.levels import Levels

__all__ = ["ENCODERS", "MARCHERS"]

_Encode = Callable[[Tensor, Tensor, Levels], Tensor]
_March = Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]


def _triton(x: Tensor, table: Tensor, levels: Levels) -> Tensor:
    from potstill.nerf.backends.triton import encode  # needs the package

    return encode(x, table, levels)


def _triton_fixed(x: Tensor, table: Tensor, levels: Levels) -> Tensor:
    from potstill.nerf.backends.triton import encode_fixed  # needs the package

    return encode_fixed(x, table, levels)


ENCODERS: Backends[_Encode] = Backends(
    "encode",
    Backend("triton", "Triton kernels; float32, atomic adds", _triton, ("cuda",), ("triton",)),
    Backend(
        "tcnn",
        "tiny-cuda-nn's Encoding; float32 output, atomic adds",
        tcnn.encode,
        ("cuda",),
        ("tinycudann",),
        install=tcnn.advice,
    ),
    Backend(
        "native",
        "C++ compiled on first use; float32, deterministic",
        native.encode,
        ("cpu",),
        check=native.library,
    ),
    Backend(
        "triton-fixed",
        "triton with integer sums: the same table gradient in every run",
        _triton_fixed,
        ("cuda",),
        ("triton",),
    ),
    Backend("torch", "plain torch, the reference; deterministic on a CPU", reference.encode),
)
"""Backends of `HashGrid`, as in `potstill.nerf.backends.reference.encode`."""

MARCHERS: Backends[_March] = Backends(
    "march",
    Backend(
        "nerfacc",
        "nerfacc's marching and packed scans",
        nerfaccgrid.march,
        ("cuda",),
        ("nerfacc",),
        check=nerfaccgrid.extension,
        lacks=(nerfaccgrid.CONTRACTED,),
    ),
    Backend(
        "native",
        "C++ compiled on first use; float32, deterministic",
        native.march,
        ("cpu",),
        check=native.library,
    ),
    Backend("torch", "plain torch, the reference; deterministic on a CPU", reference.march),
)
"""Backends of `potstill.nerf.march`, as in `potstill.nerf.backends.reference.march`."""
