"""The distiller: an upscaler from photographs, from a larger upscaler, or from both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import torch.nn.functional as F
from torch import Tensor, nn

from potstill.core import ConfigError, Criterion, Distiller, Losses, Objective, Reading, tap
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
        self.taps = tuple(taps)
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

    def forward(self, batch: tuple[Tensor, Tensor], step: int) -> Losses:
        """``batch``: (lr, hr) in [0, 1], [B 3 h w] and [B 3 sh sw]."""
        lr, hr = batch
        wanted = self.objective.at(step)
        features = [n for n in range(len(self.taps)) if f"feature.{n}" in wanted]
        with ExitStack() as stack:
            read_s = self._tapped(stack, self.student, features, 0)
            sr = self.student(lr).float()
        tensors: dict[str, tuple[Tensor, ...]] = {"task": (sr, hr)}
        if set(wanted) - {"task"}:
            assert self.teacher is not None
            with ExitStack() as stack:
                read_t = self._tapped(stack, self.teacher, features, 1)
                target = self.teacher(lr).float()
            tensors |= {"output": (sr, target), "wavelet": (sr, target)}
            if "contrastive" in wanted:
                scale = hr.shape[-1] // lr.shape[-1]
                blurred = F.interpolate(lr, scale_factor=scale, mode="bicubic", antialias=True)
                tensors["contrastive"] = (sr, target, blurred)
            for n in features:
                name_s, name_t = self.taps[n]
                tensors[f"feature.{n}"] = (read_s[name_s].output, read_t[name_t].output)
        return self.objective(step, {k: v for k, v in tensors.items() if k in self.objective.names})

    def _tapped(
        self, stack: ExitStack, model: nn.Module, features: Sequence[int], side: int
    ) -> Mapping[str, Reading]:
        names = [self.taps[n][side] for n in features]
        return stack.enter_context(tap(model, *names)) if names else {}


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


def make_objective(
    *,
    task: float = 1.0,
    output: float = 0.0,
    affinity: float = 0.0,
    wavelet: float = 0.0,
    contrastive: float = 0.0,
    taps: int = 3,
) -> Objective:
    """The objective with these weights; those of zero are left out.

    Args:
        task: L1 to the photograph.
        output: L1 to the teacher's output.
        affinity: FAKD's spatial affinity, shared equally by ``taps`` pairs of blocks.
        wavelet: L1 of high frequencies to the teacher's output.
        contrastive: CSD's ratio.
        taps: How many pairs of blocks.
    """
    terms: dict[str, tuple[float, Criterion]] = {
        "task": (task, F.l1_loss),
        "output": (output, F.l1_loss),
        "wavelet": (wavelet, wavelet_l1),
        "contrastive": (contrastive, contrastive_ratio),
        **{f"feature.{n}": (affinity / taps, spatial_affinity) for n in range(taps)},
    }
    return Objective({name: term for name, term in terms.items() if term[0] > 0})
