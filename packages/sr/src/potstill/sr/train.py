"""Training: a student on photographs, alone or with a teacher, through the core's `fit`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from potstill.core import ConfigError, Engine, Run, Validation, cosine, fit
from potstill.sr.config import TrainConfig
from potstill.sr.data import Pair, Patches
from potstill.sr.distiller import UpscalerToUpscaler, make_objective, matching_taps

__all__ = ["train", "warm_start"]


def warm_start(model: nn.Module, source: nn.Module) -> int:
    """Copy every tensor that fits, which is all but the upsampler when only the factor differs.

    The published x3 and x4 networks were initialised from the x2 one in this way (maintainer, issue
    19 of the authors' repository).

    Returns:
        How many tensors were copied.

    Raises:
        ConfigError: Nothing fits.
    """
    own, given = model.state_dict(), source.state_dict()
    fitting = {k: v for k, v in given.items() if k in own and own[k].shape == v.shape}
    if not fitting:
        raise ConfigError(
            "warm_start: source must share width and blocks with the model, got no tensor that "
            "fits; choose other weights"
        )
    model.load_state_dict(fitting, strict=False)
    return len(fitting)


def train(
    student: nn.Module,
    pairs: Sequence[Pair],
    config: TrainConfig,
    *,
    teacher: nn.Module | None = None,
    score: Callable[[nn.Module], float] | None = None,
    run: Run | None = None,
    progress: bool | str = True,
) -> list[dict[str, float]]:
    """Train ``student`` on random patches; afterwards it holds the averaged or the best weights.

    Source of the plain recipe (patches of 192/s, batch 16, L1, Adam): Hui et al., ACM MM 2019,
    section 4.2. The schedule is half a cosine, since budgets here are short.

    Args:
        student: The network, in place.
        pairs: Photographs, from `potstill.sr.degrade` or `potstill.sr.prepare`.
        config: Budget, rates and weights of the terms.
        teacher: A larger network of the same factor; needed for terms other than ``task``.
        score: A figure of merit that keeps the best weights, e.g. PSNR on held-out images.
        run: Folder of checkpoints and curves; an interrupted run goes on from there.
        progress: Show a line of progress.

    Returns:
        One row a step, as `fit` gives.
    """
    weights = {
        "task": config.task,
        "output": config.output,
        "affinity": config.affinity,
        "wavelet": config.wavelet,
        "contrastive": config.contrastive,
    }
    taps: Any = ()
    if teacher is not None and config.affinity > 0:
        taps = matching_taps(student, teacher)
    objective = make_objective(**weights, taps=max(len(taps), 1))
    distiller = UpscalerToUpscaler(student, objective, teacher, taps)
    batches = Patches(pairs, patch=config.patch, batch=config.batch, seed=config.seed)
    validation = Validation(score, every=config.validate_every) if score is not None else None
    student.to(memory_format=torch.channels_last)
    with Engine(device=config.device, precision=config.precision) as engine:
        return fit(
            distiller,
            batches,
            steps=config.steps,
            lr=config.learning_rate,
            optimizer=partial(torch.optim.Adam, fused=True),
            schedule=cosine(warmup=config.warmup),
            clip=config.clip or None,
            ema=config.ema or None,
            validation=validation,
            run=run,
            engine=engine,
            seed=config.seed,
            progress=progress,
        )
