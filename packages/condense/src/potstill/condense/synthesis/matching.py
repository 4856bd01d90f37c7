"""Synthetic images whose features have the means of the real ones: DM and DataDAM."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import count

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from potstill.condense.data.pool import Pool
from potstill.condense.data.siamese import Siamese
from potstill.condense.models.convnet import ConvNet, redraw
from potstill.condense.synthesis.images import SyntheticImages, random_of_each
from potstill.core import ConfigError, Distiller, Losses, Objective, generator
from potstill.core.engine import Shard

__all__ = [
    "AttentionMatching", "DistributionMatching", "EqualClasses", "attention_map", "class_means",
    "squared_distance",
]  # fmt: skip

_PART = 64  # images


class EqualClasses:
    """Equally many real images of each class, class after class: one batch for all of them.

    Each batch is drawn anew, without the same image twice.

    Args:
        pool: The images.
        each: Images of each class; at most those of the smallest.
    """

    def __init__(self, pool: Pool, each: int) -> None:
        self.pool, self.each = pool, min(each, int(pool.counts.min()))

    def steps_per_epoch(self, world: int) -> int:
        """Batches that have as many images as the pool."""
        return max(len(self.pool) // (self.each * len(self.pool.classes) * world), 1)

    def stream(self, start: int, shard: Shard) -> Iterator[Tensor]:
        """Batches [classes * each, channels height width] from step ``start`` on."""
        for step in count(start):
            rng = generator("real", shard.seed, step, shard.rank)
            yield self.pool.normalized(random_of_each(self.pool, self.each, rng))

    def fingerprint(self) -> str:
        """Digest of the pool, and the number of images."""
        return f"{self.pool.digest()} {self.each} of each class"


class DistributionMatching(Distiller):
    """Match the mean feature of each class in networks with random weights, new at every step.

    ``sum_c | mean f(A(R_c)) - mean f(A(S_c)) |^2`` with one augmentation A for each class. All
    classes are one batch. Several processes have their own real images and networks.

    Source: Zhao and Bilen, Dataset Condensation with Distribution Matching, WACV 2023, Eq. (6).

    Term: ``mean`` (means of the features of synthetic and real images, [classes features] each).

    Args:
        student: The synthetic images.
        network: Any network with ``embed``; its weights are drawn anew.
        augment: The augmentation.
        objective: The term with its weight.
    """

    def __init__(
        self,
        student: SyntheticImages,
        network: nn.Module,
        augment: Siamese | None = None,
        objective: Objective | None = None,
    ) -> None:
        super().__init__(student, objective or Objective(mean=(1.0, squared_distance)))
        self.network = network.requires_grad_(False)
        self.augment = augment or Siamese()
        self.classes = int(student.labels.max()) + 1

    def forward(self, batch: Tensor, step: int) -> Losses:
        """Route real images, [classes * each, channels height width]."""
        redraw(self.network)
        real, synthetic = self.twins(batch)
        with torch.no_grad():
            wanted = _joined([self.features(part) for part in self.parts(real)])
        pairs = zip(self.features(synthetic), wanted, strict=True)
        means = [[class_means(each, self.classes) for each in pair] for pair in pairs]
        *maps, features = means
        return self.compare(step, maps, features)

    def features(self, images: Tensor) -> list[Tensor]:
        """What is matched: [images _] each, the features before the classifier last."""
        return [self.network.embed(images)]  # type: ignore[operator]

    def compare(self, step: int, maps: list[list[Tensor]], features: list[Tensor]) -> Losses:
        """Evaluate the objective for pairs of means, of synthetic and real images."""
        return self.objective(step, mean=features)

    def parts(self, images: Tensor) -> Sequence[Tensor]:
        """The images, on a CPU in parts whose activations stay in its caches.

        Not where there is batch norm, whose statistics are those of all classes together.
        """
        whole = images.device.type != "cpu" or next(self.network.buffers(), None) is not None
        return [images] if whole else images.split(_PART)

    def twins(self, real: Tensor) -> tuple[Tensor, Tensor]:
        """Real and synthetic images, those of a class augmented alike."""
        size = real.shape[-2], real.shape[-1]
        draw = self.augment.draw(self.classes, size=size)
        synthetic: Tensor = self.student()
        return (
            self.augment(real, draw, len(real) // self.classes),
            self.augment(synthetic, draw, len(synthetic) // self.classes),
        )


class AttentionMatching(DistributionMatching):
    """Match the mean attention maps of each class in all blocks but the last, and its features.

    Source: Sajedi et al., DataDAM, ICCV 2023, Eqs. (2) to (5). The authors' code uses power 1,
    batch norm and 100 times both terms where the paper's table says power 4 and instance norm; the
    default of the power is the paper's, the norm is that of ``network``, and the factor stands in
    `condense`'s preset.

    Terms: ``attention`` (lists of mean attention maps [classes places], of the synthetic and the
    real images), ``mean`` (as `DistributionMatching`).

    Args:
        student: The synthetic images.
        network: A `ConvNet` of two blocks or more.
        augment: The augmentation.
        power: Exponent of the activations.
        mmd: Weight of the term ``mean`` beside ``attention``.
        scale: Factor of both.

    Raises:
        ConfigError: Another network, or one block only.
    """

    def __init__(
        self,
        student: SyntheticImages,
        network: nn.Module,
        augment: Siamese | None = None,
        *,
        power: float = 4.0,
        mmd: float = 0.01,
        scale: float = 100.0,
    ) -> None:
        if not isinstance(network, ConvNet) or len(network.blocks) < 2:
            raise ConfigError(
                "AttentionMatching: network must be a ConvNet of two blocks or more, got "
                f"{type(network).__name__}; DistributionMatching takes any"
            )
        objective = Objective(attention=(scale, _over_layers), mean=(scale * mmd, squared_distance))
        super().__init__(student, network, augment, objective)
        self.power = power

    def features(self, images: Tensor) -> list[Tensor]:
        """Attention maps of all blocks but the last, and the features."""
        activations, features = self.network.activations(images)  # type: ignore[operator]
        return [*(attention_map(each, self.power) for each in activations[:-1]), features]

    def compare(self, step: int, maps: list[list[Tensor]], features: list[Tensor]) -> Losses:
        """Evaluate the objective for pairs of means, of synthetic and real images."""
        found, wanted = zip(*maps, strict=True)
        return self.objective(step, attention=(found, wanted), mean=features)


def attention_map(
    activation: Float[Tensor, "images channels height width"], power: float = 4.0
) -> Float[Tensor, "images places"]:
    """``vec(sum_c |f_c|^p)`` of unit length; 0 where the activation is.

    Source: Sajedi et al., ICCV 2023, Eq. (2), after Zagoruyko and Komodakis, ICLR 2017.

    Example:
        >>> f = torch.tensor([[[[1., 2.], [0., 1.]], [[2., 1.], [1., 0.]]]])
        >>> attention_map(f, 2)
        tensor([[0.6934, 0.6934, 0.1387, 0.1387]])
    """
    doublings = math.log2(power) if power > 0 else -1
    if doublings in (0, 1, 2, 3):  # products are ten times as fast as a power on a CPU
        powered = activation.abs() if power == 1 else activation
        for _ in range(int(doublings)):
            powered = powered * powered
    else:
        powered = activation.abs().pow(power)
    return F.normalize(powered.sum(1).flatten(1), dim=1)


def class_means(values: Float[Tensor, "images _"], classes: int) -> Float[Tensor, "classes _"]:
    """Means over blocks of equally many rows."""
    return values.unflatten(0, (classes, -1)).mean(1)


def squared_distance(found: Tensor, wanted: Tensor) -> Tensor:
    """Sum of the squared differences."""
    return (found - wanted).square().sum()


def _joined(parts: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    return [torch.cat(list(each)) for each in zip(*parts, strict=True)]


def _over_layers(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """`squared_distance`, over all layers."""
    return torch.stack([squared_distance(a, b) for a, b in zip(found, wanted, strict=True)]).sum()
