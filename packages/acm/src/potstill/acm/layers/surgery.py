"""Surgery: dense modules out, adaptive ones in, and back."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from timm.layers.activations import QuickGELU
from timm.layers.mlp import GluMlp, Mlp, SwiGLU
from torch import Tensor, nn

from potstill.acm.backends import BACKENDS
from potstill.acm.backends.learners import split_widths
from potstill.acm.layers.module import ACM, acms, require_acms
from potstill.acm.layers.splitting import Units, split_linear, split_mlp
from potstill.core import ConfigError, tap

__all__ = [
    "ModuleSpec", "Source", "SplitProjection", "acmize", "deacmize", "dense_readings", "install",
    "sources", "specs",
]  # fmt: skip

Predicate = Callable[[str, nn.Module], bool]

TARGETS = ("mlp", "qkvo", "qkvo_shared")

_NAMES = {"GELU": "gelu", "QuickGELU": "quick_gelu", "GELUTanh": "gelu_tanh", "ReLU": "relu",
          "SiLU": "silu", "Sigmoid": "sigmoid", "Identity": "identity"}  # fmt: skip


@dataclass(frozen=True)
class ModuleSpec:
    """All that is needed to build one adaptive module again, apart from its weights.

    Attributes:
        inputs: Width of a token.
        outputs: Width of the output.
        bounds: Bounds of the `Learners`.
        activation: Name of the activation.
        least: The smallest choice.
        gate: Hidden width of the gate.
        temperature: Temperature of the gate.
        gated: Learners are gated networks, as in SwiGLU.
    """

    inputs: int
    outputs: int
    bounds: tuple[int, ...]
    activation: str = "gelu"
    least: int = 0
    gate: int | None = None
    temperature: float = 0.8
    gated: bool = False

    def build(self, backend: str = "auto") -> ACM:
        """The module, with random weights."""
        return ACM(**{**asdict(self), "bounds": tuple(self.bounds)}, backend=backend)


class SplitProjection(nn.Module):
    """A fused projection as several adaptive ones, side by side: drop-in for ``attn.qkv``."""

    def __init__(self, parts: Mapping[str, ACM]) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        """All outputs, concatenated."""
        return torch.cat([part(x) for part in self.children()], dim=-1)


class Source(NamedTuple):
    """The dense module that an adaptive one stands for.

    Attributes:
        path: Path of the dense module.
        columns: Part of its outputs.
    """

    path: str
    columns: slice


def acmize(
    model: nn.Module,
    targets: Sequence[str] = ("mlp",),
    learners: int = 4,
    *,
    flops_factor: float = 1.0,
    layers: Collection[int] | None = None,
    predicate: Predicate | None = None,
    initial: str = "split",
    temperature: float = 0.8,
    backend: str = "auto",
) -> nn.Module:
    """A trainable copy of ``model`` whose chosen token-wise maps are adaptive.

    Blocks are found by structure: a module ``mlp`` (timm's ``Mlp``, ``SwiGLU`` or ``GluMlp``)
    beside a module ``attn``. Attention itself, norms, patch embedding and head stay as they are.

    Args:
        model: A timm ViT-like model; not changed. It is the teacher of the phases that follow.
        targets: ``"mlp"``; ``"qkvo"``, the four projections of attention, each with a gate, as
            published; ``"qkvo_shared"``, one gate for q, k and v. On a CPU only MLPs turn saved
            multiply-adds into saved time.
        learners: Learners of each module, N >= 1. Where N does not divide the hidden units, the
            last learner takes the remainder.
        flops_factor: Cost of all learners relative to the dense module, > 0.
        layers: Numbers of the blocks to change, from 0; all by default.
        predicate: ``predicate(path, module)``: change these modules instead, whatever they are. A
            timm ``Mlp`` or a linear map starts from its own weights; any other token-wise map with
            linear layers starts at random, and learns in phase 1.
        initial: Weights of the learners: ``"split"``, from the dense ones, or ``"random"``.
        temperature: Temperature of the gates' Gumbel softmax, > 0.
        backend: Name of a backend; see `potstill.acm.backends`.

    Raises:
        ConfigError: An option out of range; nothing to change; a model that is adaptive already; a
            module that cannot be split.
        BackendError: The backend cannot run where the model is.

    Example:
        >>> import timm
        >>> vit = timm.create_model("vit_tiny_patch16_224", depth=2, num_classes=10)
        >>> adaptive = acmize(vit, learners=4)
        >>> list(acms(adaptive))
        ['blocks.0.mlp', 'blocks.1.mlp']
        >>> adaptive.blocks[0].mlp.learners.widths
        (192, 192, 192, 192)
    """
    _check(model, targets, learners, flops_factor, initial)
    BACKENDS.resolve(backend, next((p.device for p in model.parameters()), "cpu"))
    if predicate is not None:
        chosen = [(n, m, "map") for n, m in _outermost(model, predicate)]
    else:
        chosen = list(_blocks_targets(model, targets, layers))
    if not chosen:
        raise ConfigError(_nothing(model))
    adaptive = copy.deepcopy(model).requires_grad_()  # the model may be a frozen teacher by now
    for path, module, kind in chosen:
        new = _replacement(path, module, kind, learners, flops_factor, initial, temperature)
        like = next(module.parameters())
        adaptive.set_submodule(path, new.to(like.device, like.dtype).train(module.training))
    for acm in acms(adaptive).values():
        acm.backend = backend
    if any(not acm.learners.equal for acm in acms(adaptive).values()):
        warnings.warn(
            f"acmize: {learners} learners do not divide the hidden units; the last learner of a "
            "module takes the remainder",
            stacklevel=2,
        )
    return adaptive


def deacmize(model: nn.Module, k: int | Mapping[str, int]) -> nn.Module:
    """A dense copy of ``model`` in which each module has become its first ``k`` learners.

    Args:
        model: Adaptive model; not changed.
        k: Number of learners, 1 to N, or one by path of the module; N gives the dense model back.

    Raises:
        ConfigError: ``k`` is out of range or missing for a module, or nothing is adaptive.
    """
    modules = require_acms(model, "deacmize")
    dense = copy.deepcopy(model)
    for path, acm in modules.items():
        count = k.get(path) if isinstance(k, Mapping) else k
        if count is None or not 1 <= count <= acm.count:
            raise ConfigError(
                f"deacmize: k of {path!r} must be from 1 to {acm.count} learners, got {count}"
            )
        dense.set_submodule(path, _dense(acm, count))
    return dense


def specs(model: nn.Module) -> dict[str, ModuleSpec]:
    """How the adaptive modules of ``model`` are built, by path."""
    return {
        path: ModuleSpec(
            acm.inputs, acm.outputs, acm.bounds, acm.activation, acm.least,
            acm.gate.rise.out_features, acm.gate.temperature, acm.lift is not None,
        )
        for path, acm in acms(model).items()
    }  # fmt: skip


def install(model: nn.Module, modules: Mapping[str, ModuleSpec], backend: str = "auto") -> None:
    """Put adaptive modules with random weights where ``modules`` says: in place, before loading.

    Raises:
        ConfigError: The model has no such place.
    """
    paths = {name for name, _ in model.named_modules()}
    split: dict[str, dict[str, ACM]] = {}
    for path, spec in modules.items():
        parent, _, leaf = path.rpartition(".")
        if path in paths:
            model.set_submodule(path, spec.build(backend))
        elif parent in paths and isinstance(model.get_submodule(parent), nn.Linear):
            split.setdefault(parent, {})[leaf] = spec.build(backend)
        else:
            raise ConfigError(
                f"install: {type(model).__name__} must have a module {path!r}, got none; was the "
                "checkpoint made from another architecture?"
            )
    for parent, parts in split.items():
        ordered = {name: parts[name] for name in "qkv"}  # JSON may have sorted them
        model.set_submodule(parent, SplitProjection(ordered))


def sources(model: nn.Module) -> dict[str, Source]:
    """For each adaptive module of ``model``: which module of the dense model it replaces."""
    found = {}
    for path, acm in acms(model).items():
        parent = path.rpartition(".")[0]
        owner = model.get_submodule(parent)
        if isinstance(owner, SplitProjection):
            parts = list(owner.children())
            start = acm.outputs * parts.index(acm)  # q, k and v are equally wide
            found[path] = Source(parent, slice(start, start + acm.outputs))
        else:
            found[path] = Source(path, slice(None))
    return found


def dense_readings(
    teacher: nn.Module, where: Mapping[str, Source], images: Tensor
) -> dict[str, tuple[Tensor, Tensor]]:
    """Input and output of the dense module behind each adaptive one, by path of the latter.

    Args:
        teacher: The dense model; it runs up to the last of these modules.
        where: Dense modules, from `sources`.
        images: [batch 3 height width].
    """
    with tap(teacher, *{source.path for source in where.values()}, stop=True) as taps:
        teacher(images)
    return {
        name: (taps[source.path].input, taps[source.path].output[..., source.columns])
        for name, source in where.items()
    }


# --- finding -------------------------------------------------------------------------------------


def _check(
    model: nn.Module, targets: Sequence[str], learners: int, factor: float, initial: str
) -> None:
    if acms(model):
        raise ConfigError(
            f"acmize: model must be dense, got one with {len(acms(model))} adaptive modules; "
            "deacmize it first"
        )
    unknown = [target for target in targets if target not in TARGETS]
    if isinstance(targets, str) or unknown or not targets:
        raise ConfigError(
            f"acmize: targets must be some of {', '.join(TARGETS)} in a tuple, got {targets!r}"
        )
    if "qkvo" in targets and "qkvo_shared" in targets:
        raise ConfigError("acmize: targets must name qkvo or qkvo_shared, got both")
    if learners < 1:
        raise ConfigError(f"acmize: learners must be at least 1, got {learners}; 4 is published")
    if not factor > 0:
        raise ConfigError(
            f"acmize: flops_factor must be positive, got {factor}; 1.0 keeps the dense cost"
        )
    if initial not in ("split", "random"):
        raise ConfigError(f"acmize: initial must be 'split' or 'random', got {initial!r}")


def _outermost(model: nn.Module, predicate: Predicate) -> Iterator[tuple[str, nn.Module]]:
    """Modules that the predicate takes, without those inside another one."""
    taken: list[str] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{path}.") for path in taken)
        if name and not inside and predicate(name, module):
            taken.append(name)
            yield name, module


def _blocks_targets(
    model: nn.Module, targets: Sequence[str], layers: Collection[int] | None
) -> Iterator[tuple[str, nn.Module, str]]:
    blocks = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(getattr(module, "mlp", None), nn.Module) and hasattr(module, "attn")
    ]
    unknown = sorted(set(layers or ()) - set(range(len(blocks))))
    if blocks and unknown:
        raise ConfigError(f"acmize: layers must be from 0 to {len(blocks) - 1}, got {unknown}")
    for number, (name, block) in enumerate(blocks):
        if layers is not None and number not in layers:
            continue
        prefix = f"{name}." if name else ""
        if "qkvo" in targets or "qkvo_shared" in targets:
            _splittable_attention(f"{prefix}attn", block.attn)
            shared = "qkvo_shared" in targets
            yield f"{prefix}attn.qkv", block.attn.qkv, "map" if shared else "qkv"
            yield f"{prefix}attn.proj", block.attn.proj, "map"
        if "mlp" in targets:
            _splittable_mlp(f"{prefix}mlp", block.mlp)
            yield f"{prefix}mlp", block.mlp, "mlp"


def _splittable_mlp(path: str, module: Any) -> None:
    what = f"acmize: {path!r} must be a plain timm Mlp, SwiGLU or GluMlp of linear layers"
    advice = (
        "pass predicate=lambda path, module: ... to learn it as a black box in phase 1, or leave "
        "its block out with layers="
    )
    if not _is_plain(module):
        inner = getattr(module, "norm", None)
        more = f" with a {type(inner).__name__} inside" if isinstance(inner, nn.LayerNorm) else ""
        raise ConfigError(f"{what}, got {type(module).__name__}{more}; {advice}")
    inputs = Units.of(module).up.shape[1]
    if inputs != module.fc2.out_features:
        raise ConfigError(
            f"{what} and of one width, got {inputs} to {module.fc2.out_features}; {advice}"
        )


def _is_plain(module: Any) -> bool:
    """Hidden units that depend on the token alone, each for itself."""
    known = isinstance(module, Mlp | SwiGLU | GluMlp) and isinstance(module.norm, nn.Identity)
    return known and isinstance(module.fc2, nn.Linear)


def _splittable_attention(path: str, module: Any) -> None:
    kind = type(module)
    linear = all(type(getattr(module, name, None)) is nn.Linear for name in ("qkv", "proj"))
    if not linear or kind.__name__ not in ("Attention", "WindowAttention"):
        raise ConfigError(
            f"acmize: {path!r} must be timm's Attention with a fused qkv, got {kind.__name__}; "
            "use targets=('mlp',)"
        )


def _nothing(model: nn.Module) -> str:
    kinds = (nn.Linear, Mlp)
    candidates = [name for name, module in model.named_modules() if isinstance(module, kinds)]
    shown = ", ".join(candidates[:8]) + (", ..." if len(candidates) > 8 else "")
    return (
        f"acmize: model must have transformer blocks with attn and mlp, got {type(model).__name__} "
        f"without; token-wise maps to choose with predicate=: {shown or 'none'}"
    )


# --- replacing -----------------------------------------------------------------------------------


def _replacement(
    path: str, module: Any, kind: str, learners: int, factor: float, initial: str, heat: float
) -> nn.Module:
    def sized(inputs: int, outputs: int, cost: int, activation: str) -> ACM:
        """Equally wide learners that together cost ``factor * cost`` multiply-adds."""
        width = max(1, round(factor * cost / ((inputs + outputs) * learners)))
        bounds = split_widths(width * learners, learners)
        return ModuleSpec(inputs, outputs, bounds, activation, 1, temperature=heat).build()

    def projection(linear: nn.Linear, rows: slice = slice(None)) -> ACM:
        weight = linear.weight[rows]
        acm = sized(weight.shape[1], len(weight), weight.numel(), "identity")
        if initial == "split":
            split_linear(acm, linear, rows)
        return acm

    if isinstance(module, nn.Linear):
        if kind != "qkv":
            return projection(module)
        starts = range(0, module.out_features, module.out_features // 3)
        parts = (projection(module, slice(i, i + module.out_features // 3)) for i in starts)
        return SplitProjection(dict(zip("qkv", parts, strict=True)))
    linears = [m for m in module.modules() if isinstance(m, nn.Linear)]
    if not linears:
        raise ConfigError(
            f"acmize: {path!r} must have linear layers, which give its widths and cost, got "
            f"{type(module).__name__}"
        )
    inputs, outputs = linears[0].in_features, linears[-1].out_features
    if not _is_plain(module):
        return sized(inputs, outputs, sum(linear.weight.numel() for linear in linears), "gelu")
    bounds = split_widths(round(factor * linears[-1].in_features), learners)
    least, name = int(inputs != outputs), _activation(path, module.act)
    gated = not isinstance(module, Mlp)
    spec = ModuleSpec(inputs, outputs, bounds, name, least, temperature=heat, gated=gated)
    acm = spec.build()
    if initial == "split":
        split_mlp(acm, module)
    return acm


def _activation(path: str, module: nn.Module) -> str:
    if isinstance(module, nn.GELU):
        return "gelu" if module.approximate == "none" else "gelu_tanh"
    name = _NAMES.get(type(module).__name__)
    if name is None:
        raise ConfigError(
            f"acmize: the activation of {path!r} must be one of {', '.join(_NAMES)}, got "
            f"{type(module).__name__}"
        )
    return name


_LAYERS: dict[str, Any] = {
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "quick_gelu": QuickGELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "sigmoid": nn.Sigmoid,
    "identity": nn.Identity,
}


@torch.no_grad()
def _dense(acm: ACM, k: int) -> nn.Module:
    """The first ``k`` learners as a timm ``Mlp`` or ``SwiGLU``."""
    first = acm.learners.prefix(k)
    kind, up = (Mlp, "fc1") if first.lift is None else (SwiGLU, "fc1_g")
    mlp = kind(acm.inputs, len(first.up), acm.outputs, act_layer=_LAYERS[acm.activation])
    state = {f"{up}.weight": first.up, f"{up}.bias": first.bias,
             "fc2.weight": first.down.t(), "fc2.bias": first.shift}  # fmt: skip
    if first.lift is not None and first.offset is not None:
        state |= {"fc1_x.weight": first.lift, "fc1_x.bias": first.offset}
    mlp.load_state_dict(state)
    return mlp.to(acm.up.device, acm.up.dtype).train(acm.training)
