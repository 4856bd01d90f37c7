"""Self-attention relations of a ViT teacher, for students of any width and any number of heads."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn

from potstill.core import ConfigError, Distiller, Losses, Objective, ShapeError, tap
from potstill.core.criteria import kd, token_relation
from potstill.search.elastic import Elastic, ElasticSandwich
from potstill.search.space import Choice

__all__ = ["RelationDistiller", "RelationSandwich", "qkv_relation"]


def qkv_relation(
    qkv_s: Float[Tensor, "batch tokens packed_s"],
    qkv_t: Float[Tensor, "batch tokens packed_t"],
    *,
    heads: int,
    kind: Literal["kl", "mse"] = "kl",
) -> Float[Tensor, ""]:
    """How tokens relate as queries, as keys and as values: the sum of three relations.

    Source: AutoDistil (Xu et al., NeurIPS 2022) with the relation heads of MiniLMv2 (Wang et al.,
    ACL Findings 2021): ``KL(softmax(A_t A_t' / sqrt(d_t)) || softmax(A_s A_s' / sqrt(d_s)))``, mean
    over tokens and heads, for A of queries, keys and values. ``kind="mse"`` compares ``A A' /
    sqrt(d)`` without the softmax, as the authors' code does. That code drops channels that the
    heads do not divide; here such a width is refused.

    Args:
        qkv_s: Packed projections of the student, [B L 3 D].
        qkv_t: Those of the teacher; the same tokens, any width.
        heads: Relation heads, a divisor of both widths.
        kind: Comparison.

    Raises:
        ShapeError: A width that the heads do not divide, or other tokens.
    """
    if qkv_s.shape[:2] != qkv_t.shape[:2]:
        raise ShapeError(
            f"qkv_relation: student must have {qkv_t.shape[1]} tokens of {qkv_t.shape[0]} items "
            f"like the teacher, got {qkv_s.shape[1]} of {qkv_s.shape[0]}; give both the same grid "
            "of patches and the same prefix tokens"
        )
    total = qkv_s.new_zeros(())
    parts = [_split("student", qkv_s, heads), _split("teacher", qkv_t, heads)]
    for a_s, a_t in zip(*parts, strict=True):
        total = total + token_relation(a_s, a_t, T=1.0, kind=kind, normalize=False)
    return total


def _split(whose: str, qkv: Tensor, heads: int) -> list[Tensor]:
    """Queries, keys and values, [B * heads, L, D / heads] each, so that A A' is over sqrt(d)."""
    width = qkv.shape[2] // 3
    if qkv.shape[2] % 3 or width % heads:
        raise ShapeError(
            f"qkv_relation: heads must divide the width of the {whose}, {width}, got {heads}"
        )
    each = qkv.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)  # [3 B R L d]
    return list((each / math.sqrt(math.sqrt(width // heads))).flatten(1, 2).unbind())


class RelationDistiller(Distiller):
    """A ViT of timm learns the relations of another one's last block, and its logits.

    Terms: ``relation`` (packed projections of both), ``kd`` (logits of both), ``task`` (logits,
    labels), as far as the objective has them. A batch is (images, labels).

    Args:
        student: With ``blocks[-1].attn.qkv``.
        teacher: Likewise, with the same number of tokens.
        heads: Relation heads; those of the teacher by default.
        weights: Weights of relation and kd.
        objective: Other terms, under these names.

    Raises:
        ConfigError: A model without packed projections.
        ShapeError: On the first step: other numbers of tokens, or widths that heads do not divide.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        heads: int | None = None,
        weights: tuple[float, float] = (1.0, 1.0),
        objective: Objective | None = None,
    ) -> None:
        self.paths = _last(student), _last(teacher)
        own: Any = teacher.get_submodule(self.paths[1].removesuffix(".qkv"))
        relation = partial(qkv_relation, heads=heads or own.num_heads)
        terms = objective or Objective(relation=(weights[0], relation), kd=(weights[1], kd))
        super().__init__(student, terms, teacher)

    def forward(self, batch: Any, step: int) -> Losses:
        """Terms of a batch (images, labels)."""
        x, y = batch
        assert self.teacher is not None
        names, (path_s, path_t) = self.objective.at(step), self.paths
        with tap(self.student, path_s) as h_s:
            z_s = self.student(x)
        with tap(self.teacher.model, path_t) as h_t:
            z_t = self.teacher(x)
        tensors = {
            "relation": (h_s[path_s].output, h_t[path_t].output), "kd": (z_s, z_t), "task": (z_s, y)
        }  # fmt: skip
        return self.objective(step, {name: tensors[name] for name in names})


class RelationSandwich(ElasticSandwich):
    """AutoDistil: train a supernet of ViTs by the relations of a teacher's last block alone.

    Source: Xu et al., NeurIPS 2022: the largest, the smallest and two random students in each step,
    no labels. K sub-spaces are K spaces, each with a run of its own. Terms: ``taught`` (the
    largest), ``smallest``, ``random``. There it is BERT; the transposition to images is ours.

    Args:
        student: Supernet of ViTs of timm.
        steps: Length of the whole training.
        teacher: A ViT of timm with the same number of tokens.
        heads: Relation heads; those of the teacher by default.
        kind: Comparison of `qkv_relation`.
        **options: More of `potstill.core.schemes.Sandwich`.
    """

    def __init__(
        self,
        student: Elastic,
        steps: int,
        *,
        teacher: nn.Module,
        heads: int | None = None,
        kind: Literal["kl", "mse"] = "kl",
        **options: Any,
    ) -> None:
        self.path = _last(teacher)
        own: Any = teacher.get_submodule(self.path.removesuffix(".qkv"))
        distance = partial(qkv_relation, heads=heads or own.num_heads, kind=kind)
        options = {"delay": 0.0, "warmup": 0.0, **options}
        super().__init__(student, steps, task=None, teacher=teacher, distance=distance, **options)

    def run(self, part: Choice | None, x: Any) -> Tensor:
        """Packed projections of a candidate's last block."""
        student: Any = self.student
        model = student.full if part is None else student.skeleton(part)
        path = _last(model)
        with tap(model, path) as readings:
            student(x, part)
        found: Tensor = readings[path].output
        return found

    def reference(self, x: Any) -> Tensor:
        """Those of the teacher."""
        assert self.teacher is not None
        with tap(self.teacher.model, self.path, stop=True) as readings:
            self.teacher(x)
        found: Tensor = readings[self.path].output
        return found


def _last(model: nn.Module) -> str:
    blocks: Any = getattr(model, "blocks", ())
    path = f"blocks.{len(blocks) - 1}.attn.qkv"
    try:
        model.get_submodule(path)
    except AttributeError:
        raise ConfigError(
            f"RelationDistiller: models must have blocks with attn.qkv, as timm's ViTs have, got "
            f"{type(model).__name__}"
        ) from None
    return path
