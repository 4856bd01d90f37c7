"""Membership: worlds that differ in their members, and how well they can be told apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from potstill.audit.attacks.success import outputs
from potstill.audit.kept import Kept
from potstill.audit.privacy.exposure import confidence, exposure, exposure_floor
from potstill.core import ConfigError, Interrupted, PotstillError, Report, fingerprint, generator

__all__ = ["Attack", "Worlds", "lira", "membership", "roc"]

FEWEST = 5  # four shadows: two on each side, which the ratio attack takes its variances from
Train = Callable[[Tensor, int], Mapping[str, nn.Module]]


class Attack(NamedTuple):
    """How well members are told from others.

    Attributes:
        auc: Area under the ROC curve; equal scores count half.
        at_5: Share of members found at 5 % false alarms.
        at_1: The same at 1 %.
    """

    auc: float
    at_5: float
    at_1: float


def roc(members: Float[Tensor, " m"], others: Float[Tensor, " n"]) -> Attack:
    """Area under the curve and true-positive rates of scores that are high for members.

    NaN where one side is empty.

    Example:
        >>> roc(torch.tensor([1.0, 2, 2, 3]), torch.tensor([0.0, 2, 2, 1])).auc
        0.71875
    """
    from sklearn.metrics import roc_auc_score, roc_curve

    if not len(members) or not len(others):
        return Attack(math.nan, math.nan, math.nan)
    scores = torch.cat([members, others]).double().numpy()
    truth = [1] * len(members) + [0] * len(others)
    false, true, _ = roc_curve(truth, scores, drop_intermediate=False)
    return Attack(
        float(roc_auc_score(truth, scores)),
        *(float(true[false <= most].max()) for most in (0.05, 0.01)),
    )


def lira(
    phi: Float[Tensor, "worlds items"], member: Bool[Tensor, "worlds items"], world: int
) -> tuple[Float[Tensor, " kept"], Bool[Tensor, " kept"]]:
    """Likelihood-ratio scores of the items of one world, with all others as its shadows.

    Source: after Carlini et al., Membership Inference Attacks From First Principles, IEEE S&P 2022:
    means for each item, inside and outside of its shadows' members, and *one pooled variance for
    each side*, since few worlds give no variances for single items.

    Args:
        phi: Confidence in the true label, of each world and item.
        member: Items that each world trained on.
        world: World that is attacked.

    Returns:
        Scores, and whether they are of members; items with fewer than two shadows on a side are
        left out.
    """
    rest = torch.arange(len(phi)) != world
    phi = phi.double()
    sides = []
    for inside in (member[rest], ~member[rest]):
        count = inside.sum(0)
        mean = torch.where(inside, phi[rest], 0.0).sum(0) / count.clamp_min(1)
        enough = count >= 2
        gaps = torch.where(inside & enough, phi[rest] - mean, 0.0).square().sum()
        free = (count[enough] - 1).sum().clamp_min(1)
        sides.append((mean, (gaps / free).clamp_min(1e-12), enough))
    (mean_in, var_in, enough_in), (mean_out, var_out, enough_out) = sides
    own = phi[world]
    score = (own - mean_out).square() / (2 * var_out) - (own - mean_in).square() / (2 * var_in)
    score = score + 0.5 * (var_out / var_in).log()
    kept = enough_in & enough_out
    return score[kept], member[world][kept]


@dataclass(frozen=True)
class Worlds:
    """What the models of all worlds think of all items.

    Attributes:
        phi: By model, confidence in the label, [worlds items].
        member: Items that each world's teacher trained on, [worlds items].
        canaries: Items that are canaries.
        accuracy: By model, accuracy on the test set in each world, where there is one.
    """

    phi: Mapping[str, Tensor]
    member: Tensor
    canaries: Tensor
    accuracy: Mapping[str, list[float]]

    def threshold(self, model: str) -> list[Attack]:
        """The attack by confidence alone, in each world."""
        plain = self._plain()
        return [
            roc(phi[plain & inside], phi[plain & ~inside])
            for phi, inside in zip(self.phi[model], self.member, strict=True)
        ]

    def lira(self, model: str) -> list[Attack]:
        """The likelihood-ratio attack, in each world."""
        plain = self._plain()
        found = []
        for world in range(len(self.member)):
            score, inside = lira(self.phi[model][:, plain], self.member[:, plain], world)
            found.append(roc(score[inside], score[~inside]))
        return found

    def exposure(self, model: str) -> list[float]:
        """Mean exposure of the canaries of each world, in bits."""
        return [
            float(exposure(phi[self.canaries][own], phi[self.canaries][~own]).mean())
            for phi, own in zip(self.phi[model], self.member[:, self.canaries], strict=True)
        ]

    def strangers(self, model: str) -> list[float]:
        """Exposure in each world of canaries that only the next world has: the measured floor."""
        found = []
        for phi, own, other in zip(
            self.phi[model], self.member[:, self.canaries],
            self.member[:, self.canaries].roll(-1, 0), strict=True,
        ):  # fmt: skip
            values = phi[self.canaries]
            found.append(float(exposure(values[other & ~own], values[~other & ~own]).mean()))
        return found

    def floor(self) -> float:
        """Exposure without any memory, in bits."""
        return exposure_floor(int((~self.member[0, self.canaries]).sum()) + 1)

    def table(self, title: str = "What the models give away", **options: Any) -> Report:
        """Attacks and exposure of each model: mean and standard error over worlds."""
        report = Report(title, label="model", **options)
        for model in self.phi:
            threshold, ratio = self.threshold(model), self.lira(model)
            values = {}
            if self.accuracy.get(model):
                values["accuracy %"] = _estimate([100 * a for a in self.accuracy[model]])
            if len(self.canaries):
                values["exposure, bits"] = _estimate(self.exposure(model))
                values["of others' canaries"] = _estimate(self.strangers(model))
                values["without memory"] = f"{self.floor():.2f}"
            report.add(
                model, **values,
                **{
                    "AUC threshold": _estimate([a.auc for a in threshold]),
                    "AUC ratio": _estimate([a.auc for a in ratio]),
                    "TPR at 5 %": _estimate([a.at_5 for a in ratio]),
                    "TPR at 1 %": _estimate([a.at_1 for a in ratio]),
                },
            )  # fmt: skip
        return report

    def _plain(self) -> Tensor:
        plain = torch.ones(self.member.shape[1], dtype=torch.bool)
        plain[self.canaries] = False
        return plain


def membership(
    train: Train,
    items: tuple[Tensor, Int[Tensor, " items"]],
    *,
    worlds: int = 16,
    share: float = 0.5,
    canaries: Int[Tensor, " canaries"] | None = None,
    insert: int = 16,
    test: tuple[Tensor, Tensor] | None = None,
    run: Path | str | None = None,
    seed: int = 0,
) -> Worlds:
    """Train worlds on random halves of the items, and keep what their models think of all items.

    Members are the teacher's: what is asked of a student is what it tells about them. For graphs
    items are nodes and members the training mask; unlabelled neighbours stay in every world.

    Args:
        train: ``(members, seed) -> {name: model}`` with sorted rows of the items; the first model
            is the teacher's, whose weights tell worlds apart.
        items: Inputs and classes.
        worlds: Number of worlds, at least 5: the ratio attack takes two shadows on each side.
        share: Share of the ordinary items that a world trains on, in (0, 1).
        canaries: Rows of `plant`; a world trains on ``insert`` of them.
        insert: Canaries in a world.
        test: Inputs and classes for the accuracy.
        run: Folder in which finished worlds are kept; a run found there is continued.
        seed: Seed of the draws; world k trains with ``seed + k``.

    Raises:
        ConfigError: Fewer than 5 worlds, members all or none, too few canaries, or two worlds whose
            teachers have the same weights.
        CheckpointError: ``run`` holds other worlds.
        PotstillError: Training failed; the message names the world, and those done are kept.
    """
    x, y = items
    canaries = torch.empty(0, dtype=torch.long) if canaries is None else canaries
    plain = torch.ones(len(x), dtype=torch.bool)
    plain[canaries] = False
    count = round(share * int(plain.sum()))
    if worlds < FEWEST:
        raise ConfigError(f"membership: worlds must be at least {FEWEST}, got {worlds}")
    if not 0 < count < int(plain.sum()):
        raise ConfigError(
            f"membership: share must leave members and others, got {share}: {count} of "
            f"{int(plain.sum())}"
        )
    if len(canaries) and not 0 < insert < len(canaries) - insert:
        raise ConfigError(
            f"membership: insert must be less than half of the {len(canaries)} canaries, got "
            f"{insert}"
        )
    about = {"items": fingerprint(x, y, canaries), "share": share, "insert": insert, "seed": seed}
    kept = Kept(run, about)
    rows: list[Any] = []
    for world in range(worlds):
        member = _members(plain, count, canaries, insert, seed + world)

        def piece(world: int = world, member: Tensor = member) -> dict[str, Any]:
            return _world(train, x, y, member, test, world, seed + world)

        rows.append((kept(f"world-{world:03}", piece), member))
        for before in range(world):
            if rows[before][0]["weights"] == rows[world][0]["weights"]:
                raise ConfigError(
                    f"membership: worlds must differ, got the same teacher in worlds {before} and "
                    f"{world}; does train use members and seed?"
                )
    names = list(rows[0][0]["phi"])
    return Worlds(
        {name: torch.tensor([r["phi"][name] for r, _ in rows], dtype=torch.float64)
         for name in names},
        torch.stack([member for _, member in rows]),
        canaries,
        {name: [r["accuracy"][name] for r, _ in rows] for name in names} if test else {},
    )  # fmt: skip


def _members(plain: Tensor, count: int, canaries: Tensor, insert: int, seed: int) -> Tensor:
    rng = generator("members", seed)
    rows = plain.nonzero().squeeze(1)
    member = torch.zeros(len(plain), dtype=torch.bool)
    member[rows[torch.randperm(len(rows), generator=rng)[:count]]] = True
    member[canaries[torch.randperm(len(canaries), generator=rng)[:insert]]] = True
    return member


def _world(
    train: Train,
    x: Tensor,
    y: Tensor,
    member: Tensor,
    test: tuple[Tensor, Tensor] | None,
    world: int,
    seed: int,
) -> dict[str, Any]:
    """Everything that is kept of a world."""
    try:
        models = train(member.nonzero().squeeze(1), seed)
    except Interrupted:
        raise
    except Exception as error:
        raise PotstillError(
            f"membership: world {world} failed: {error}; finished worlds are kept: mend it and "
            "start again"
        ) from error
    first = next(iter(models.values()))
    found: dict[str, Any] = {"weights": fingerprint(first.state_dict())[:16], "phi": {}}
    found["accuracy"] = {}
    for name, model in models.items():
        found["phi"][name] = confidence(outputs(model, x), y).tolist()
        if test is not None:
            right = outputs(model, test[0]).argmax(1) == test[1]
            found["accuracy"][name] = float(right.double().mean())
    return found


def _estimate(values: list[float]) -> str:
    """Mean and standard error."""
    found = torch.tensor(values, dtype=torch.float64)
    return f"{float(found.mean()):.3f} ± {float(found.std()) / math.sqrt(len(values)):.3f}"
