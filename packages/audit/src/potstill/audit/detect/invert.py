"""Trigger inversion: the smallest change that sends every input to a class, for all classes."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from potstill.audit.attacks.success import check_classes, outputs
from potstill.core import ConfigError, Distiller, Losses, Objective, Report, fit, generator
from potstill.core.adapters import tensor_of

__all__ = ["Inversion", "Inverted", "Stickers", "anomaly", "invert"]

REACHED = 0.95  # share of inputs that a mask must flip to count
LIMIT = 2.0  # index above which a mask counts as anomalously small (Neural Cleanse)


class Stickers(nn.Module):
    """A mask and a pattern for each class, both in [0, 1], and the smallest that worked so far.

    Args:
        classes: Number of classes.
        shape: Channels, height and width of an input.
        seed: Seed of the start.
    """

    least: Tensor
    best: Tensor

    def __init__(self, classes: int, shape: Sequence[int], seed: int = 0) -> None:
        super().__init__()
        rng = generator("stickers", seed)
        draw = torch.randn(classes, shape[0] + 1, *shape[1:], generator=rng)
        self.mask = nn.Parameter(0.1 * draw[:, :1] - 1.0)
        self.pattern = nn.Parameter(0.1 * draw[:, 1:])
        self.register_buffer("least", torch.full((classes,), torch.inf))
        self.register_buffer("best", torch.zeros_like(draw))

    def forward(self, x: Float[Tensor, "items c h w"]) -> Float[Tensor, "classes items c h w"]:
        """All inputs with the sticker of each class."""
        mask, pattern = self.mask.sigmoid()[:, None], self.pattern.sigmoid()[:, None]
        return (1 - mask) * x + mask * pattern

    def sizes(self) -> Float[Tensor, " classes"]:
        """Sum of each mask."""
        return self.mask.sigmoid().flatten(1).sum(1)

    @torch.no_grad()
    def remember(self, logits: Float[Tensor, "classes items out"]) -> Float[Tensor, " classes"]:
        """Share of the items that each sticker flips; in training, keep the smallest that works."""
        own = torch.arange(len(logits), device=logits.device)
        flipped = (logits.argmax(-1) == own[:, None]).float().mean(1)
        if self.training:
            self._keep(flipped)
        return flipped

    def _keep(self, flipped: Tensor) -> None:
        sizes = self.sizes()
        better = (flipped >= REACHED) & (sizes < self.least)
        self.least.copy_(torch.where(better, sizes, self.least))
        now = torch.cat([self.mask, self.pattern], 1)
        self.best.copy_(torch.where(better[:, None, None, None], now, self.best))

    @torch.no_grad()
    def recall(self) -> None:
        """Take the stickers that were kept; a class for which none worked stays as it is."""
        kept = self.least.isfinite()
        self.mask[kept], self.pattern[kept] = self.best[kept, :1], self.best[kept, 1:]


class _Size(nn.Module):
    """Sizes of the masks, each with a weight that grows while its mask flips enough inputs.

    Source: Wang et al., Neural Cleanse, IEEE S&P 2019, whose weight moves in the same way.
    """

    weight: Tensor

    def __init__(self, classes: int, start: float = 1e-2, factor: float = 1.08) -> None:
        super().__init__()
        self.factor = factor
        self.register_buffer("weight", torch.full((classes,), start))

    def forward(self, sizes: Tensor, flipped: Tensor) -> Tensor:
        """Weighted sum; in training the weights move on."""
        value = (self.weight.clone() * sizes).sum()
        if self.training:
            by = torch.where(flipped >= REACHED, self.factor, 1 / self.factor)
            self.weight.mul_(by).clamp_(1e-5, 10)
        return value


def _flip(logits: Tensor, classes: Tensor) -> Tensor:
    """Cross-entropy to the class of each sticker, summed over stickers: each has its own."""
    rows = logits.shape[1]
    return F.cross_entropy(logits.flatten(0, 1), classes.repeat_interleave(rows)) * len(classes)


class Inversion(Distiller):
    """Learn the stickers of all classes at once; the model under audit is the teacher.

    Terms: ``flip`` (logits [classes items classes], classes) and ``size`` (sizes, share flipped).

    Args:
        model: The model, from inputs to logits.
        stickers: What is learned.
        normalize: Applied to stickered pixels before the model.
    """

    student: Stickers

    def __init__(
        self, model: nn.Module, stickers: Stickers, normalize: Callable[[Tensor], Tensor]
    ) -> None:
        terms: Any = {"flip": (1.0, _flip), "size": (1.0, _Size(len(stickers.mask)))}
        super().__init__(stickers, Objective(terms), model)
        self.normalize = normalize

    def forward(self, batch: Tensor, step: int) -> Losses:
        """Route a batch of pixels [items channels height width]."""
        logits = self.logits(batch)
        classes = torch.arange(len(logits), device=logits.device)
        size = self.student.sizes(), self.student.remember(logits)
        return self.objective(step, flip=(logits, classes), size=size)

    def logits(self, x: Tensor) -> Float[Tensor, "classes items out"]:
        """Logits of all inputs under each sticker, with gradient to the stickers."""
        assert self.teacher is not None
        stuck = self.normalize(self.student(x).flatten(0, 1))
        return tensor_of(self.teacher.model(stuck)).unflatten(0, (-1, len(x)))


@dataclass(frozen=True)
class Inverted:
    """A trigger for every class. A small one is a finding; none found proves nothing.

    Attributes:
        masks: [classes 1 height width], in [0, 1].
        patterns: [classes channels height width], in [0, 1].
        sizes: Sum of each mask, in pixels.
        flipped: Share of the inputs that each sends to its class.
        index: Anomaly index of each class, or None where there can be none.
        reason: Why there is no index.
    """

    masks: Tensor
    patterns: Tensor
    sizes: tuple[float, ...]
    flipped: tuple[float, ...]
    index: tuple[float, ...] | None
    reason: str = ""

    @property
    def found(self) -> int | None:
        """Class with the largest index above 2 among those whose trigger works; None: not found."""
        if self.index is None:
            return None
        best = max(range(len(self.sizes)), key=lambda k: self.index[k])  # type: ignore[index]
        return best if self.index[best] > LIMIT and self.flipped[best] >= REACHED else None

    def trigger(self, target: int) -> Callable[[Tensor], Tensor]:
        """The trigger of a class, for `potstill.audit.success`."""
        mask, pattern = self.masks[target], self.patterns[target]
        return lambda x: (1 - mask) * x + mask * pattern

    def draw(self, report: Report, title: str = "Inverted triggers") -> None:
        """Add the triggers of all classes to a report."""
        report.images(
            {f"class {k}: {size:.1f} px": (mask * pattern).squeeze(0)
             for k, (mask, pattern, size)
             in enumerate(zip(self.masks, self.patterns, self.sizes, strict=True))},
            title, "Mask times pattern; the size is the sum of the mask.", pixels=True,
        )  # fmt: skip

    def save(self, folder: Path | str) -> Path:
        """Write a page with a row and a picture for each class, and give its path."""
        report = Report("Inverted triggers", label="class", summary=self.summary())
        for k, (size, share) in enumerate(zip(self.sizes, self.flipped, strict=True)):
            index = self.reason if self.index is None else self.index[k]
            report.add(str(k), size=size, flipped=share, index=index)
        self.draw(report)
        return report.save(folder)

    def summary(self) -> str:
        """One sentence: found or not found."""
        if self.index is None:
            return f"No index: {self.reason}."
        if self.found is None:
            return "Not found: no class has an anomalously small trigger. This proves nothing."
        return (
            f"Found: class {self.found} has an anomalously small trigger (index "
            f"{self.index[self.found]:.1f}). Compare with clean models of the same architecture."
        )


def anomaly(sizes: Sequence[float]) -> tuple[tuple[float, ...] | None, str]:
    """How much smaller than the median each size is, in robust standard deviations.

    Source: Wang et al., Neural Cleanse, 2019: ``(median - size) / (1.4826 MAD)``, here with a sign,
    so that only small masks count.

    Returns:
        The indices and an empty text; or None and why there are none: fewer than five sizes, or
        no spread.

    Example:
        >>> index, _ = anomaly([10, 12, 11, 9, 2, 10.5, 8, 9.5, 11.5, 10])
        >>> round(index[4], 6)
        5.395926
    """
    if len(sizes) < 5:
        return None, f"fewer than 5 classes ({len(sizes)})"
    median = statistics.median(sizes)
    spread = 1.4826 * statistics.median(abs(size - median) for size in sizes)
    if spread == 0:
        return None, "the sizes have no spread (MAD = 0)"
    return tuple((median - size) / spread for size in sizes), ""


def invert(
    model: nn.Module,
    images: Float[Tensor, "items channels height width"],
    *,
    classes: int,
    steps: int = 120,
    lr: float = 0.1,
    normalize: Callable[[Tensor], Tensor] = lambda x: x,
    seed: int = 0,
    **options: Any,
) -> Inverted:
    """Find for every class the smallest trigger that sends clean inputs there, all at once.

    Source: Wang et al., Neural Cleanse, IEEE S&P 2019. A class whose trigger is far smaller than
    the others' may be the target of a patch. Triggers spread over the image, ones that sleep in a
    teacher and wake in its student, and attackers who know the test are not found: compare with
    clean models of the same architecture, and audit the student too.

    Args:
        model: From inputs to logits; it is not changed.
        images: 40 to 200 clean images in [0, 1]; all of them, times the number of classes, go
            through the model at once.
        classes: Number of classes.
        steps: Steps of Adam.
        lr: Its learning rate.
        normalize: Applied to pixels before the model, where that expects normalised input; masks
            live in pixel space.
        seed: Seed of the start.
        **options: Other options of `potstill.core.fit`, such as ``run`` and ``engine``.

    Raises:
        ConfigError: Images that are no pixels in [0, 1].
        ShapeError: The model has no ``classes`` logits.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(16, 5))
        >>> invert(model, torch.rand(8, 1, 4, 4), classes=5, steps=3).masks.shape
        torch.Size([5, 1, 4, 4])
    """
    inversion = prepare(model, images, classes, normalize, seed)
    settings = {"progress": False, "seed": seed, **options}
    fit(inversion, [images], steps=steps, lr=lr, **settings)
    return finished(inversion, images)


def prepare(
    model: nn.Module,
    images: Tensor,
    classes: int,
    normalize: Callable[[Tensor], Tensor] = lambda x: x,
    seed: int = 0,
) -> Inversion:
    """The distiller of an inversion, after a check of images and model."""
    low, high = images.aminmax()
    if images.ndim != 4 or low < 0 or high > 1:
        raise ConfigError(
            f"invert: images must be pixels [items channels height width] in [0, 1], got "
            f"{list(images.shape)} in [{low:g}, {high:g}]; undo the normalisation and pass it as "
            "normalize="
        )
    inversion = Inversion(model, Stickers(classes, images.shape[1:], seed), normalize)
    check_classes("invert", model, normalize(images[:1]), classes)
    return inversion


@torch.no_grad()
def finished(inversion: Inversion, images: Tensor) -> Inverted:
    """What an inversion found."""
    stickers = inversion.student.cpu()
    stickers.recall()
    assert inversion.teacher is not None
    logits = torch.stack([
        outputs(inversion.teacher.model, inversion.normalize(x)) for x in stickers(images.cpu())
    ])  # fmt: skip
    flipped = (logits.argmax(-1) == torch.arange(len(logits))[:, None]).double().mean(1).tolist()
    sizes = [float(size) for size in stickers.sizes().double()]
    index, reason = anomaly(sizes)
    if index is not None and max(flipped) < REACHED:
        index, reason = None, f"no trigger flips {REACHED:.0%} of the images; train longer"
    return Inverted(
        stickers.mask.sigmoid(), stickers.pattern.sigmoid(), tuple(sizes), tuple(flipped), index,
        reason,
    )  # fmt: skip
