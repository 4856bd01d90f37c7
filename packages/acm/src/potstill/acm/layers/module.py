"""The adaptive computation module: a token-wise map that spends what a token needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from potstill.acm import backends
from potstill.acm.backends.learners import Learners, activate, on_device
from potstill.acm.layers.gate import Gate, gate_width, tail_sums
from potstill.core import ConfigError, ShapeError, nearest

__all__ = [
    "ACM", "GateReading", "Mode", "acms", "forced", "note_phase", "phases", "record_gates",
    "require_acms", "restored", "set_mode",
]  # fmt: skip

Mode = Literal["gated", "image"] | int
"""How many learners run: what the gate says for each token, or for each image by the mean of its
tokens' logits, or the same number for all."""


class GateReading(NamedTuple):
    """What the tokens of a batch chose in one module.

    Attributes:
        choices: Learners of each token, [batch *tokens] of integers from 0 to N.
        one_hot: The same as floats with gradient, [batch *tokens choices], while training. The
            output then follows a noisy choice; the reading is of the one without noise.
        costs: Multiply-adds of a token by choice 0 to N, [N + 1].
        least: The smallest choice: the first column of ``one_hot``.
    """

    choices: Int[Tensor, "*rows"]
    one_hot: Float[Tensor, "*rows choices"] | None
    costs: Float[Tensor, " learners_and_one"]
    least: int

    @property
    def soft(self) -> Tensor:
        """``one_hot``, or what it would be without gradient, as [batch tokens choices]."""
        one_hot = self.one_hot
        if one_hot is None:
            count = len(self.costs) - self.least
            one_hot = nn.functional.one_hot(self.choices - self.least, count).to(self.costs.dtype)
        return one_hot.reshape(len(one_hot), -1, one_hot.shape[-1])

    @property
    def spent(self) -> Float[Tensor, " batch"]:
        """Multiply-adds of the learners, for each image."""
        return (self.soft @ self.costs[self.least :].to(self.soft.dtype)).sum(1)

    @property
    def full(self) -> Float[Tensor, ""]:
        """Multiply-adds of all learners on all tokens of an image; where the choices are."""
        return self.costs[-1] * self.choices.shape[1:].numel()


class ACM(nn.Module):
    """N ordered learners and a gate that says how many of them a token gets.

    Source: Wójcik et al., "Adaptive Computation Modules: Granular Conditional Computation for
    Efficient Inference", AAAI 2025. With k learners the output is ``h(z, k) = sum_{n<=k} s_n(z)``,
    ``h(z, 0) = 0``; each learner is Linear - activation - Linear. One deviation: the output bias of
    the dense network is kept, as a part of the first learner, so that all learners together can
    equal that network.

    In eval mode the learners run on the chosen tokens only, through a backend. In training mode
    all of them run, weighted by the straight-through choice, so that the task loss reaches the gate
    (in the public code it does not).

    Args:
        inputs: Width of a token.
        outputs: Width of the output.
        bounds: First hidden unit of each learner, and the number of all; see `Learners`.
        activation: Name of the activation; see `ACTIVATIONS`.
        least: The smallest choice: 0 for residual branches, 1 for projections.
        gate: Hidden width of the gate; by default the smallest multiple of 8 that makes it cost
            0.5 % of the learners.
        temperature: Temperature of the gate's Gumbel softmax.
        backend: Name of a backend, which runs the chosen learners; see `potstill.acm.backends`.
        gated: Learners are gated networks, as in SwiGLU: an activated hidden unit is multiplied by
            a linear map of the token.

    Attributes:
        mode: ``"gated"``, ``"image"``, or the number of learners that all tokens get; see
            `set_mode`.

    Raises:
        ConfigError: ``least`` is not from 0 to N, or a temperature that is not positive.
        ShapeError: On call: tokens of another width.

    Example:
        >>> acm = ACM(8, 8, bounds=(0, 4, 8)).eval()
        >>> z = torch.randn(2, 5, 8)
        >>> acm(z).shape
        torch.Size([2, 5, 8])
        >>> with forced(acm, {"": torch.zeros(2, 5, dtype=torch.long)}):
        ...     float(acm(z).detach().abs().max())
        0.0
    """

    lift: nn.Parameter | None
    offset: nn.Parameter | None

    def __init__(
        self,
        inputs: int,
        outputs: int,
        bounds: tuple[int, ...],
        activation: str = "gelu",
        least: int = 0,
        gate: int | None = None,
        temperature: float = 0.8,
        backend: str = "auto",
        gated: bool = False,
    ) -> None:
        super().__init__()
        self.bounds = tuple(bounds)
        self.activation = activation
        self.least = least
        self.backend = backend
        if not 0 <= least <= self.count:
            raise ConfigError(f"ACM: least must be from 0 to {self.count} learners, got {least}")
        activate(torch.zeros(1), activation)  # an unknown name ends here
        hidden = self.bounds[-1]
        self.up = nn.Parameter(torch.empty(hidden, inputs))
        self.bias = nn.Parameter(torch.zeros(hidden))
        self.down = nn.Parameter(torch.empty(hidden, outputs))
        self.shift = nn.Parameter(torch.zeros(outputs))
        lift = nn.Parameter(torch.empty(hidden, inputs)) if gated else None
        self.register_parameter("lift", lift)
        self.register_parameter("offset", nn.Parameter(torch.zeros(hidden)) if gated else None)
        choices = self.count + 1 - least
        width = gate or gate_width(inputs, choices, self.costs[-1])
        self.gate = Gate(inputs, choices, width, temperature)
        self.mode: Mode = "gated"
        self._forced: Tensor | None = None
        self._recorder: Callable[[GateReading], None] | None = None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the learners' weights anew, at the scale of ``nn.Linear``."""
        for weight, fan in ((self.up, self.up.shape[1]), (self.down, self.down.shape[0])):
            nn.init.uniform_(weight, -(fan**-0.5), fan**-0.5)
        nn.init.zeros_(self.bias)
        nn.init.zeros_(self.shift)
        if self.lift is not None and self.offset is not None:
            nn.init.uniform_(self.lift, -(self.inputs**-0.5), self.inputs**-0.5)
            nn.init.zeros_(self.offset)

    @property
    def count(self) -> int:
        """How many learners there are, N."""
        return len(self.bounds) - 1

    @property
    def inputs(self) -> int:
        """Width of a token."""
        return self.up.shape[1]

    @property
    def outputs(self) -> int:
        """Width of the output."""
        return self.down.shape[1]

    @property
    def learners(self) -> Learners:
        """The learners as tensors."""
        return Learners(
            self.up, self.bias, self.down, self.shift, self.bounds, self.activation,
            self.lift, self.offset,
        )  # fmt: skip

    @property
    def costs(self) -> tuple[int, ...]:
        """Multiply-adds of a token by choice, 0 to N; the gate apart."""
        maps = 1 if self.lift is None else 2
        return tuple(bound * (maps * self.inputs + self.outputs) for bound in self.bounds)

    @property
    def gate_cost(self) -> int:
        """Multiply-adds of the gate for a token."""
        return self.gate.rise.weight.numel() + self.gate.choose.weight.numel()

    def forward(self, x: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        """Run what ``mode`` says.

        Args:
            x: Tokens; any leading dimensions, such as [batch tokens in] or [batch h w in].
        """
        if x.shape[-1] != self.inputs:
            raise ShapeError(
                f"ACM: x must be [..., {self.inputs}], got {list(x.shape)}; channels come last"
            )
        flat = x.reshape(-1, self.inputs)
        if self._forced is None and self.mode == "gated" and self.training:
            one_hot = self.gate.sample(x).reshape(-1, self.gate.choices)
            y = backends.weighted(flat, tail_sums(one_hot, self.least), self.learners)
            if self._recorder is not None:  # the budget is about the choices that inference makes
                certain = self.gate.certain(flat)
                self._record(certain.detach().argmax(-1) + self.least, x, certain)
        elif self._forced is None and isinstance(self.mode, int):
            y = self._first(flat, self.mode)
            if self._recorder is not None:
                choices = torch.full((len(flat),), self.mode, device=x.device)
                self._record(choices, x, None)
        else:
            choices = self._choices(x)
            whole = self.mode == "image" and self._forced is None
            if whole and not torch.compiler.is_compiling():
                y = self._by_image(flat, choices, len(flat) // max(len(x), 1))
            else:
                y = backends.run(flat, choices, self.learners, self.backend)
            self._record(choices, x, None)
        return y.unflatten(0, x.shape[:-1])

    def prefixes(self, x: Float[Tensor, "*rows in"]) -> Float[Tensor, "learners_and_one *rows out"]:
        """The output for every choice, ``h(x, 0)`` to ``h(x, N)``."""
        flat = x.reshape(-1, self.inputs)
        parts = [self.learners.only(n)(flat) for n in range(1, self.count + 1)]
        sums = torch.stack([torch.zeros_like(parts[0]), *parts]).cumsum(0)
        return sums.unflatten(1, x.shape[:-1])

    def _first(self, flat: Tensor, k: int) -> Tensor:
        if k == 0:
            return flat[:, :0] @ self.down[:0]
        return self.learners.prefix(k)(flat)

    def _by_image(self, flat: Tensor, choices: Tensor, tokens: int) -> Tensor:
        """Dense products over the images that chose alike: no token is sorted or moved alone."""
        chosen = choices[::tokens]
        found = sorted(set(chosen.tolist()))
        if len(found) == 1:
            return self._first(flat, found[0])
        images = flat.unflatten(0, (-1, tokens))
        y = flat.new_empty(*images.shape[:2], self.outputs)
        for k in found:
            rows = (chosen == k).nonzero()[:, 0]
            part = self._first(images[rows].flatten(0, 1), k)
            y = y.index_copy(0, rows, part.unflatten(0, (-1, tokens)))
        return y.flatten(0, 1)

    def _choices(self, x: Tensor) -> Tensor:
        """Learners of each token, [tokens]."""
        flat = x.reshape(-1, self.inputs)
        if self._forced is None and self.mode == "image":
            logits = self.gate(x).flatten(1, -2)
            chosen = logits.mean(1).argmax(-1) + self.least
            return chosen[:, None].expand(logits.shape[:2]).reshape(-1)
        if self._forced is None:
            return self.gate.pick(flat) + self.least
        choices = self._forced.to(flat.device).reshape(-1)
        if len(choices) != len(flat):
            raise ShapeError(
                f"forced: choices must be one for each of the {len(flat)} tokens, got "
                f"{list(self._forced.shape)}"
            )
        return choices

    def _record(self, choices: Tensor, x: Tensor, one_hot: Tensor | None) -> None:
        if self._recorder is None:
            return
        leading = x.shape[:-1]
        costs = on_device(self.costs, x.device, torch.float32)
        shaped = None if one_hot is None else one_hot.unflatten(0, leading)
        self._recorder(GateReading(choices.unflatten(0, leading), shaped, costs, self.least))

    def extra_repr(self) -> str:
        """Widths and mode, for ``print``."""
        widths = "+".join(map(str, self.learners.widths))
        return f"{self.inputs} -> {widths} -> {self.outputs}, {self.activation}, mode={self.mode}"


def acms(model: nn.Module) -> dict[str, ACM]:
    """The adaptive modules of ``model`` by path, in order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, ACM)}


def require_acms(model: nn.Module, caller: str) -> dict[str, ACM]:
    """`acms`, of which there must be at least one.

    Raises:
        ConfigError: There is none.
    """
    found = acms(model)
    if not found:
        raise ConfigError(
            f"{caller}: model must have adaptive modules, got a {type(model).__name__} without; "
            "call acmize(model) first"
        )
    return found


def phases(student: nn.Module) -> tuple[str, ...]:
    """The phases of training that ``student`` has been through, in order."""
    done: tuple[str, ...] = getattr(student, "acm_phases", ())
    return done


def note_phase(student: nn.Module, phase: str) -> None:
    """Remember that ``student`` has been through ``phase``."""
    done: Any = (*(p for p in phases(student) if p != phase), phase)
    student.acm_phases = done


@contextmanager
def restored(modules: Iterable[ACM], attribute: str) -> Iterator[None]:
    """Put an attribute of ``modules`` (``"mode"``, ``"backend"``) back when the block ends."""
    before = [(acm, getattr(acm, attribute)) for acm in modules]
    try:
        yield
    finally:
        for acm, value in before:
            setattr(acm, attribute, value)


def set_mode(model: nn.Module, mode: Mode | float | Mapping[str, Mode]) -> nn.Module:
    """Choose how many learners the modules of ``model`` run.

    Args:
        model: A model with adaptive modules.
        mode: ``"gated"``: what the gate says for each token; ``"image"``: for each image, by the
            mean of its tokens' logits, without sorting; a number of learners; a fraction of all
            learners, rounded; or one of these for each module by path.

    Returns:
        ``model``.

    Raises:
        ConfigError: Another word; a number outside of what a module allows; a fraction outside of
            [0, 1]; a path that is no adaptive module.
    """
    modules = require_acms(model, "set_mode")
    if isinstance(mode, Mapping):
        for name in mode:
            if name not in modules:
                raise ConfigError(
                    f"set_mode: {name!r} is no adaptive module; {nearest(name, modules)}"
                )
    chosen = {
        name: _resolve(acm, name, mode.get(name, acm.count) if isinstance(mode, Mapping) else mode)
        for name, acm in modules.items()
    }
    for name, acm in modules.items():
        acm.mode = chosen[name]
    return model


def _resolve(acm: ACM, name: str, mode: Any) -> Mode:
    if mode in ("gated", "image"):
        return mode
    if isinstance(mode, str) or not isinstance(mode, int | float):
        raise ConfigError(
            f"set_mode: mode must be 'gated', 'image', a number of learners or a fraction, got "
            f"{mode!r}"
        )
    if isinstance(mode, float):
        if not 0 <= mode <= 1:
            raise ConfigError(
                f"set_mode: a fraction must be in [0, 1], got {mode}; an integer counts learners"
            )
        return max(acm.least, round(mode * acm.count))
    if not acm.least <= mode <= acm.count:
        raise ConfigError(
            f"set_mode: learners of {name!r} must be from {acm.least} to {acm.count}, got {mode}"
        )
    return int(mode)


@contextmanager
def record_gates(model: nn.Module) -> Iterator[dict[str, GateReading]]:
    """Collect the choices of every module while ``model`` runs.

    The dictionary is filled by each forward (a later one replaces an earlier), by path of the
    module. No return type changes, so whatever calls the model may be recorded.

    Raises:
        ConfigError: The model has no adaptive module.
    """
    readings: dict[str, GateReading] = {}
    modules = require_acms(model, "record_gates")
    try:
        for name, acm in modules.items():
            acm._recorder = lambda reading, name=name: readings.__setitem__(name, reading)
        yield readings
    finally:
        for acm in modules.values():
            acm._recorder = None


@contextmanager
def forced(model: nn.Module, choices: Mapping[str, Tensor]) -> Iterator[None]:
    """Replace the gates of the modules named by given choices, [batch *tokens] of 0 to N.

    Raises:
        ConfigError: A path that is no adaptive module, or a choice outside of 0 to N.
        ShapeError: On the forward: not one choice for each token.
    """
    modules = require_acms(model, "forced")
    try:
        for name, tensor in choices.items():
            if name not in modules:
                raise ConfigError(
                    f"forced: {name!r} is no adaptive module; {nearest(name, modules)}"
                )
            low, high = (int(v) for v in tensor.aminmax()) if tensor.numel() else (0, 0)
            if low < 0 or high > modules[name].count:
                raise ConfigError(
                    f"forced: choices of {name!r} must be from 0 to {modules[name].count}, got "
                    f"{low} to {high}"
                )
            modules[name]._forced = tensor
        yield
    finally:
        for acm in modules.values():
            acm._forced = None
