"""Every criterion of the core as an arm of the bench: what it compares, and with which weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potstill.core import ConfigError, Distiller, Losses, Objective, key, nearest, tap
from potstill.core import criteria as c
from potstill.core.adapters import tensor_of

__all__ = ["ARMS", "Arm", "ArmDistiller"]

Sees = Literal["logits", "features", "maps", "tokens", "flow"]


@dataclass(frozen=True)
class Arm:
    """A criterion with what it compares.

    Attributes:
        make: Makes the criterion, given the number of steps.
        sees: Tensors of student and teacher that it gets: logits (with labels), vectors before the
            head, maps before the pooling, these as tokens, or the maps of first and last layer.
        weight: Weight of the criterion.
        labels: Weight of cross-entropy with the user's labels; features alone train no head.
        project: Put a projector before it, where widths differ.
    """

    make: Callable[[int], Callable[..., Tensor]]
    sees: Sees = "logits"
    weight: float = 1.0
    labels: float = 0.0
    project: bool = False


def _logits(criterion: Callable[..., Tensor], **options: Any) -> Arm:
    return Arm(lambda _: partial(criterion, **options))


def _beside(criterion: Callable[..., Tensor], sees: Sees, weight: float, **options: Any) -> Arm:
    """A criterion on features of any width, beside the labels."""
    return Arm(lambda _: partial(criterion, **options), sees, weight, 1.0)


def _behind(criterion: Callable[..., Tensor], sees: Sees, weight: float, **options: Any) -> Arm:
    """A criterion on features behind a projector, beside the labels."""
    return Arm(lambda _: partial(criterion, **options), sees, weight, 1.0, project=True)


def _sparse_kl(z_s: Tensor, z_t: Tensor, y: Tensor) -> Tensor:
    log_p, indices = torch.log_softmax(z_t, -1).topk(3, -1)
    return c.sparse_kl(z_s, indices, log_p)


def _tgeo(z_s: Tensor, z_t: Tensor, y: Tensor) -> Tensor:
    return c.tgeo(z_s, z_t, y, 0.5)


class _Queue(nn.Module):
    """`queue_relation` with the teacher's last features as its queue."""

    def __init__(self, length: int = 256) -> None:
        super().__init__()
        self.length = length
        self.queue: Tensor | None = None

    def forward(self, f_s: Tensor, f_t: Tensor) -> Tensor:
        """Compare, then remember."""
        queue = f_t.roll(1, 0) if self.queue is None else self.queue
        value = c.queue_relation(f_s, f_t, queue)
        self.queue = torch.cat([f_t.detach(), queue])[: self.length]
        return value


def _crd(f_s: Tensor, f_t: Tensor) -> Tensor:
    """`crd_nce` with the other items of the batch as negatives."""
    scores = (F.normalize(f_s) @ F.normalize(f_t).mT / 0.1).exp()
    own = torch.arange(len(scores))
    order = (own[:, None] + own) % len(scores)  # the positive in column 0
    scores = scores.gather(1, order.to(scores.device))
    return c.crd_nce(scores / scores.detach().mean(), 4 * len(scores))


ARMS: Mapping[str, Arm] = {
    "kd": _logits(c.kd),
    "kd+labels": Arm(lambda _: c.kd, weight=0.5, labels=0.5),
    "soft_ce": _logits(c.soft_ce, T=4.0),
    "logit_mse": _logits(c.logit_mse),
    "logit_std": _logits(c.logit_std),
    "wsld": _logits(c.wsld),
    "mft": _logits(c.mft),
    "dkd": _logits(c.dkd),
    "nkd": _logits(c.nkd),
    "reverse_kl": _logits(c.reverse_kl),
    "gjsd": _logits(c.gjsd),
    "tvd": _logits(c.tvd),
    "bdkd": _logits(c.bdkd),
    "skew_fkl": _logits(c.skew_fkl),
    "skew_rkl": _logits(c.skew_rkl),
    "alpha_beta": _logits(c.alpha_beta),
    "renyi": _logits(c.renyi),
    "amari": _logits(c.amari),
    "taid": Arm(lambda steps: c.Taid(steps)),
    "dist": _logits(c.dist),
    "pld": _logits(c.pld),
    "top1": _logits(c.topk_kl, k=1),
    "topk_kl": _logits(c.topk_kl, k=3),
    "sparse_kl": Arm(lambda _: _sparse_kl),
    "tgeo": Arm(lambda _: _tgeo),
    "hint": _behind(c.hint, "features", 0.3),
    "mse": _behind(c.mse, "features", 0.3),
    "l1": _behind(c.l1, "features", 0.3),
    "smooth_l1": _behind(c.smooth_l1, "features", 0.3),
    "cosine": _behind(c.cosine, "features", 1.0),
    "info_nce": _behind(c.info_nce, "features", 0.3),
    "crd_nce": Arm(lambda _: _crd, "features", 0.1, 1.0, project=True),
    "queue_relation": Arm(lambda _: _Queue(), "features", 0.3, 1.0, project=True),
    "sp": _beside(c.sp, "features", 100.0),
    "pkt": _beside(c.pkt, "features", 100.0),
    "cc": _behind(c.cc, "features", 1.0),
    "cckd": _beside(c.cckd, "features", 10.0),
    "cka": _beside(c.cka, "features", 1.0),
    "rkd_d": _beside(c.rkd_d, "features", 1.0),
    "rkd_a": _beside(c.rkd_a, "features", 2.0),
    "at": _beside(c.at, "maps", 100.0),
    "nst": _beside(c.nst, "maps", 10.0),
    "cwd": _behind(c.cwd, "maps", 1.0),
    "pkd": _behind(c.pkd, "maps", 0.3),
    "ickd": _behind(c.ickd, "maps", 1.0),
    "review_hcl": _behind(c.review_hcl, "maps", 0.3),
    "fsp": _behind(c.fsp, "flow", 1.0),
    "token_relation": _beside(c.token_relation, "tokens", 1.0),
}


class ArmDistiller(Distiller):
    """Inputs with labels, compared as an arm says, between two networks with taps of one name.

    Terms: ``arm`` (as `Arm` says) and ``task`` (logits and labels), where they have weight.

    Args:
        student: The student.
        teacher: The teacher.
        name: Name of the arm.
        x: An example of the input, from which widths are read.
        steps: Budget, for criteria that follow it.
        layers: Modules of both whose outputs are the first maps, the last ones, and the vectors
            before the head.

    Raises:
        ConfigError: An unknown arm, or one on maps where the networks have none.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        name: str,
        x: Tensor,
        *,
        steps: int = 300,
        layers: tuple[str, str, str] = ("first", "rest", "pool"),
    ) -> None:
        self.arm, self.layers, objective = _prepared(student, teacher, name, x, steps, layers)
        super().__init__(student, objective, teacher)

    def forward(self, batch: Any, step: int) -> Losses:
        """Route a batch ``(x, y)``."""
        x, y = batch
        z_s, own = _read(self.student, x, self.layers, self.arm.sees)
        _, theirs = _read(self.teacher, x, self.layers, self.arm.sees)
        given = {"arm": (own, theirs) if self.layers else (own, theirs, y), "task": (z_s, y)}
        return self.objective(step, {name: given[name] for name in self.objective.at(step)})


def _prepared(
    student: nn.Module, teacher: nn.Module, name: str, x: Tensor, steps: int,
    layers: tuple[str, str, str],
) -> tuple[Arm, tuple[str, ...], Objective]:  # fmt: skip
    """The arm of a name, the modules that it reads, and its objective."""
    if name not in ARMS:
        raise ConfigError(f"ArmDistiller: no arm {name!r}; {nearest(name, ARMS)}")
    arm = ARMS[name]
    taps: tuple[str, ...] = {
        "features": layers[2:], "maps": layers[1:2], "tokens": layers[1:2], "flow": layers[:2],
        "logits": (),
    }[arm.sees]  # fmt: skip
    criterion = arm.make(steps)
    found = [_seen(model, x, taps) for model in (student, teacher)]
    if arm.sees not in ("logits", "features") and found[0][0].ndim == 2:
        raise ConfigError(f"ArmDistiller: {name} compares maps, and these networks have none")
    if arm.project:
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(key("projector", name))
            criterion = c.Projected(_Projectors(*found), criterion)
    terms: dict[str, Any] = {"arm": (arm.weight, criterion)}
    if arm.labels:
        terms["task"] = (arm.labels, F.cross_entropy)
    return arm, taps, Objective(terms)


def _read(model: Any, x: Tensor, layers: tuple[str, ...], sees: Sees) -> tuple[Tensor, Any]:
    """Logits, and what the criterion sees of a model: these, or features."""
    if not layers:
        z = tensor_of(model(x))
        return z, z
    with tap(model, *layers) as readings:
        z = tensor_of(model(x))
    features = _shaped([readings[name].output for name in layers], sees)
    return z, features[0] if len(features) == 1 else features


class _Projectors(nn.Module):
    """Linear maps or 1 x 1 convolutions to the teacher's widths, one for each tensor."""

    def __init__(self, own: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.maps = nn.ModuleList(
            nn.Linear(s.shape[1], t.shape[1]) if s.ndim == 2
            else c.conv1x1(s.shape[1], t.shape[1], norm=False)
            for s, t in zip(own, theirs, strict=True)
        )  # fmt: skip

    def forward(self, features: Any) -> Any:
        """Project each."""
        if isinstance(features, Tensor):
            return self.maps[0](features)
        return tuple(m(f) for m, f in zip(self.maps, features, strict=True))


@torch.no_grad()
def _seen(model: nn.Module, x: Tensor, layers: tuple[str, ...]) -> tuple[Tensor, ...]:
    """Features of an example."""
    if not layers:
        return ()
    with tap(model, *layers) as readings:
        model(x)
    return tuple(readings[name].output for name in layers)


def _shaped(outputs: list[Tensor], sees: Sees) -> tuple[Tensor, ...]:
    return tuple(f.flatten(2).mT if sees == "tokens" else f for f in outputs)
