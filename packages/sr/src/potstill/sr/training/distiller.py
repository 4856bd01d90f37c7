"""The distiller: an upscaler from photographs, from a larger upscaler, or from both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch.nn.functional as F
from torch import Tensor, nn

from potstill.core import ConfigError, Criterion, Distiller, Losses, Objective, Reading, tap
from potstill.sr.config import Terms
from potstill.sr.criteria import contrastive_ratio, spatial_affinity, wavelet_l1

__all__ = ["UpscalerToUpscaler", "make_objective", "matching_taps"]

Taps = Sequence[tuple[str, str]]


class UpscalerToUpscaler(Distiller):
    """Photographs, and what a teacher makes of them, to an upscaler.

    Terms that it knows, by name; an objective has any of them:

    - ``task``: (sr, hr), the photograph itself.
    - ``output``: (sr, teacher's sr).
    - ``wavelet``: (sr, teacher's sr), meant for `wavelet_l1`.
    - ``contrastive``: (sr, teacher's sr, bicubic), meant for `contrastive_ratio`.
    - ``feature.<n>``: the n-th pair of taps, student's and teacher's map.

    The teacher runs only at steps where a term with weight needs it.

    Args:
        student: Any module ``[B 3 h w] -> [B 3 sh sw]``.
        objective: The terms.
        teacher: A larger one of the same factor.
        taps: Module paths (student's, teacher's) for ``feature.0``, ``feature.1``, ...

    Example:
        >>> import torch
        >>> from potstill.sr import IMDN
        >>> distiller = UpscalerToUpscaler(
        ...     IMDN(2, channels=8, blocks=1), Objective(task=(1.0, F.l1_loss))
        ... )
        >>> batch = torch.rand(2, 3, 6, 6), torch.rand(2, 3, 12, 12)
        >>> sorted(distiller(batch, 0).terms)
        ['task']
    """

    def __init__(
        self,
        student: nn.Module,
        objective: Objective,
        teacher: nn.Module | None = None,
        taps: Taps = (),
    ) -> None:
        super().__init__(student, objective, teacher)
        _check(student, objective, teacher)
        self.taps = {f"feature.{n}": pair for n, pair in enumerate(taps)}

    def forward(self, batch: tuple[Tensor, Tensor], step: int) -> Losses:
        """``batch``: (lr, hr) in [0, 1], [B 3 h w] and [B 3 sh sw]."""
        lr, hr = batch
        wanted = self.objective.at(step)
        taps = {name: pair for name, pair in self.taps.items() if name in wanted}
        with _reading(self.student, [ours for ours, _ in taps.values()]) as f_s:
            sr = self.student(lr).float()
        tensors: dict[str, tuple[Tensor, ...]] = {"task": (sr, hr)}
        if self.teacher is not None and set(wanted) - {"task"}:
            with _reading(self.teacher, [theirs for _, theirs in taps.values()]) as f_t:
                target = self.teacher(lr).float()
            tensors |= {"output": (sr, target), "wavelet": (sr, target)}
            if "contrastive" in wanted:
                tensors["contrastive"] = (sr, target, _bicubic(lr, hr))
            tensors |= {n: (f_s[s].output, f_t[t].output) for n, (s, t) in taps.items()}
        return self.objective(step, {k: v for k, v in tensors.items() if k in wanted})


def _check(student: nn.Module, objective: Objective, teacher: nn.Module | None) -> None:
    if teacher is None and set(objective.names) - {"task"}:
        raise ConfigError(
            f"UpscalerToUpscaler: teacher must be given for the terms "
            f"{', '.join(objective.names)}, got None; only 'task' needs none"
        )
    scales = getattr(student, "scale", None), getattr(teacher, "scale", None)
    if None not in scales and scales[0] != scales[1]:
        raise ConfigError(
            f"UpscalerToUpscaler: teacher must enlarge by {scales[0]} like the student, got "
            f"{scales[1]}"
        )


def _reading(
    model: nn.Module, names: Sequence[str]
) -> AbstractContextManager[Mapping[str, Reading]]:
    return tap(model, *names) if names else nullcontext({})


def _bicubic(lr: Tensor, hr: Tensor) -> Tensor:
    """``lr`` in the size of ``hr``."""
    scale = hr.shape[-1] // lr.shape[-1]
    return F.interpolate(lr, scale_factor=scale, mode="bicubic", antialias=True)


def matching_taps(student: nn.Module, teacher: nn.Module, count: int = 3) -> Taps:
    """Pairs of blocks at equal relative depth, as FAKD takes them: ``count`` of them.

    Example:
        >>> from potstill.sr import IMDN
        >>> matching_taps(IMDN(2, 8, blocks=2), IMDN(2, 8, blocks=6), count=2)
        [('blocks.0', 'blocks.2'), ('blocks.1', 'blocks.5')]
    """
    depth_s, depth_t = (len(model.blocks) for model in (student, teacher))  # type: ignore[arg-type]
    count = min(count, depth_s, depth_t)
    places = [(n + 1) / count for n in range(count)]
    return [
        (f"blocks.{round(p * depth_s) - 1}", f"blocks.{round(p * depth_t) - 1}") for p in places
    ]


def make_objective(weights: Terms, taps: int = 3) -> Objective:
    """The objective with these weights; terms of weight zero are left out.

    Args:
        weights: Weights by term; that of FAKD's affinity is shared equally by the taps.
        taps: Number of pairs of blocks.
    """
    terms: dict[str, tuple[float, Criterion]] = {
        "task": (weights.task, F.l1_loss),
        "output": (weights.output, F.l1_loss),
        "wavelet": (weights.wavelet, wavelet_l1),
        "contrastive": (weights.contrastive, contrastive_ratio),
        **{f"feature.{n}": (weights.affinity / taps, spatial_affinity) for n in range(taps)},
    }
    return Objective({name: term for name, term in terms.items() if term[0] > 0})
