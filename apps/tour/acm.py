"""A vision transformer learns to spend on each patch what the patch needs."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from apps.tour.chapter import Chapter, Side, Tell, forward
from apps.tour.digits import MODEL, Digits, digits, draws, to_bytes, train_classifier, vit
from apps.tour.widgets import film, paragraph, plots, sheet
from potstill.acm import (
    acmize,
    calibrate,
    costs,
    distill,
    finetune,
    predict,
    pretrain_gates,
    record_gates,
    save_pretrained,
    share,
)
from potstill.acm.analysis import compute_maps, draw_curves, overlay
from potstill.core import accuracy, seed_all

WIDTH = 192
BUDGETS = (0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)
BUDGET = 0.4
BATCH = 256
SHOWN = 12

TEXT = """Every MLP of the teacher is cut into four learners and gets a gate that says, for each
token, how many of them run. The budget can be changed later, without training: move the slider
and see which patches keep the computation when it becomes scarce."""


def run(tell: Tell, out: Path, quick: bool) -> Chapter:
    """Adaptive Computation Modules (Wojcik et al., AAAI 2025) in their three phases."""
    train, test = digits()
    steps = 2 if quick else 60
    seed_all("tour", "acm")
    teacher = vit(WIDTH).eval()
    train_classifier(teacher, train, 7 * steps, tell("teacher", 0.35))
    student, batches = acmize(teacher), draws(train, 64)
    distill(student, teacher, batches, steps=steps, progress=tell("learners", 0.5))
    pretrain_gates(student, teacher, batches, steps=max(steps // 2, 2), progress=tell("gates", 0.6))
    finetune(student, batches, budget=BUDGET, steps=3 * steps // 2, lr=5e-4,
             progress=tell("all together", 0.85))  # fmt: skip
    dense = top1(teacher, test)
    html = paragraph(TEXT) + budgets(student, dense, train, test, tell, quick)

    calibrate(student, [train.images[:96]], BUDGET, tolerance=0.01)
    architecture = {**MODEL, "embed_dim": WIDTH, "num_heads": WIDTH // 16}
    save_pretrained(
        student, out / "student", architecture="vit_tiny_patch16_224", options=architecture
    )
    many = test.images[:BATCH]
    return Chapter(
        title="Adaptive computation: where a transformer thinks",
        teacher=Side(f"ViT, {WIDTH} wide", teacher, dense, forward, (teacher, many)),
        student=Side(
            f"adaptive, budget {BUDGET:.0%}", student, top1(student, test), forward, (student, many)
        ),
        measure="top-1",
        unit="%",
        work=f"{BATCH} images",
        command="potstill acm distill runs/a runs/trained --data photos/train --budget 0.4",
        html=html,
    )


def top1(model: nn.Module, part: Digits) -> float:
    """Accuracy in percent."""
    logits, _ = predict(model, [part.images])
    return 100 * accuracy(logits, part.labels)


def budgets(
    student: nn.Module, dense: float, train: Digits, test: Digits, tell: Tell, quick: bool
) -> str:
    """The same weights at several budgets: heat maps, accuracy and multiply-adds."""
    chosen = (BUDGET, 1.0) if quick else BUDGETS
    count = costs(student, test.images[:1])
    frames, captions, points = [], [], []
    for done, budget in enumerate(chosen, start=1):
        tell(f"budget {budget:.0%}", 0.85 + 0.15 * done / len(chosen))
        calibrate(student, [train.images[:96]], budget, tolerance=0.01, tries=7)
        with torch.no_grad(), record_gates(student) as readings:
            logits = student(test.images)
        used, top = float(share(readings).mean()), 100 * accuracy(logits, test.labels)
        macs = count.at(used) / 1e6
        maps = compute_maps(readings, (4, 4), student.num_prefix_tokens)[:SHOWN].mean(1)
        frames.append(overlaid(to_bytes(test.images[:SHOWN]), maps))
        points.append((macs, top))
        captions.append(f"budget {used:.0%}: {top:.1f} %, {macs:.1f} MMACs an image")
    families = {"one adaptive model": points, "teacher": [(count.dense / 1e6, dense)]}
    digits = sheet(to_bytes(test.images[:SHOWN]), 4)
    return film(
        {"digits": [digits] * len(chosen), "share of the MLPs' cost": frames},
        captions,
        slider="budget",
        caption="Dark: no learner; bright: all four. Test images, mean over the layers.",
        start=chosen.index(BUDGET),
        pixels=True,
    ) + plots(
        {
            "Accuracy against multiply-adds: every point is the same weights at another budget.": (
                lambda axes: draw_curves(axes, families, "multiply-adds an image [M]", "top-1 [%]")
            )
        }
    )


def overlaid(pictures: torch.Tensor, maps: torch.Tensor) -> Any:
    """One sheet of pictures under their heat, all on the scale from nothing to everything."""
    pairs = zip(pictures.numpy(), maps.numpy(), strict=True)
    return sheet([overlay(picture, heat, (0.0, 1.0)) for picture, heat in pairs], 4)
