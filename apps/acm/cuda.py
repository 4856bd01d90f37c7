"""An adaptive ViT-B on 224 pixels: its time by budget, against the dense model.

python -m apps.acm.cuda                    random choices of each budget: times need no training
python -m apps.acm.cuda --images photos    trains learners and gates on yours, and calibrates them
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from apps import card
from potstill.acm import (
    acmize,
    acms,
    calibrate,
    costs,
    distill,
    forced,
    load_images,
    pretrain_gates,
    profile,
)
from potstill.acm.analysis import random_choices
from potstill.core.measure.report import draw_svg

BUDGETS, LEARNERS = (0.25, 0.5, 0.75, 1.0), 4


def models(small: bool) -> tuple[nn.Module, nn.Module, int]:
    """The dense model, the adaptive one made of it, and the side of its images."""
    torch.manual_seed(0)
    name, shape = "vit_base_patch16_224", {}
    if small:
        name, shape = "vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "depth": 2}
    dense = timm.create_model(name, **shape).eval().to(card.DEVICE)
    return dense, acmize(dense, learners=LEARNERS).eval().to(card.DEVICE), 32 if small else 224


def race(dense: nn.Module, adaptive: nn.Module, images: Tensor, rounds: int) -> Any:
    """Times of dense and adaptive at each budget, in turns, in bf16."""
    tokens = (images.shape[-1] // (8 if images.shape[-1] == 32 else 16)) ** 2 + 1

    def call(model: nn.Module, choices: dict[str, Tensor]) -> Tensor:
        with torch.inference_mode(), torch.autocast(card.DEVICE, torch.bfloat16):
            if not choices:
                return model(images)
            with forced(model, choices):
                return model(images)

    calls = {"dense": lambda: call(dense, {})}
    for budget in BUDGETS:
        choices = {}
        for seed, name in enumerate(acms(adaptive)):
            count = len(images) * tokens
            k = torch.full((count,), LEARNERS)
            k = random_choices(count, LEARNERS, budget, seed) if budget < 1 else k
            choices[name] = k.view(len(images), tokens).to(card.DEVICE)
        calls[f"budget {budget:g}"] = lambda choices=choices: call(adaptive, choices)
    return card.turns(calls, rounds=rounds)


def main(arguments: Sequence[str] | None = None) -> Path:
    """Race, and with images train and calibrate; returns the page."""
    about = (__doc__ or "").splitlines()[0]
    options = card.options_of(about, arguments, images="folder of images, for trained gates")
    small = options.small
    dense, adaptive, side = models(small)
    images = torch.randn(4 if small else 128, 3, side, side, device=card.DEVICE)
    times = race(dense, adaptive, images, 2 if small else 9)
    count = costs(adaptive, images[:1])
    for budget in BUDGETS:
        print(f"budget {budget:g}: {count.at(budget) / 1e9:.2f} GMACs an image")
    sections = {"Random choices, bf16": card.table(times, "images", len(images))}

    def draw(axes: Any) -> None:
        whole = times["dense"].median
        share = [count.at(budget) / count.at(1.0) for budget in BUDGETS]
        found = [times[f"budget {budget:g}"].median / whole for budget in BUDGETS]
        axes.plot(share, found, "o-", color="#3b82f6", label="measured")
        axes.plot([0, 1], [0, 1], color="#8b949e", label="if time were multiply-adds")
        axes.axhline(1, color="#f97316", label="dense")
        axes.legend()
        axes.set_xlabel("share of the multiply-adds")
        axes.set_ylabel("time, of the dense model's")

    sections["Time by budget"] = draw_svg(draw)
    if options.images or small:
        batches = [torch.randn(4, 3, side, side) for _ in range(2)]
        if options.images:
            found = load_images(options.images, size=side)
            batches = [found.normalized(part) for part in found.pixels[:2048].split(32)]
        steps = 3 if small else 300
        distill(adaptive, dense, batches, steps=steps, progress=False)
        pretrain_gates(adaptive, dense, batches, steps=steps, progress=False)
        rows = []
        for budget in BUDGETS[1:3]:
            calibrate(adaptive, batches, budget, tries=4 if small else 24)
            spent = profile(adaptive, batches, dense=dense, blocks=1 if small else 7)
            rows.append(f"<p>budget {budget:g}: {spent.budget:.3f} spent, {spent.milliseconds:.1f} "
                        f"ms a batch, dense {spent.dense_milliseconds:.1f} ms</p>")  # fmt: skip
        sections["Calibrated gates"] = "".join(rows)
    return card.write(options, "An adaptive model on a GPU", sections)


if __name__ == "__main__":
    main()
