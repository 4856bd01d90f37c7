"""FF-G2M under two triggers: what an MLP inherits of a poisoned GNN.

    python apps/audit/graph.py                       # the embedded digits graph
    python apps/audit/graph.py --dataset cora --poisoned 4 --seeds 3

A feature trigger is seen by an MLP; a subgraph trigger leaves the features of its node as they are,
so the student's logits are the same bits with and without it, and the program says so. Few nodes
are poisoned: with many, the teacher collapses into the target class, which is no backdoor.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from potstill.audit import FeatureTrigger, SubgraphTrigger, outputs, poison_nodes
from potstill.core import Column, Report, generator
from potstill.graph import Recipe, distill, load, recipe_for, teacher_logits, train_teacher

AT_ONCE = 100


def measure(data: Any, recipe: Recipe, count: int, target: int, seed: int) -> list[dict[str, Any]]:
    """Accuracy, success and base rate of teacher and students, for each trigger and a clean run."""
    data.x = data.x.to_dense()
    rarest = data.x.sum(0).argsort()[:10].tolist()
    triggers = {"feature": FeatureTrigger(rarest), "subgraph": SubgraphTrigger(rarest)}
    free = ~(data.train_mask | data.test_mask) & (data.y != target)
    rng = generator("poisoned", seed)
    hidden = free.nonzero().squeeze(1)
    nodes = hidden[torch.randperm(len(hidden), generator=rng)[:count]]
    others = (data.test_mask & (data.y != target)).nonzero().squeeze(1)
    judged = others[torch.randperm(len(others), generator=rng)[:AT_ONCE]]
    graphs = {"clean": data} | {
        n: poison_nodes(data, t, target, nodes) for n, t in triggers.items()
    }
    rows = []
    for name, graph in graphs.items():
        teacher = train_teacher(graph, recipe, seed=seed)
        own = distill(data, teacher_logits(teacher.model, data), recipe, seed=seed)
        theirs = distill(graph, teacher_logits(teacher.model, graph), recipe, seed=seed)
        for kind, trigger in triggers.items():
            if name not in ("clean", kind):
                continue
            changed = trigger(data, judged)
            clean = teacher_logits(teacher.model, data)
            stamped = teacher_logits(teacher.model, changed)[: data.num_nodes]
            arms = {"teacher": (clean, stamped)} | {
                f"FF-G2M, {whose} graph": (outputs(s.model, data.x), _mlp(s.model, changed, data))
                for whose, s in (("own", own), ("stranger's", theirs))
            }
            for arm, (before, after) in arms.items():
                right = before.argmax(1) == data.y
                rows.append({
                    "trigger": kind, "poisoned": name != "clean", "arm": arm,
                    "accuracy": 100 * float(right[data.test_mask].double().mean()),
                    "success": _rate(after[judged], target),
                    "without trigger": _rate(before[judged], target),
                    "same bits": torch.equal(before, after),
                })  # fmt: skip
    return rows


def _mlp(model: Any, changed: Any, data: Any) -> Tensor:
    """Logits of the nodes of ``data``, with the features that they have after the change."""
    return outputs(model, changed.x[: data.num_nodes])


def _rate(z: Tensor, target: int) -> float:
    return 100 * float((z.argmax(1) == target).double().mean())


def report(rows: Sequence[Sequence[dict[str, Any]]], dataset: str) -> Report:
    """A row for each arm, with figures of all seeds."""
    found = Report(
        f"FF-G2M under a feature and a subgraph trigger: {dataset}", label="trigger, arm",
        columns={"accuracy": Column("%"), "success": Column("%"), "without trigger": Column("%")},
        seed=f"0-{len(rows) - 1}",
    )  # fmt: skip
    for each in zip(*rows, strict=True):
        first = each[0]
        poisoned = "poisoned" if first["poisoned"] else "clean"
        found.add(
            f"{first['trigger']}, {first['arm']}, {poisoned} teacher",
            **{name: [row[name] for row in each]
               for name in ("accuracy", "success", "without trigger")},
            bits="same" if all(row["same bits"] for row in each) else "differ",
        )  # fmt: skip
    return found


def main(arguments: Sequence[str] | None = None) -> list[list[dict[str, Any]]]:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--poisoned", type=int, default=4, help="nodes that are poisoned")
    parser.add_argument("--target", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, help="of each training; those of the recipe else")
    parser.add_argument("--out", type=Path, default=Path("runs/audit/graph"))
    options = parser.parse_args(arguments)
    known = Recipe() if options.dataset == "digits" else recipe_for(options.dataset, "GCN")
    recipe = replace(known, epochs=options.epochs or known.epochs)
    rows = [
        measure(load(options.dataset, seed=seed), recipe, options.poisoned, options.target, seed)
        for seed in range(options.seeds)
    ]
    made = report(rows, options.dataset)
    made.show()
    made.save(options.out)
    return rows


if __name__ == "__main__":
    main()
