"""Experts: networks trained on the real images, with their weights after every epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.func import functional_call

from potstill.condense.data.pool import Pool
from potstill.condense.data.siamese import Siamese
from potstill.condense.models.learning import Learner, classify
from potstill.condense.synthesis.rollout import flat, named
from potstill.core import ConfigError, DataError, Losses, atomic, generator, reading
from potstill.core.engine import Shard, sketch

__all__ = ["Expert", "Flatness", "Labelled", "Starts", "Trajectories", "Window", "expert_labels"]


@dataclass(frozen=True)
class Flatness:
    """Sharpness-aware training of experts: GSAM with an adaptive radius.

    Source: Zhuang et al., Surrogate Gap Minimization Improves Sharpness-Aware Training, ICLR 2022,
    Algorithm 1, with the adaptive radius of Kwon et al., ASAM, ICML 2021, Eq. (8), as Du et al.,
    Minimizing the Accumulated Trajectory Error (FTD), CVPR 2023, train their experts.

    Args:
        radius: Length of the step uphill, in units of the weights.
        alpha: Share of the slope across the sharpness-aware one that is subtracted.
    """

    radius: float = 0.01
    alpha: float = 0.3


class Expert(Learner):
    """Train one expert, and keep its weights as they are when an epoch begins.

    Args:
        network: A network without running statistics, since these are no part of a trajectory.
        augment: The augmentation, drawn for each image.
        epochs: Epochs to keep.
        per_epoch: Steps of an epoch.
        flatness: Sharpness-aware training; plain by default.
        dtype: What weights are stored as; bfloat16 halves them.

    Raises:
        ConfigError: A network with batch norm.
    """

    def __init__(
        self,
        network: nn.Module,
        augment: Siamese,
        epochs: int,
        per_epoch: int,
        flatness: Flatness | None = None,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        if next(network.buffers(), None) is not None:
            raise ConfigError(
                "Expert: network must have no buffers such as running statistics of batch norm, "
                f"got {next(network.named_buffers())[0]}; use instance norm"
            )
        super().__init__(network, augment)
        self.epochs, self.per_epoch, self.flatness = epochs, per_epoch, flatness
        weights = sum(parameter.numel() for parameter in network.parameters())
        self.trajectory: Tensor
        self.register_buffer("trajectory", torch.zeros(epochs + 1, weights, dtype=dtype))

    def forward(self, batch: tuple[Tensor, Tensor, Tensor], step: int) -> Losses:
        """Route a batch (images, labels, soft labels)."""
        epoch, into = divmod(step, self.per_epoch)
        if into == 0 and epoch <= self.epochs:
            self.trajectory[epoch] = flat(self.student)
        if self.flatness is None:
            return super().forward(batch, step)
        images, labels, _ = batch
        views = self.augment(images, self.augment.draw(len(images), size=_size(images)))
        losses = self.objective(step, hard=(self.student(views), labels))
        return _flattened(self.student, losses, views, labels, self.flatness)

    def save(self, path: Path, data: str = "") -> None:
        """Write the trajectory, with the weights of now as its end.

        Args:
            path: File to write.
            data: Digest of the images.
        """
        found = self.trajectory.cpu().clone()
        found[self.epochs] = flat(self.student).cpu()
        with atomic(path) as temporary:
            save_file({"trajectory": found}, temporary, metadata={"data": data})


def _flattened(
    network: nn.Module, losses: Losses, views: Tensor, labels: Tensor, how: Flatness
) -> Losses:
    """The loss, with the gradient of GSAM in the place of its own."""
    weights = dict(network.named_parameters())
    own = torch.autograd.grad(losses.total, list(weights.values()))
    scaled = [w.detach().abs() * g for w, g in zip(weights.values(), own, strict=True)]
    length = torch.stack([each.square().sum() for each in scaled]).sum().sqrt() + 1e-12
    uphill = {
        name: (w + how.radius * w.abs() * each / length).detach().requires_grad_()
        for (name, w), each in zip(weights.items(), scaled, strict=True)
    }
    there = F.cross_entropy(functional_call(network, uphill, (views,)), labels)
    sharp = torch.autograd.grad(there, list(uphill.values()))
    dot = torch.stack([(a * b).sum() for a, b in zip(own, sharp, strict=True)]).sum()
    norm = torch.stack([each.square().sum() for each in sharp]).sum() + 1e-12
    surrogate = losses.total.detach()
    for weight, a, b in zip(weights.values(), own, sharp, strict=True):
        across = a - dot / norm * b
        surrogate = surrogate + ((b - how.alpha * across) * (weight - weight.detach())).sum()
    return Losses(surrogate, losses.terms, losses.weights)


class Trajectories:
    """Trajectories in files, read row by row.

    Args:
        paths: Files that `Expert.save` wrote.
        data: Digest of the images; files of other images are refused.

    Raises:
        DataError: No files, one that cannot be read, one of other images, or files of networks of
            different sizes.
    """

    def __init__(self, paths: Sequence[Path], data: str = "") -> None:
        if not paths:
            raise DataError("Trajectories: experts must be there, got no file; train some first")
        self.paths = [Path(path) for path in paths]
        for path in self.paths:
            with reading(path, "the trajectory of an expert"):
                known = safe_open(path, "pt").metadata().get("data", "")
            if data and known != data:
                raise DataError(
                    f"Trajectories: {path} must be of an expert for these images, got one for "
                    "another set; choose another folder"
                )
        shapes = {tuple(self._slice(path).get_shape()) for path in self.paths}
        if len(shapes) > 1:
            raise DataError(
                f"Trajectories: experts must have equally many epochs and weights, got "
                f"{sorted(shapes)} in {self.paths[0].parent}; train them anew in another folder"
            )
        self.epochs = shapes.pop()[0] - 1

    def __len__(self) -> int:
        return len(self.paths)

    def at(self, expert: int, epoch: int) -> Float[Tensor, " weights"]:
        """Weights of an expert after some epochs; -1 is the end."""
        row = epoch % (self.epochs + 1)
        found: Tensor = self._slice(self.paths[expert])[row : row + 1]
        return found[0].float()

    def fingerprint(self) -> str:
        """Digest of the files' sizes and of one set of weights."""
        return f"{len(self)} experts {sketch(self.at(0, -1), self.at(len(self) - 1, 0))}"

    def _slice(self, path: Path) -> Any:
        with reading(path, "the trajectory of an expert"):
            return safe_open(path, "pt").get_slice("trajectory")


@dataclass(frozen=True)
class Window:
    """Which parts of trajectories are matched: from epoch t to epoch t + span.

    t is random in [first, end), where the end grows from ``opening`` to ``last`` in the first
    ``growth`` steps: the difficulty is that of the size of the set.

    Source: Guo et al., DATM, ICLR 2024, Sec. 4.2.

    Args:
        first: Earliest epoch to start from.
        opening: Epoch before which all starts lie at first; ``last`` by default.
        last: Epoch before which all starts lie at the end.
        growth: Steps until the window has grown.
        span: Epochs from start to target.

    Raises:
        ConfigError: Epochs out of order.
    """

    first: int = 0
    last: int = 4
    opening: int | None = None
    growth: int = 0
    span: int = 2

    def __post_init__(self) -> None:
        opening = self.last if self.opening is None else self.opening
        if not 0 <= self.first < opening <= self.last or self.span < 1:
            raise ConfigError(
                "Window: first < opening <= last and span >= 1 must hold, got first "
                f"{self.first}, opening {opening}, last {self.last}, span {self.span}"
            )

    def end(self, step: int) -> int:
        """Epoch before which starts lie at a step.

        Example:
            >>> [Window(0, 20, opening=10, growth=1000).end(step) for step in (0, 500, 2000)]
            [10, 15, 20]
        """
        opening = self.last if self.opening is None else self.opening
        grown = step / self.growth if self.growth else 1.0
        return min(opening + int((self.last - opening) * grown), self.last)


class Starts:
    """Pairs of weights (start, target) out of a window of random experts.

    Args:
        trajectories: The experts.
        window: Where pairs lie.

    Raises:
        ConfigError: The experts have fewer epochs than the window needs.
    """

    def __init__(self, trajectories: Trajectories, window: Window) -> None:
        needed = window.last - 1 + window.span
        if needed > trajectories.epochs:
            raise ConfigError(
                f"Starts: the window ends at epoch {needed}, but experts were trained for "
                f"{trajectories.epochs}; train them for longer or choose an earlier window"
            )
        self.trajectories, self.window = trajectories, window

    def steps_per_epoch(self, world: int) -> None:
        """Unknown: pairs are drawn at random."""

    def stream(self, start: int, shard: Shard) -> Iterator[tuple[Tensor, Tensor]]:
        """Pairs from step ``start`` on, without end."""
        window = self.window
        for step in count(start):
            rng = generator("expert", shard.seed, step, shard.rank)
            expert = int(torch.randint(len(self.trajectories), (), generator=rng))
            epoch = int(torch.randint(window.first, window.end(step), (), generator=rng))
            yield (
                self.trajectories.at(expert, epoch),
                self.trajectories.at(expert, epoch + window.span),
            )

    def fingerprint(self) -> str:
        """Digest of the experts, and the window."""
        return f"{self.trajectories.fingerprint()} {self.window}"


class Labelled(NamedTuple):
    """What experts say about all images of a pool.

    Attributes:
        logits: Mean logits of the experts that are right, or of all where none is.
        right: Images that at least one expert classifies correctly.
    """

    logits: Float[Tensor, "images classes"]
    right: Bool[Tensor, " images"]


@torch.no_grad()
def expert_labels(
    pool: Pool, network: nn.Module, trajectories: Trajectories, epoch: int = -1
) -> Labelled:
    """Soft labels of all images: the mean logits of those experts that classify them correctly.

    Source: Guo et al., DATM, ICLR 2024, Sec. 4.3. Where no expert is right the mean is over all:
    there the authors' code divides by zero.

    Args:
        pool: The images.
        network: The network of the experts; it gets their weights.
        trajectories: The experts.
        epoch: Age of the experts; -1 is the end of their training.
    """
    total = torch.zeros(len(pool), len(pool.classes))
    of_right, times = total.clone(), torch.zeros(len(pool))
    for expert in range(len(trajectories)):
        network.load_state_dict(named(network, trajectories.at(expert, epoch)))
        logits = classify(network, pool)
        right = logits.argmax(1) == pool.labels
        total, times = total + logits, times + right
        of_right += logits * right[:, None]
    mean = torch.where(
        times[:, None] > 0, of_right / times.clamp_min(1)[:, None], total / len(trajectories)
    )
    return Labelled(mean, times > 0)


def _size(images: Tensor) -> tuple[int, int]:
    return images.shape[-2], images.shape[-1]
