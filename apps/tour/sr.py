"""A network that doubles photographs teaches a smaller one; then both see a new face."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from matplotlib import get_data_path
from numpy.typing import NDArray
from torch import Tensor, nn

from apps.tour.chapter import Chapter, Side, Tell, forward
from apps.tour.widgets import paper, paragraph, wipe
from potstill.core import seed_all
from potstill.sr import (
    IMDN,
    TRAINING,
    Pair,
    Terms,
    degrade,
    imresize,
    load_model,
    read_image,
    save_model,
    score,
    train,
)
from potstill.sr.evaluation import strip
from potstill.sr.images import quantize

Bytes = NDArray[np.uint8]

TEXT = """The teacher ships with potstill-sr. The student learns from five photographs of
scikit-image and scikit-learn, and from what the teacher makes of them. What you see is none of
them: Grace Hopper, the portrait that comes with matplotlib (public domain, US Navy), halved and
enlarged."""


def photographs() -> list[Bytes]:
    """What the student learns from; JPEGs halved to lose their artefacts."""
    from skimage import data
    from sklearn.datasets import load_sample_images

    halved = [imresize(image, 0.5) for image in load_sample_images().images]
    return [*halved, data.astronaut(), data.coffee(), data.chelsea()]


def portrait() -> Pair:
    """The photograph that is looked at, and its half."""
    path = Path(get_data_path(), "sample_data", "grace_hopper.jpg")
    return degrade([read_image(path).rgb8()[30:510, 40:472]], 2)[0]


def run(tell: Tell, out: Path, quick: bool) -> Chapter:
    """IMDN x2 to a narrower IMDN, from photographs and from the teacher's output."""
    teacher = load_model("potstill-x2")
    seed_all("tour", "sr")
    student = IMDN(2, channels=16, blocks=2, global_skip="bicubic")
    nn.init.zeros_(student.upsampler.weight)  # so that it starts as bicubic
    training = replace(TRAINING, steps=20 if quick else 800, batch=8, ema=0.98, device="cpu")
    terms = Terms(task=0.5, output=0.5)
    tell("photographs", 0.05)
    pairs = degrade(photographs()[: 1 if quick else None], 2)
    shown = tell("student", 0.95)
    train(student, pairs, training, terms=terms, teacher=teacher, patch=20, progress=shown)
    student = student.eval().to(memory_format=torch.contiguous_format)
    save_model(student, out / "student.safetensors", recipe="apps/tour")

    tell("looking", 1.0)
    pair = portrait()
    lr = torch.from_numpy(pair.lr).permute(2, 0, 1)[None].float() / 255
    made = {"bicubic": imresize(pair.lr, 2).astype(np.uint8)}
    for name, model in (("student", student), ("teacher", teacher)):
        made[name] = enlarge(model, lr)
    decibels = {name: score(image, pair.hr, 2).psnr for name, image in made.items()}
    return Chapter(
        title="Super-resolution: photographs at twice their size",
        teacher=Side(
            "IMDN, 32 wide, 4 blocks", teacher, decibels["teacher"], forward, (teacher, lr)
        ),
        student=Side(
            "IMDN, 16 wide, 2 blocks", student, decibels["student"], forward, (student, lr)
        ),
        measure="PSNR",
        unit="dB",
        work=f"1 photograph of {pair.lr.shape[1]} x {pair.lr.shape[0]}",
        command="potstill sr distill photos/ --out runs/kd --teacher potstill-x2 --output 0.5",
        html=paragraph(TEXT) + looks(pair, made, ("bicubic", "student")),
    )


def looks(pair: Pair, made: dict[str, Bytes], names: tuple[str, str]) -> str:
    """Two enlargements under a slider, and all of them where the first is worst."""
    scale = pair.hr.shape[0] // pair.lr.shape[0]
    told = (f"{name} {score(made[name], pair.hr, scale).psnr:.2f} dB" for name in names)
    where = f"Where {next(iter(made))} is furthest from the original, and the error of each."
    return wipe(made[names[0]], made[names[1]], names, ", ".join(told) + ".") + paper(
        strip(pair.hr, made, scale=scale, size=72), where
    )


@torch.no_grad()
def enlarge(model: nn.Module, lr: Tensor) -> Bytes:
    """What a network makes of ``[1 3 h w]``, as bytes."""
    return quantize(model(lr))
