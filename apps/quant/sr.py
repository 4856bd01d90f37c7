"""A small upscaler: our own IMDN x2, on photographs of scikit-image and scikit-learn."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import nn

from apps.tour.sr import enlarge, photographs, portrait
from potstill.core import Distiller, Objective
from potstill.quant import Subject
from potstill.sr import Patches, UpscalerToUpscaler, degrade, load_model, score


def subject() -> Subject:
    """PSNR of a portrait that no weight has seen; the teacher is the student in full precision."""
    student = load_model("potstill-x2")
    patches = Patches(degrade(photographs(), 2), patch=24, batch=8)
    pair = portrait()
    lr = torch.from_numpy(pair.lr).permute(2, 0, 1)[None].float() / 255

    def distiller(lowered: nn.Module, taught: bool) -> Distiller:
        name = "output" if taught else "task"
        teacher = copy.deepcopy(student) if taught else None
        return UpscalerToUpscaler(lowered, Objective({name: (1.0, F.l1_loss)}), teacher)

    return Subject(
        student=student,
        inputs=[patches(step, 0, 1)[0] for step in range(8)],
        score=lambda lowered: score(enlarge(lowered.eval(), lr), pair.hr, 2).psnr,
        distiller=distiller,
        batches=patches,
        keep={"head": 8, "upsampler": 8},
        lr=1e-4,
        unit="dB",
    )
