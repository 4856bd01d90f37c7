"""Probes: what frozen features are worth, without training the encoder."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from potstill.core import (
    ConfigError,
    Distiller,
    Engine,
    Losses,
    Objective,
    ShapeError,
    accuracy,
    cosine,
    fit,
)
from potstill.mae.config import Probe
from potstill.mae.models.students import initial
from potstill.mae.training.data import held_out, require

__all__ = ["features_of", "knn_probe", "linear_probe", "probe"]


def probe(config: Probe, *, progress: bool = True) -> dict[str, float]:
    """Accuracy in percent of nearest neighbours and of a linear classifier on frozen features."""
    require(config.data, "train", "test")
    with Engine(config.device) as engine:
        vit = initial(config.init, config.encoder)
        parts: list[Tensor] = []
        classes = None
        for source in (config.data.train, config.data.test):
            batches = held_out(source, vit, config.batch, classes)
            classes = batches.dataset.classes  # type: ignore[attr-defined]  # an ImageSet
            parts += features_of(vit, batches, engine.device)
        return {
            "knn": knn_probe(*parts, neighbors=config.neighbors),
            "linear": linear_probe(
                *parts, epochs=config.epochs, seed=config.seed, engine=engine, progress=progress
            ),
        }


@torch.no_grad()
def features_of(
    vit: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    device: str | torch.device = "cpu",
) -> tuple[Float[Tensor, "examples width"], Int[Tensor, " examples"]]:
    """Pooled features before the head, float32 [N D], and their labels [N].

    Args:
        vit: A timm model; put in eval mode, and no patch is masked.
        batches: Normalised images [B C H W] and labels [B].
        device: Device of the computation; the model stays there.
    """
    model: Any = vit.eval().to(device)
    features, labels = [], []
    for images, targets in batches:
        tokens = model.forward_features(images.to(device))
        features.append(model.forward_head(tokens, pre_logits=True).float().cpu())
        labels.append(targets)
    return torch.cat(features), torch.cat(labels)


def knn_probe(
    train: Float[Tensor, "examples width"],
    train_labels: Int[Tensor, " labels"],
    test: Float[Tensor, "test_examples test_width"],
    test_labels: Int[Tensor, " test_labels"],
    *,
    neighbors: int = 20,
    temperature: float = 0.07,
) -> float:
    """Accuracy in percent of a weighted vote of the nearest neighbours by cosine.

    Source: Wu et al., Unsupervised Feature Learning via Non-Parametric Instance Discrimination,
    CVPR 2018, section 3.4: weights ``exp(cos / temperature)``.

    Args:
        train: Features [N D].
        train_labels: Class indices, int64 [N].
        test: Features [M D].
        test_labels: Class indices, int64 [M].
        neighbors: Number of neighbours that vote.
        temperature: Temperature of the weights, > 0.

    Raises:
        ShapeError: Widths or numbers of labels differ.
        ConfigError: More neighbours than training features.
    """
    _check("knn_probe", train, train_labels, test, test_labels)
    if not 1 <= neighbors <= len(train):
        raise ConfigError(f"knn_probe: neighbors must be in [1, {len(train)}], got {neighbors}")
    train, test = F.normalize(train, dim=1), F.normalize(test, dim=1)
    classes = int(train_labels.max()) + 1
    votes = []
    for part in test.split(512):
        similarity, index = (part @ train.T).topk(neighbors, dim=1)
        weights = (similarity / temperature).exp()
        vote = torch.zeros(len(part), max(classes, int(test_labels.max()) + 1))
        votes.append(vote.scatter_add_(1, train_labels[index], weights))
    return 100 * float(accuracy(torch.cat(votes), test_labels))


class _Linear(Distiller):
    def forward(self, batch: tuple[Tensor, Tensor], step: int) -> Losses:
        features, labels = batch
        return self.objective(step, task=(self.student(features), labels))


def linear_probe(
    train: Float[Tensor, "examples width"],
    train_labels: Int[Tensor, " labels"],
    test: Float[Tensor, "test_examples test_width"],
    test_labels: Int[Tensor, " test_labels"],
    *,
    epochs: int = 50,
    batch_size: int = 512,
    lr: float = 1e-2,
    seed: int = 0,
    engine: Engine | None = None,
    progress: bool = True,
) -> float:
    """Accuracy in percent of a linear classifier behind a batch norm without affine part.

    Source: the probe of He et al., CVPR 2022, appendix A.1, on features computed once, with AdamW
    instead of LARS.

    Args:
        train: Features [N D].
        train_labels: Class indices, int64 [N].
        test: Features [M D].
        test_labels: Class indices, int64 [M].
        epochs: Passes over the features.
        batch_size: Features per step.
        lr: Learning rate, cosine to 0.
        seed: Seed of initialisation and order.
        engine: Device and processes.
        progress: Show a live line.

    Raises:
        ShapeError: Widths or numbers of labels differ.
    """
    _check("linear_probe", train, train_labels, test, test_labels)
    batch_size = min(batch_size, len(train))
    steps = max(len(train) // batch_size, 1)
    classes = int(max(train_labels.max(), test_labels.max())) + 1
    torch.manual_seed(seed)
    student = nn.Sequential(
        nn.BatchNorm1d(train.shape[1], affine=False), nn.Linear(train.shape[1], classes)
    )

    def draw(step: int, rank: int, world: int) -> tuple[Tensor, Tensor]:
        rng = torch.Generator().manual_seed(seed * 1_000_003 + step)
        index = torch.randint(len(train), (world, batch_size), generator=rng)[rank]
        return train[index], train_labels[index]

    fit(
        _Linear(student, Objective(task=(1.0, nn.CrossEntropyLoss()))),
        draw,
        steps=epochs * steps,
        lr=lr,
        optimizer=torch.optim.AdamW,
        schedule=cosine(),
        seed=seed,
        engine=engine,
        progress=progress,
    )
    with torch.no_grad():
        logits = student(test)
    return 100 * float(accuracy(logits, test_labels))


def _check(name: str, train: Tensor, train_y: Tensor, test: Tensor, test_y: Tensor) -> None:
    if train.shape[1:] != test.shape[1:] or len(train) != len(train_y) or len(test) != len(test_y):
        raise ShapeError(
            f"{name}: train and test must be [N D] and [M D] with N and M labels, got "
            f"{list(train.shape)}, {list(test.shape)}, {len(train_y)} and {len(test_y)} labels"
        )
