"""Graph signals in frequency: what varies slowly along edges, and what does not.

``S = D^-1/2 A D^-1/2``, ``L = I - S`` with eigenvalues in [0, 2]; isolated nodes have ``S x = 0``.
Every signal is the sum ``x = (I + S) x / 2 + (I - S) x / 2`` of its low and its high part, whose
responses are ``1 - lambda / 2`` and ``lambda / 2``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from potstill.core import ConfigError, ShapeError
from potstill.graph.data.tensors import compress

__all__ = ["Spectrum", "dirichlet_ratio", "high_pass", "laplacian", "low_pass", "spectral_energy"]


class Spectrum(NamedTuple):
    """How the energy of a signal is spread over frequencies.

    Attributes:
        edges: Borders of the bins on the axis of eigenvalues, [bins + 1] from 0 to 2.
        energy: Share of each bin, [bins], sums to 1.
    """

    edges: Tensor
    energy: Tensor


def _smooth(
    edge_index: Tensor, count: int, edge_weight: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """``S`` as CSR [N N]."""
    source, target = edge_index
    weight = torch.ones(edge_index.shape[1]) if edge_weight is None else edge_weight
    weight = weight.to(edge_index.device, dtype)
    degree = torch.zeros(count, dtype=dtype, device=weight.device).index_add_(0, target, weight)
    scale = torch.where(degree > 0, degree.rsqrt(), 0)
    return compress(target, source, scale[target] * weight * scale[source], (count, count))


def laplacian(
    edge_index: Integer[Tensor, "2 edges"],
    num_nodes: int,
    edge_weight: Float[Tensor, " edges"] | None = None,
    dtype: torch.dtype = torch.float64,
) -> Float[Tensor, "nodes nodes"]:
    """``L = I - D^-1/2 A D^-1/2``, dense [N N].

    Source: Chung, Spectral Graph Theory, 1997, section 1.2.
    """
    identity = torch.eye(num_nodes, dtype=dtype, device=edge_index.device)
    return identity - _smooth(edge_index, num_nodes, edge_weight, dtype).to_dense()


def low_pass(
    x: Float[Tensor, "nodes channels"],
    edge_index: Integer[Tensor, "2 edges"],
    edge_weight: Float[Tensor, " edges"] | None = None,
) -> Float[Tensor, "nodes channels"]:
    """``(I + S) x / 2``: what a node shares with its neighbours.

    Example:
        >>> edges, x = torch.tensor([[0, 1], [1, 0]]), torch.tensor([[1.0], [3.0]])
        >>> low_pass(x, edges).flatten().tolist(), high_pass(x, edges).flatten().tolist()
        ([2.0, 2.0], [-1.0, 1.0])
    """
    _check("low_pass", x)
    return (x + _smooth(edge_index, len(x), edge_weight, x.dtype) @ x) / 2


def high_pass(
    x: Float[Tensor, "nodes channels"],
    edge_index: Integer[Tensor, "2 edges"],
    edge_weight: Float[Tensor, " edges"] | None = None,
) -> Float[Tensor, "nodes channels"]:
    """``(I - S) x / 2``: how a node differs from its neighbours."""
    _check("high_pass", x)
    return (x - _smooth(edge_index, len(x), edge_weight, x.dtype) @ x) / 2


def dirichlet_ratio(
    x: Float[Tensor, "nodes channels"],
    edge_index: Integer[Tensor, "2 edges"],
    edge_weight: Float[Tensor, " edges"] | None = None,
) -> float:
    """``<x, L x> / <x, x>``: the mean frequency of a signal, from 0 (smooth) to 2."""
    _check("dirichlet_ratio", x)
    total = float((x * x).sum())
    return 2 * float((x * high_pass(x, edge_index, edge_weight)).sum()) / total if total else 0.0


def spectral_energy(
    x: Float[Tensor, "nodes channels"],
    edge_index: Integer[Tensor, "2 edges"],
    bins: int = 20,
    edge_weight: Float[Tensor, " edges"] | None = None,
    exact_up_to: int = 5000,
    steps: int = 60,
) -> Spectrum:
    """How the energy of a signal is spread over the eigenvalues of the Laplacian.

    Exact by eigendecomposition for small graphs; above, by the Lanczos process started from each
    channel, whose Gauss quadrature matches ``2 steps`` moments of that distribution (Golub and
    Meurant, Matrices, Moments and Quadrature, 2010, chapter 7).

    Args:
        x: Signals [N K]; the energies of the channels are added.
        edge_index: [2 E], both directions of every edge.
        bins: Bins between 0 and 2.
        edge_weight: [E] or None.
        exact_up_to: Largest N for the exact way (a dense [N N] in double precision).
        steps: Steps of the Lanczos process.

    Raises:
        ConfigError: ``bins`` or ``steps`` below 1.
    """
    _check("spectral_energy", x)
    if bins < 1 or steps < 1:
        raise ConfigError(
            f"spectral_energy: bins and steps must be at least 1, got {bins}, {steps}"
        )
    x = x.double()
    if len(x) <= exact_up_to:
        values, vectors = torch.linalg.eigh(laplacian(edge_index, len(x), edge_weight))
        weights = (vectors.T @ x).square().sum(1)
    else:
        parts = [_lanczos(column, edge_index, edge_weight, steps) for column in x.T]
        values, weights = (torch.cat(part) for part in zip(*parts, strict=True))
    place = (values / 2 * bins).long().clamp(0, bins - 1)
    energy = torch.zeros(bins, dtype=x.dtype).index_add_(0, place.cpu(), weights.cpu())
    total = energy.sum().clamp_min(torch.finfo(x.dtype).tiny)
    return Spectrum(torch.linspace(0, 2, bins + 1), energy / total)


def _lanczos(
    start: Tensor, edge_index: Tensor, edge_weight: Tensor | None, steps: int
) -> tuple[Tensor, Tensor]:
    """Nodes and weights of the quadrature of ``start``'s spectral measure."""
    smooth = _smooth(edge_index, len(start), edge_weight, start.dtype)
    norm = start.norm()
    if not norm:
        return start.new_zeros(1), start.new_zeros(1)
    basis = [start / norm]
    diagonal, beside = [], []
    for _ in range(min(steps, len(start))):
        ahead = basis[-1] - smooth @ basis[-1]
        diagonal.append(torch.dot(ahead, basis[-1]))
        known = torch.stack(basis)  # orthogonal to all, twice: rounding makes ghosts otherwise
        for _ in range(2):
            ahead = ahead - known.T @ (known @ ahead)
        beside.append(ahead.norm())
        if beside[-1] < 1e-10:
            break
        basis.append(ahead / beside[-1])
    side = torch.stack(beside[: len(diagonal) - 1]) if len(diagonal) > 1 else start.new_zeros(0)
    small = torch.diag(torch.stack(diagonal)) + torch.diag(side, 1) + torch.diag(side, -1)
    values, vectors = torch.linalg.eigh(small)
    return values, norm**2 * vectors[0].square()


def _check(name: str, x: Tensor) -> None:
    if x.ndim != 2 or not x.is_floating_point():
        raise ShapeError(
            f"{name}: x must be [nodes, channels] float, got {list(x.shape)} {x.dtype}"
        )
