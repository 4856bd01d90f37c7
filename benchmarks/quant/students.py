"""Students of other domains in few bits: a ViT, an MLP that a GCN taught, and a hash table.

python -m benchmarks quant vit cora hash-table top-k
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from benchmarks.mae.learning import Bench
from potstill.core import Objective, accuracy, fit, seed_all
from potstill.core.criteria import kd, topk_kl
from potstill.core.measure.bench import Figure, at_most, benchmark
from potstill.core.store import root
from potstill.graph import (
    GraphToMLP,
    distill,
    evaluate,
    load,
    objective_for,
    recipe_for,
    teacher_logits,
    train_teacher,
)
from potstill.nerf import load_scene, make_field, score, train_field
from potstill.quant import Grid, bake, bytes_of, lower, post_training

FREE = "issue 23: plain rounding is free"


@benchmark(
    data=("vision/cifar10_10k.zip", "vision/tiny_vit_cifar10.safetensors"),
    budget=300,
    threads=1,
    targets={f"loss of mse, {bits} bits": at_most(1.0, FREE) for bits in (8, 4)},
)
def vit(quick: bool) -> dict[str, Figure]:
    """Points that a ViT of 468,778 parameters loses on 2,000 images of CIFAR-10 by rounding."""
    bench = Bench.load(limit=256 if quick else None)
    model, count = bench.teacher, 100 if quick else 2000
    inputs = [bench.batches(0)(step, 0, 1)[0] for step in range(2 if quick else 4)]

    def top(student: nn.Module) -> float:
        with torch.no_grad():
            z = torch.cat([student(x) for x in bench.images[:count].split(500)])
        return 100 * float(accuracy(z, bench.labels[:count]))

    full = top(model)
    found = {"full precision": Figure(full, "%"), "kilobytes": Figure(bytes_of(model) / 1e3, "kB")}
    for bits in (8, 4) if quick else (8, 4, 3, 2):
        for method in ("max", "mse", "gptq"):
            made = post_training(
                model, Grid(bits), inputs, method=method, keep={"patch_embed": 8, "head": 8}
            ).student
            found[f"loss of {method}, {bits} bits"] = Figure(full - top(made), "points")
        found[f"kilobytes, {bits} bits"] = Figure(bytes_of(made) / 1e3, "kB")
    return found


class Soft(nn.Module):
    """A criterion of logits as a term of `GraphToMLP`."""

    def __init__(self, criterion) -> None:
        super().__init__()
        self.criterion = criterion

    def forward(self, z_s: Tensor, z_t: Tensor, *graph: Tensor) -> Tensor:
        return self.criterion(z_s, z_t)


class Taught:
    """An MLP that a GCN has taught, by GLNN, and what its bits cost it."""

    def __init__(self, dataset: str, seed: int, epochs: int | None, **changes: int) -> None:
        recipe = replace(recipe_for(dataset, "GCN"), **changes)
        self.recipe = replace(recipe, epochs=epochs) if epochs else recipe
        self.seed, self.data = seed, load(dataset, seed=seed, sparse=False)
        teacher = train_teacher(self.data, self.recipe, seed=seed)
        self.teacher = 100 * teacher.accuracy["test"]
        self.data.z_teacher = teacher_logits(teacher.model, self.data)
        self.student = distill(self.data, self.data.z_teacher, self.recipe, "glnn", seed=seed).model

    @torch.no_grad()
    def top(self, student: nn.Module) -> float:
        return 100 * evaluate(self.data, student.eval()(self.data.x))["test"]

    def trained(self, bits: int, objective: Objective, steps: int) -> float:
        student = lower(self.student, Grid(bits))
        fit(GraphToMLP(student, objective), [self.data], steps=steps, lr=2e-3, seed=self.seed,
            progress=False)  # fmt: skip
        return self.top(student)


@benchmark(data="graph/planetoid/Cora/raw", budget=900, threads=1)
def cora(quick: bool) -> dict[str, Figure]:
    """Test accuracy of an MLP on Cora at 4 and 2 bits, three seeds, and its bytes."""
    found: dict[str, list[float]] = {}
    for seed in (2022,) if quick else (2022, 2023, 2024):
        case = Taught("cora", seed, 3 if quick else None)
        row = {"GCN": case.teacher, "full precision": case.top(case.student)}
        row["kilobytes"] = bytes_of(case.student) / 1e3
        for bits in (4, 2):
            for method in ("mse", "gptq"):
                made = post_training(case.student, Grid(bits), [case.data.x], method=method).student
                row[f"{method}, {bits} bits"] = case.top(made)
            for name, method in (("labels", "mlp"), ("teacher", "glnn")):
                objective = objective_for(method, case.recipe, data=case.data)
                trained = case.trained(bits, objective, 2 if quick else 100)
                row[f"{name}, {bits} bits"] = trained
            row[f"kilobytes, {bits} bits"] = bytes_of(made) / 1e3
        for name, value in row.items():
            found.setdefault(name, []).append(value)
    return {n: Figure(v, "kB" if "kilo" in n else "%") for n, v in found.items()}


@benchmark(data="graph/coauthor/CS/raw", budget=900, threads=1)
def top_k(quick: bool) -> dict[str, Figure]:
    """Coauthor CS, 15 classes, the most at hand: a 2-bit MLP with kd and with `topk_kl`, once."""
    case = Taught("cs", 2022, 3 if quick else 60, hidden=64)
    found = {"GCN": case.teacher, "full precision": case.top(case.student)}
    found["mse"] = case.top(post_training(case.student, Grid(2), method="mse").student)
    criteria = {"kd": kd, **{f"topk_kl, k={k}": lambda s, t, k=k: topk_kl(s, t, k=k)
                             for k in (1, 3, 5)}}  # fmt: skip
    for name, criterion in criteria.items():
        objective = Objective(soft=(1.0, Soft(criterion)))
        found[name] = case.trained(2, objective, 2 if quick else 60)
    return {name: Figure(value, "%") for name, value in found.items()}


@benchmark(data="nerf/lego_200", budget=600, threads=1)
def hash_table(quick: bool) -> dict[str, Figure]:
    """PSNR of a hash field on lego at 100x100 with its table at 8 and 4 bits, and the bytes."""
    scene = load_scene(root() / "nerf" / "lego_200", downsample=2)
    seed_all("field", 0)
    field, _ = train_field(
        make_field("hash", scene.space), scene, steps=3 if quick else 1300, progress=False
    )
    field, views = field.eval(), 1 if quick else None
    full = score(field, scene.test, views)
    found = {"full precision": Figure(full, "dB"), "megabytes": Figure(bytes_of(field) / 1e6, "MB")}
    for bits in (8, 4):
        for block in (64,) if bits == 8 else (64, 16):
            grid = Grid(bits, axis=None, block=block)
            low = lower(field, Grid(32), parameters={"grid.table": grid})
            name = f"{bits} bits, blocks of {block}"
            found[f"loss, {name}"] = Figure(full - score(bake(low), scene.test, views), "dB")
            found[f"megabytes, {name}"] = Figure(bytes_of(low) / 1e6, "MB")
    return found
