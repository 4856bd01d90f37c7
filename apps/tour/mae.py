"""A vision transformer teaches a narrower one that sees a quarter of each image, and few labels."""

from __future__ import annotations

from pathlib import Path

import torch

from apps.tour.chapter import Chapter, Side, Tell, forward
from apps.tour.digits import Digits, digits, draws, to_bytes, train_classifier, vit
from apps.tour.widgets import film, paragraph, sheet
from potstill.core import cosine, fit, generator, seed_all
from potstill.mae import (
    Classification,
    Decoder,
    Encoder,
    MaskedToMasked,
    RandomMasking,
    Student,
    adamw,
    create_encoder,
    prepare_classifier,
    top1,
)

HALF = (0.5,) * 3
STUDENT = Encoder("vit_tiny_patch16_224", 16, 4, width=32, depth=3, heads=2, mean=HALF, std=HALF)
BATCH = 256
A_CLASS = 10  # labelled digits of a class that the student gets
SHARES = (0.25, 0.5, 0.625, 0.75, 0.8125, 0.875)

TEXT = """First without labels: of each digit both networks see the same quarter of the patches;
the student paints the rest and copies what the teacher feels about the quarter. Then with ten
labels a class, where its teacher had about 135. Move the slider: the student was only ever
trained with 75 % hidden."""


def run(tell: Tell, out: Path, quick: bool) -> Chapter:
    """DMAE (Bai et al., CVPR 2023), then fine-tuning on few labels; beside it, from scratch."""
    train, test = digits()
    long, short = (4, 2) if quick else (900, 400)
    seed_all("tour", "mae")
    teacher = vit(64)
    train_classifier(teacher, train, short, tell("teacher", 0.15))

    seed_all("tour", "student")
    student = Student(STUDENT, Decoder(depth=1, width=32))
    body = vit(64, num_classes=0, global_pool="token")  # the teacher without its head
    body.load_state_dict(teacher.state_dict(), strict=False)
    distiller = MaskedToMasked(student, body, masking=RandomMasking(0.75))
    fit(
        distiller,
        draws(train, 128),
        steps=long,
        lr=4e-3,
        optimizer=adamw(),
        schedule=cosine(warmup=0.1),
        progress=tell("student, masked, no labels", 0.7),
    )
    student.save_pretrained(out / "student", teacher="a ViT on the digits")

    few = Digits(*(part[_some(train.labels)] for part in train))
    tuned = tune(student.export_student(), few, short, tell("student, ten labels a class", 0.85))
    seed_all("tour", "scratch")
    plain = tune(create_encoder(STUDENT), few, short, tell("the same from scratch", 1.0))
    alone = top1(plain, *test)
    many = test.images[:BATCH]
    return Chapter(
        title="Masked images: a student that saw a quarter of everything",
        teacher=Side("ViT, 64 wide", teacher, top1(teacher, *test), forward, (teacher, many)),
        student=Side("ViT, 32 wide, DMAE", tuned, top1(tuned, *test), forward, (tuned, many)),
        measure="top-1",
        unit="%",
        work=f"{BATCH} images",
        command="potstill mae pretrain --config $(potstill mae recipe light_vit_small) "
        "--data.train photos/",
        html=paragraph(TEXT)
        + reconstructions(student, test)
        + paragraph(f"From scratch, with the same ten labels a class: {alone:.1f} %."),
    )


def tune(encoder: torch.nn.Module, part: Digits, steps: int, progress: object) -> torch.nn.Module:
    """An encoder as a classifier, fine-tuned on labelled images."""
    model = prepare_classifier(encoder, 10, drop_path=0.0)
    fit(
        Classification(model),
        draws(part, len(part.labels)),
        steps=steps,
        lr=3e-3,
        optimizer=adamw(),
        schedule=cosine(warmup=0.1),
        progress=progress,
    )
    return model


def reconstructions(student: Student, test: Digits) -> str:
    """What is seen, what is painted and the error, for several shares of hidden patches."""
    shown = test.images[:12]
    n, (rows, columns) = len(shown), student.encoder.grid
    patch = shown.shape[-1] // columns
    seen, painted, errors, captions = [], [], [], []
    for share in SHARES:
        plan = RandomMasking(share)(n, student.encoder.grid, generator=generator("plan"))
        made = student.reconstruct(shown, plan).clamp(-1, 1)
        hidden = plan.mask.view(n, 1, rows, columns)
        hidden = hidden.repeat_interleave(patch, 2).repeat_interleave(patch, 3)
        seen.append(sheet(to_bytes(shown * (1 - hidden) - 0.3 * hidden), 3))
        painted.append(sheet(to_bytes(made), 3))
        errors.append(sheet(to_bytes((made - shown).abs() - 1), 3))
        error = float((made - shown).square()[hidden.expand_as(shown) > 0].mean())
        captions.append(f"{share:.0%} hidden, mean squared error there {error / 4:.3f}")
    panes = {"original": [sheet(to_bytes(shown), 3)] * len(SHARES), "what it sees": seen,
             "what it paints": painted, "error": errors}  # fmt: skip
    return film(
        panes,
        captions,
        slider="share of hidden patches",
        caption="Twelve digits that it was never trained on; values from 0 to 1.",
        start=SHARES.index(0.75),
        pixels=True,
    )


def _some(labels: torch.Tensor) -> torch.Tensor:
    """The first rows of each class."""
    return torch.cat([(labels == c).nonzero()[:A_CLASS, 0] for c in range(10)])
