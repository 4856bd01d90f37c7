"""Poisoned items in a training set: spectral signatures and clusters of a model's features."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from potstill.core import ConfigError, tap

__all__ = ["clusters", "features", "spectral"]


@torch.no_grad()
def features(model: nn.Module, layer: str, x: Tensor, batch: int = 512) -> Float[Tensor, "n d"]:
    """Flattened outputs of a named module for all inputs, on the CPU.

    Raises:
        TapError: There is no such module.
    """
    training, found = model.training, []
    device = next(model.parameters(), x).device
    model.eval()
    try:
        for part in x.split(batch):
            with tap(model, layer, stop=True) as readings:
                model(part.to(device))
            found.append(readings[layer].output.flatten(1).cpu())
    finally:
        model.train(training)
    return torch.cat(found)


def spectral(f: Float[Tensor, "items width"], *, centred: bool = True) -> Float[Tensor, " items"]:
    """Outlier scores of the items of one class: squared coordinates on the top singular direction.

    Source: Tran, Li and Madry, Spectral Signatures in Backdoor Attacks, NeurIPS 2018, Algorithm 1.
    The direction is always that of centred features; with ``centred=False`` the coordinates are
    those of uncentred ones, as in the adversarial-robustness-toolbox. Neither form is better in
    general. Call it for each class apart. A high score is a finding, not a proof, and triggers
    blended over the image leave hardly any.

    Args:
        f: Features, for instance of `potstill.audit.features`.
        centred: Subtract the mean before the coordinates are taken.

    Raises:
        ConfigError: Fewer than two items.
    """
    if len(f) < 2:
        raise ConfigError(f"spectral: at least 2 items of a class are needed, got {len(f)}")
    f = f.double()
    about = f - f.mean(0)
    direction = torch.linalg.svd(about, full_matrices=False).Vh[0]
    return ((about if centred else f) @ direction).square()


def clusters(
    f: Float[Tensor, "items width"], *, components: int = 10, seed: int = 0
) -> Bool[Tensor, " items"]:
    """Items of one class that lie in the smaller of two clusters.

    Source: Chen et al., Detecting Backdoor Attacks by Activation Clustering, 2018: 2-means on
    principal components. There are always two clusters, also in clean data.

    Args:
        f: Features of the items of one class.
        components: Principal components that are kept.
        seed: Seed of the start.

    Raises:
        ConfigError: Fewer than two items.
    """
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA

    if len(f) < 2:
        raise ConfigError(f"clusters: at least 2 items of a class are needed, got {len(f)}")
    kept = min(components, *f.shape)
    reduced: Any = PCA(kept, random_state=seed).fit_transform(f.double().numpy())
    found = torch.from_numpy(KMeans(2, n_init=10, random_state=seed).fit_predict(reduced))
    return found == int(found.double().mean() < 0.5)
