"""Lower a model to a grid and bake it again, by parametrizations: no layer is replaced."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from potstill.core import ConfigError, DataError, nearest
from potstill.quant.weights.activations import release_activations
from potstill.quant.weights.grid import Grid
from potstill.quant.weights.quantizers import LearnedStep, Quantizer

__all__ = ["LAYERS", "Lowered", "bake", "lower", "lowered"]

LAYERS: Mapping[type[nn.Module], tuple[str, ...]] = {
    **dict.fromkeys((nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding), ("weight",)),
    **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), ("weight",)),
    nn.MultiheadAttention: ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"),
}
"""Types whose weights `lower` takes, with the names of these weights."""

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
Make = Callable[[Tensor, Grid, str], Quantizer]


class Lowered(NamedTuple):
    """A lowered weight of a model.

    Attributes:
        module: Module that has it.
        path: Path of the module.
        name: Name of the weight in the module.
        original: Full-precision weight.
        quantizer: Its quantizer.
    """

    module: nn.Module
    path: str
    name: str
    original: nn.Parameter
    quantizer: Quantizer

    @property
    def key(self) -> str:
        """Name of the weight in the model."""
        return f"{self.path}.{self.name}".lstrip(".")


def lower(
    model: nn.Module,
    grid: Grid,
    *,
    keep: Mapping[str, int] | None = None,
    parameters: Mapping[str, Grid] | None = None,
    types: Sequence[type[nn.Module]] = tuple(LAYERS),
    quantizer: Make = LearnedStep,
    start: str = "mse",
) -> nn.Module:
    """A copy of ``model`` whose weights are rounded to ``grid`` wherever they are used.

    Weights become parametrizations, so every forward works as it is, also one that uses a weight
    itself; the copy trains like any module, and `bake` makes a plain one of it. The weight of a
    layer is ``parametrizations.weight.original``, its scale ``parametrizations.weight.0.scale``.

    Args:
        model: Any module; left as it is.
        grid: Levels of the weights. Transposed convolutions have their rows on axis 1.
        keep: Bits of modules that differ, with all that is inside, by path: ``{"head": 8}``; 32
            leaves a module alone.
        parameters: Grids of other parameters, by name: ``{"encoding.table": Grid(8, axis=None)}``.
        types: Types whose weights are lowered, of `LAYERS` or of classes derived from these.
        quantizer: Class of the quantizers; weights of other bits than ``grid`` have `LearnedStep`.
        start: How scales are found: "mse" or "max".

    Raises:
        ConfigError: A path that is not in the model, a model that is lowered already, weights that
            two modules share, or nothing to lower.
        DataError: A weight that is not finite.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> student = lower(net, Grid(bits=2), keep={"2": 8})
        >>> len(student[0].weight[0].unique()) <= 4
        True
        >>> torch.equal(bake(student)(torch.ones(1, 4)), student(torch.ones(1, 4)))
        True
    """
    keep, parameters = keep or {}, parameters or {}
    _check(model, keep, parameters)
    chosen = dict(_layers(model, grid, keep, types))
    for key, each in parameters.items():
        path, _, name = key.rpartition(".")
        chosen[path, name] = each
    chosen = {where: each for where, each in chosen.items() if each.bits < 32}
    if not chosen and grid.bits < 32:
        found = sorted({type(module).__name__ for module in model.modules()})
        raise ConfigError(
            f"lower: the model must have a weight to lower, got none among {', '.join(found)}; "
            "name parameters=, or keep less"
        )
    _check_apart(model, chosen)
    student = copy.deepcopy(model)
    norms = tuple(each for each in student.modules() if isinstance(each, _BatchNorm))
    for (path, name), each in chosen.items():
        module = student.get_submodule(path)
        weight = getattr(module, name)
        if not torch.isfinite(weight).all():
            raise DataError(f"lower: {path}.{name} must be finite, got NaN or infinity")
        make = quantizer if each.bits == grid.bits else LearnedStep
        made = make(weight, each, start).to(weight.device)
        made.order, made.norms = tuple(module._parameters), norms
        # unsafe: the check would call it twice
        parametrize.register_parametrization(module, name, made, unsafe=True)
    return student


def lowered(model: nn.Module) -> list[Lowered]:
    """All lowered weights of a model, in its order."""
    found = []
    for path, module in model.named_modules():
        if not parametrize.is_parametrized(module):
            continue
        for name, chain in module.parametrizations.items():
            if isinstance(chain[0], Quantizer):
                found.append(Lowered(module, path, name, chain.original, chain[0]))
    return found


@torch.no_grad()
def bake(model: nn.Module) -> nn.Module:
    """A plain copy of a lowered model: its weights are the rounded ones, bit for bit.

    Inputs and outputs of layers are no longer rounded.

    torch's ``remove_parametrizations`` would break every other copy of the model, which share one
    class with it. A model that is not lowered is copied as it is.
    """
    values = {each.key: getattr(each.module, each.name).clone() for each in lowered(model)}
    plain = copy.deepcopy(model)
    for each in lowered(plain):
        release_activations(each.module)
        if hasattr(each.module, "parametrizations"):
            trains = {
                name: chain.original.requires_grad
                for name, chain in each.module.parametrizations.items()  # type: ignore[operator,union-attr]
            }
            del each.module.parametrizations
            each.module.__class__ = type(each.module).__bases__[0]
            for name, train in trains.items():
                value = values[f"{each.path}.{name}".lstrip(".")]
                each.module.register_parameter(name, nn.Parameter(value, train))
            for name in each.quantizer.order:  # as they were, for whoever goes by their order
                each.module._parameters[name] = each.module._parameters.pop(name)
    return plain


def _check(model: nn.Module, keep: Mapping[str, int], parameters: Mapping[str, Grid]) -> None:
    if lowered(model):
        raise ConfigError("lower: the model must be a plain one, got a lowered one; bake it first")
    modules = [path for path, _ in model.named_modules() if path]
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    for what, asked, known in (("keep", keep, modules), ("parameters", parameters, names)):
        for path in asked:
            if path not in known:
                raise ConfigError(
                    f"lower: {what} must name paths of the model, got {path!r}; "
                    f"{nearest(path, known)}"
                )


def _layers(
    model: nn.Module, grid: Grid, keep: Mapping[str, int], types: Sequence[type[nn.Module]]
) -> Iterator[tuple[tuple[str, str], Grid]]:
    """Weights of layers with their grids: the longest path of ``keep`` that leads there wins."""
    for path, module in model.named_modules():
        kinds = [kind for kind in types if isinstance(module, kind)]
        names = next((LAYERS[base] for base in LAYERS if isinstance(module, base)), ("weight",))
        over = [kept for kept in keep if path == kept or path.startswith(f"{kept}.")]
        bits = keep[max(over, key=len)] if over else grid.bits
        for name in names if kinds else ():
            if isinstance(getattr(module, name, None), Tensor):
                turned = isinstance(module, _TRANSPOSED) and grid.axis == 0
                form = "twos" if grid.bits == 1 else grid.form
                axis = 1 if turned else grid.axis
                yield (path, name), replace(grid, bits=bits, axis=axis, form=form)


def _check_apart(model: nn.Module, chosen: Mapping[Any, Grid]) -> None:
    """One parametrization for a tensor: the other module would go on with the original."""
    seen: dict[int, str] = {}
    for path, name in chosen:
        module = model.get_submodule(path)
        here = f"{path}.{name}".lstrip(".")
        if parametrize.is_parametrized(module):
            raise ConfigError(
                f"lower: {here} must be a plain parameter, got one that is parametrized, as by "
                f"weight_norm; remove the parametrization first, or keep={{{path!r}: 32}}"
            )
        weight = getattr(module, name)
        if id(weight) in seen:
            raise ConfigError(
                f"lower: {here} and {seen[id(weight)]} must not be one tensor, got shared weights; "
                f"keep={{{path!r}: 32}} leaves one of them alone"
            )
        seen[id(weight)] = here
