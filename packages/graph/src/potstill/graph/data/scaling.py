"""Features as networks like them; what was done to them is kept for serving."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch_geometric.data import Data

from potstill.core import ConfigError, DataError
from potstill.graph.data.tensors import csr, is_sparse

__all__ = ["Scaling", "fill_features", "in_units", "scale_features", "scale_rows"]

Scaling = Literal["auto", "standard", "row", "none"]


def scale_features(data: Data, scaling: Scaling = "auto") -> Data:
    """A shallow copy with scaled features, and values in units of their deviation.

    ``"none"`` leaves both as they are.
    ``x_shift`` and ``x_scale`` [F] are what was taken off and divided by, ``rows_scaled`` says that
    rows were divided by their sums; ``y_shift`` and ``y_scale`` [K] are those of values.

    Raises:
        ConfigError: Another ``scaling``, or ``"standard"`` for sparse features, which would fill.
    """
    if scaling not in ("auto", "standard", "row", "none"):
        raise ConfigError(f"scaling must be auto, standard, row or none, got {scaling!r}")
    data, values = data.__copy__(), scaling != "none"
    if scaling == "auto":
        scaling = "none" if is_sparse(data.x) or bool(data.x.abs().max() <= 1) else "standard"
    if scaling == "standard":
        if is_sparse(data.x):
            raise ConfigError("scaling must be row or none for sparse features, got 'standard'")
        scale, shift = torch.std_mean(data.x.double(), 0, correction=0)
        constant = scale <= 1e-7 * shift.abs()
        data.x_shift, data.x_scale = shift.float(), scale.masked_fill(constant, 1).float()
        data.x = ((data.x.double() - data.x_shift) / data.x_scale).float()
    elif scaling == "row":
        data.x, data.rows_scaled = scale_rows(data.x), True
    if values and data.get("task") == "values":
        scale, shift = torch.std_mean(data.y[data.train_mask].double(), 0, correction=0)
        data.y_shift, data.y_scale = shift.float(), scale.where(scale > 0, 1).float()
        data.y = in_units(data, data.y)
    return data


def in_units(data: Data, y: Tensor) -> Tensor:
    """Values [N K] as the graph has them: less the mean of the training nodes, in deviations."""
    if data.get("y_scale") is None:
        return y
    return ((y.double() - data.y_shift) / data.y_scale).float()


def scale_rows(x: Tensor) -> Tensor:
    """Each row divided by the sum of its magnitudes, dense or CSR; rows of zeros stay."""
    if not is_sparse(x):
        return x / x.abs().sum(1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    row = torch.repeat_interleave(
        torch.arange(x.shape[0], device=x.device), x.crow_indices().diff()
    )
    total = torch.zeros(x.shape[0], device=x.device).index_add_(0, row, x.values().abs())
    values = x.values() / total.clamp_min(torch.finfo(x.dtype).tiny)[row]
    return csr(x.crow_indices(), x.col_indices(), values, (x.shape[0], x.shape[1]))


def fill_features(data: Data) -> Data:
    """NaN replaced by the mean of the feature, which ``x_fill`` [F] keeps.

    Raises:
        DataError: A feature that is NaN in all nodes; NaN among sparse features.
    """
    if is_sparse(data.x):
        raise DataError("sparse features must be finite, got fill; leave unknown entries out")
    means = data.x.nanmean(0)
    if bool(means.isnan().any()):
        raise DataError(
            f"feature {int(means.isnan().nonzero()[0])} must have a value, got NaN only"
        )
    data = data.__copy__()
    data.x, data.x_fill = data.x.where(~data.x.isnan(), means), means
    return data
