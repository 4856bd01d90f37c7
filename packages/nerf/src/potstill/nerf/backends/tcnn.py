"""The ``tcnn`` backend: tiny-cuda-nn's hash grid, and its parameter order both ways."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from potstill.core import BackendError, ShapeError
from potstill.nerf.backends.levels import Levels

__all__ = ["advice", "config", "encode", "from_params", "to_params"]


def advice() -> str:
    """How to build tiny-cuda-nn for the card and the torch of this machine."""
    major = (torch.version.cuda or "?").split(".")[0]
    capability = "{}{}".format(*torch.cuda.get_device_capability())
    return (
        f"with nvcc of CUDA {major}, as torch's, on PATH: pip install 'setuptools<81' ninja, then "
        f"TCNN_CUDA_ARCHITECTURES={capability} pip install --no-build-isolation "
        "'git+https://github.com/NVlabs/tiny-cuda-nn/#subdirectory=bindings/torch' (pip clones its "
        "submodules; an archive lacks them)"
    )


def config(levels: Levels) -> dict[str, Any]:
    """The encoding in tiny-cuda-nn's own words, which resolve to the same level table there.

    Raises:
        BackendError: No factor between levels gives this table: it was not made by one.
    """
    count, base = len(levels.scale), round(levels.scale[0] + 1)
    log2_rows = math.ceil(math.log2(max(levels.rows)))
    middle = np.float32(((levels.scale[-1] + 1) / base) ** (1 / max(count - 1, 1)))
    factors = [middle]
    for bound in (0.0, np.inf):  # the last level tells the factor up to a few roundings
        factor = middle
        for _ in range(16):
            factor = np.nextafter(factor, np.float32(bound))
            factors.append(factor)
    for factor in factors:
        if Levels.growing(count, levels.features, log2_rows, base, float(factor)) == levels:
            return {
                "otype": "HashGrid",
                "n_levels": count,
                "n_features_per_level": levels.features,
                "log2_hashmap_size": log2_rows,
                "base_resolution": base,
                "per_level_scale": float(factor),
                "interpolation": "Linear",
            }
    raise BackendError(
        "tcnn: tiny-cuda-nn would resolve these levels otherwise (a table of other arithmetic, "
        "as by potstill before this version, or not by one factor); use backend 'triton', or train "
        "anew"
    )


def to_params(table: Tensor, levels: Levels) -> Tensor:
    """``params`` of a ``tinycudann.Encoding``: the table, row after row, level after level."""
    return table.detach().float().reshape(-1)


def from_params(params: Tensor, levels: Levels) -> Tensor:
    """The table in ``params`` of a ``tinycudann.Encoding``; the inverse of `to_params`.

    Raises:
        ShapeError: Another number of parameters: the level tables differ.
    """
    if params.numel() != levels.total * levels.features:
        raise ShapeError(
            f"from_params: params must hold {levels.total} rows of {levels.features}, got "
            f"{params.numel()} numbers; is it the same level table, and without network weights?"
        )
    return params.detach().float().reshape(levels.total, levels.features).clone()


def encode(x: Tensor, table: Tensor, levels: Levels) -> Tensor:
    """As in the reference; the table is used as the parameters of a native encoding."""
    module = _encoding(levels)
    if module.params.numel() != table.numel():
        raise BackendError(
            f"encode: tiny-cuda-nn resolves these levels to {module.params.numel()} numbers, the "
            f"table has {table.numel()}; use backend 'triton', which takes the table as it is"
        )
    y: Tensor = torch.func.functional_call(module, {"params": table.reshape(-1)}, (x,))
    return y.float()


@cache
def _encoding(levels: Levels) -> Any:
    import tinycudann

    return tinycudann.Encoding(3, config(levels), dtype=torch.float32)
