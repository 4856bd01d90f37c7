"""Rounding up or down, learned: each module to the output of its original (AdaRound, BRECQ)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from potstill.core import ConfigError, Distiller, Losses, Objective, Readings, Stage, fit, tap
from potstill.quant.post.inputs import pass_through
from potstill.quant.weights.grid import Grid
from potstill.quant.weights.lower import lower, lowered
from potstill.quant.weights.quantizers import LearnedStep

__all__ = ["LearnedRounding", "ModuleToModule", "reconstruct"]

_STRETCH = 0.1  # beyond 0 and 1, so that both are reached


class LearnedRounding(LearnedStep):
    """Learns for each weight whether it is rounded up or down.

    Source: Nagel et al., AdaRound, ICML 2020, Eqs. (21) to (25): ``ŵ = s clamp(floor(w / s) + h)``
    with ``h = clamp(1.2 sigmoid(v) - 0.1, 0, 1)``, started where ŵ = w. Once ``soft`` is False,
    h is rounded.
    """

    def __init__(self, w: Tensor, grid: Grid, start: str = "mse") -> None:
        super().__init__(w, grid, start)
        self.scale.requires_grad_(False)
        rows = grid.rows(w.detach()) / self.scale - grid.offset
        share = (rows - rows.floor() + _STRETCH) / (1 + 2 * _STRETCH)
        self.rounding = nn.Parameter((share / (1 - share)).log())
        self.soft = True

    def up(self) -> Tensor:
        """Share of the way up for each weight, [rows inputs] in [0, 1]."""
        share = (self.rounding.sigmoid() * (1 + 2 * _STRETCH) - _STRETCH).clamp(0, 1)
        return share if self.soft else share.round()

    def integers(self, rows: Tensor) -> Tensor:
        """The level of each weight, between two integers while soft."""
        below = (rows / self.scale - self.grid.offset).floor()
        return (below + self.up()).clamp(self.grid.low, self.grid.high)

    def forward(self, w: Tensor) -> Tensor:
        """Weights between two levels while soft, else on one."""
        levels = self.integers(self.grid.rows(w.detach()))
        return self.grid.shaped(self.grid.values(levels, self.scale), w)


class ModuleToModule(Distiller):
    """Modules of a student to the outputs that their originals have on the same inputs.

    All modules learn at once, each from the inputs of its original: single layers are AdaRound,
    blocks are BRECQ. Modules stay in eval mode. A batch is an input of the model.

    Terms: ``match`` (outputs of student and teacher of each module, in turn) and ``round`` (how
    far each weight is on its way up, and the exponent, which falls from 20 to 2).

    Args:
        student: A lowered model.
        objective: The terms.
        teacher: The model that it was lowered from.
        modules: Paths of modules that run; their only argument is a tensor.
    """

    def __init__(
        self, student: nn.Module, objective: Objective, teacher: nn.Module, modules: Sequence[str]
    ) -> None:
        super().__init__(student, objective, teacher)
        self.paths = tuple(modules)
        self.train()

    def train(self, mode: bool = True) -> ModuleToModule:
        """As of any module, but the student stays in eval mode."""
        super().train(mode)
        self.student.eval()
        return self

    def forward(self, batch: Any, step: int) -> Losses:
        """Losses of a batch of inputs."""
        assert self.teacher is not None
        with torch.no_grad(), tap(self.teacher, *self.paths, stop=True) as readings:
            self.teacher(batch)
        return self.objective(
            step,
            match=_outputs(self.student, readings),
            round=(20 - 18 * min(1.0, self.progress / 0.8), *_ups(self.student)),
        )


def _outputs(student: nn.Module, readings: Readings) -> tuple[Tensor, ...]:
    """Output of the student's and of the teacher's module, for each module in turn."""
    pairs = [(student.get_submodule(path)(r.input), r.output) for path, r in readings.items()]
    return tuple(tensor for pair in pairs for tensor in pair)


def _ups(student: nn.Module) -> list[Tensor]:
    quantizers = [each.quantizer for each in lowered(student)]
    return [each.up() for each in quantizers if isinstance(each, LearnedRounding)]


def match(*pairs: Tensor) -> Tensor:
    """Sum over modules of the squared error over the teacher's variance."""
    errors = [
        (ours - theirs).square().mean() / theirs.var().clamp_min(1e-12)
        for ours, theirs in zip(pairs[::2], pairs[1::2], strict=True)
    ]
    return torch.stack(errors).sum()


def indecision(exponent: float, *ups: Tensor) -> Tensor:
    """Mean of ``1 - |2 h - 1|^exponent`` over all weights: 0 where all are decided."""
    flat = torch.cat([up.reshape(-1) for up in ups])
    return (1 - (2 * flat - 1).abs().pow(exponent)).mean()


def reconstruct(
    model: nn.Module,
    grid: Grid,
    inputs: Sequence[Tensor],
    *,
    modules: Sequence[str] | None = None,
    steps: int = 500,
    lr: float = 1e-2,
    decide: float = 1.0,
    seed: int = 0,
    **options: Any,
) -> nn.Module:
    """Post-training by learned rounding: no labels, no other weights move.

    Source: AdaRound, and Li et al., BRECQ, ICLR 2021, for whole blocks.

    Args:
        model: Any module; left as it is.
        grid: Levels of the weights.
        inputs: Batches of inputs, used in turn.
        modules: Paths of the modules whose outputs are kept; by default the lowered layers that
            run; weights elsewhere take the nearest level.
        steps: Steps of Adam, for all modules together.
        lr: Learning rate.
        decide: Weight of the term that makes each weight decide; it begins after a fifth of
            the steps.
        seed: Seed of the run.
        **options: Other options of `lower`.

    Returns:
        A lowered copy whose quantizers are `LearnedRounding`, decided.

    Raises:
        TapError: A path of ``modules`` that does not exist or never runs.
        ConfigError: What `lower` refuses.
    """
    student = lower(model, grid, quantizer=LearnedRounding, **options)
    rounded = [each for each in lowered(student) if isinstance(each.quantizer, LearnedRounding)]
    if not rounded:
        raise ConfigError("reconstruct: no weight has the bits of grid; keep less")
    if modules is None:
        layers = {each.path: model.get_submodule(each.path) for each in rounded}
        idle = pass_through("reconstruct", model, inputs[:1], layers, lambda path, x: None)
        modules = [path for path in layers if path not in idle]
    objective = Objective(
        match=(1.0, match), round=(lambda step: decide * (step >= steps / 5), indecision)
    )
    distiller = ModuleToModule(student, objective, model, modules)
    stages = [Stage(share=1.0, trainable=["*.rounding"])]
    fit(distiller, list(inputs), steps=steps, lr=lr, stages=stages, seed=seed, progress=False)
    for each in rounded:
        assert isinstance(each.quantizer, LearnedRounding)
        each.quantizer.soft = False
    return student
