"""Training an upscaler on photographs, alone or with a teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from potstill.core import ConfigError, Job, Mean, Run, Training, Validation
from potstill.core.command import progress as shown
from potstill.core.engine import fit_with
from potstill.sr.config import TRAINING, Terms, TrainConfig
from potstill.sr.evaluation.scores import evaluate, find_set
from potstill.sr.models.imdn import IMDN
from potstill.sr.models.weights import load_model, save_model
from potstill.sr.training.data import Pair, Patches, prepare
from potstill.sr.training.distiller import UpscalerToUpscaler, make_objective, matching_taps

__all__ = ["Train", "train", "warm_start"]


class Train(Job[TrainConfig]):
    """Train an upscaler, with a teacher where one is named."""

    def source(self) -> Patches:
        """Patches of the photographs, which are decoded once into ``cache``."""
        config = self.config
        with self.engine.main_first(), shown("reading photographs") as progress:
            pairs = prepare(
                config.photographs, config.student.scale, config.out / "cache", progress
            )
        return Patches(
            pairs, patch=config.patch, batch=config.training.batch, seed=config.training.seed
        )

    def distiller(self) -> UpscalerToUpscaler:
        """A fresh student, or one that starts from other weights, and its teacher."""
        config, shape = self.config, self.config.student
        skip = shape.global_skip == "bicubic"
        self.student = IMDN(shape.scale, shape.channels, shape.blocks, "bicubic" if skip else None)
        if config.init is not None:
            warm_start(self.student, load_model(config.init))
        elif skip:
            nn.init.zeros_(self.student.upsampler.weight)  # so that it starts as bicubic
        teacher = config.teacher and load_model(config.teacher, scale=shape.scale)
        return _distiller(self.student, config.terms, teacher or None)

    def validation(self) -> Validation | None:
        """PSNR on held-out images."""
        if self.config.validate is None:
            return None
        score = partial(_psnr, originals=find_set(self.config.validate))
        return Validation(score, self.config.validate_every, split=True)

    def export(self, folder: Path, history: Sequence[dict[str, float]]) -> dict[str, Any]:
        """Write the weights."""
        scale = self.config.student.scale
        return {"weights": save_model(self.student, folder / f"imdn-x{scale}.safetensors").name}


def train(
    student: nn.Module,
    pairs: Sequence[Pair],
    training: Training = TRAINING,
    *,
    terms: Terms = Terms(),  # noqa: B008 - frozen
    teacher: nn.Module | None = None,
    patch: int = 16,
    score: Callable[[nn.Module], float] | None = None,
    validate_every: int = 1000,
    run: Run | None = None,
    progress: bool | str | Callable[[dict[str, float], float], None] = True,
) -> Sequence[dict[str, float]]:
    """Train ``student`` on random patches; afterwards it holds the averaged or the best weights.

    Source of the plain recipe (patches of 192/s, batch 16, L1, Adam): Hui et al., ACM MM 2019,
    section 4.2. The schedule is half a cosine, since budgets here are short.

    Args:
        student: Network, trained in place.
        pairs: Photographs, from `potstill.sr.degrade` or `potstill.sr.prepare`.
        training: Budget, optimizer, device and seed.
        terms: Weights of the terms.
        teacher: Larger network of the same factor; needed for terms other than ``task``.
        patch: Side of the low-resolution patches, pixels.
        score: Figure of merit that keeps the best weights, e.g. PSNR on held-out images.
        validate_every: Steps between scores.
        run: Folder of checkpoints and curves; an interrupted run is continued.
        progress: Live line: off, on, on with a label, or a function of (row, share done).

    Returns:
        One row a step, as `fit` gives.
    """
    return fit_with(
        training,
        _distiller(student, terms, teacher),
        Patches(pairs, patch=patch, batch=training.batch, seed=training.seed),
        validation=None if score is None else Validation(score, validate_every),
        run=run,
        progress=progress,
    )


def warm_start(model: nn.Module, source: nn.Module) -> int:
    """Copy every tensor that fits, which is all but the upsampler when only the factor differs.

    The published x3 and x4 networks were initialised from the x2 one in this way (maintainer, issue
    19 of the authors' repository).

    Returns:
        Number of tensors that were copied.

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


def _distiller(student: nn.Module, terms: Terms, teacher: nn.Module | None) -> UpscalerToUpscaler:
    taps = matching_taps(student, teacher) if teacher and terms.affinity else ()
    student.to(memory_format=torch.channels_last)
    return UpscalerToUpscaler(student, make_objective(terms, max(len(taps), 1)), teacher, taps)


def _psnr(network: IMDN, part: slice, originals: Sequence[Path]) -> Mean:
    device = next(network.parameters()).device.type  # where it is being trained
    return Mean.of([row.ours.psnr for row in evaluate(network, originals[part], device=device)])
