"""ViT-B to ViT-S on images at 224, in bf16: how a step's time falls with the share that is hidden.

python -m apps.mae.cuda                    images of noise: only times
python -m apps.mae.cuda --images photos    and what the student learns from yours
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from apps import card
from potstill.core import Engine, fit
from potstill.core.images import load_images
from potstill.core.measure.report import draw_svg
from potstill.mae import MaskedAutoencoder, MaskedToMasked, RandomMasking, adamw

RATIOS = (0.0, 0.25, 0.5, 0.75, 0.9)


def pictures(folder: str, count: int, size: int) -> Tensor:
    """A batch of a folder's images, or of noise."""
    if not folder:
        return torch.randn(count, 3, size, size)
    images = load_images(folder, size=size)
    return images.normalized(images.pixels[:count])


def distiller(ratio: float, small: bool) -> MaskedToMasked:
    """Teacher and student with that share hidden; at 0 both see everything, the dense reference."""
    torch.manual_seed(0)
    shape = {"img_size": 32, "patch_size": 8, "depth": 2} if small else {"img_size": 224}
    names = ("vit_tiny_patch16_224",) * 2 if small else (
        "vit_base_patch16_224", "vit_small_patch16_224")  # fmt: skip
    teacher, student = (timm.create_model(name, num_classes=0, **shape) for name in names)
    decoder = {"depth": 1, "width": 64} if ratio else None  # nothing hidden, nothing to paint
    masked = MaskedAutoencoder(student, decoder, fixed_positions=True)
    return MaskedToMasked(masked, teacher, masking=RandomMasking(ratio), layers=0.75)


def main(arguments: Sequence[str] | None = None) -> Path:
    """Sweep the ratio, then train; returns the page."""
    about = (__doc__ or "").splitlines()[0]
    options = card.options_of(about, arguments, images="folder of images")
    small, ratios = options.small, (0.0, 0.75) if options.small else RATIOS
    batch = pictures(options.images, 4 if small else 128, 32 if small else 224)
    made = {f"{100 * r:.0f} % hidden": distiller(r, small).to(card.DEVICE) for r in ratios}
    on_device = batch.to(card.DEVICE)

    def step(one: MaskedToMasked) -> None:
        one.zero_grad(set_to_none=True)
        with torch.autocast(card.DEVICE, torch.bfloat16):
            loss = one(on_device, 0).total
        loss.backward()

    calls = {name: (lambda one=one: step(one)) for name, one in made.items()}
    times = card.turns(calls, rounds=2 if small else 9)
    sweep = card.table(times, "images", len(batch))
    chosen = distiller(0.75, small)
    with Engine(precision="bf16") as engine:
        rows = fit(
            chosen, [batch], steps=3 if small else 200, optimizer=adamw(), engine=engine,
            progress=False,
        )  # fmt: skip
    print(f"loss {rows[0]['loss']:.4f} to {rows[-1]['loss']:.4f} in {len(rows)} steps")

    def draw(axes: Any) -> None:
        speed = [len(batch) / time.median for time in times.values()]
        axes.bar(list(times), speed, color="#3b82f6")
        axes.set_ylabel("images a second, forward and backward")

    def curve(axes: Any) -> None:
        axes.plot([row["loss"] for row in rows], color="#3b82f6")
        axes.set_xlabel("step")
        axes.set_ylabel("loss")

    sections = {
        "A step in bf16": sweep + draw_svg(draw),
        "Training with 75 % hidden": draw_svg(curve),
    }
    return card.write(options, "Masked distillation on a GPU", sections)


if __name__ == "__main__":
    main()
