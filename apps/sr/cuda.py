"""4K frames a second of IMDN x2 and x4 in half precision, in tiles without seams; and a training.

python -m apps.sr.cuda                        a portrait, enlarged to 3840x2160
python -m apps.sr.cuda --image frame.png
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from apps import card
from potstill.core.measure.report import draw_svg
from potstill.sr import IMDN, TRAINING, Terms, degrade, load_model, train, upscale


def frame(path: str, height: int, width: int) -> Tensor:
    """A frame of that size, [1 3 H W] in [0, 1]."""
    if path:
        image = Image.open(path).convert("RGB")
    else:
        import matplotlib.cbook

        with matplotlib.cbook.get_sample_data("grace_hopper.jpg") as file:
            image = Image.open(file).convert("RGB")
    cut = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS, centering=(0.5, 0.2))
    pixels = np.array(cut, np.float32)
    return torch.from_numpy(pixels / 255).permute(2, 0, 1)[None]


def speed(x: Tensor, scale: int, small: bool) -> tuple[str, Tensor]:
    """Times of the ways to enlarge a frame, and the enlarged frame."""
    network = load_model(f"potstill-x{scale}").to(card.DEVICE).eval()
    run = partial(upscale, x.to(card.DEVICE), network, device=card.DEVICE)
    tile = 16 if small else 512
    ways = {
        "float32, whole": partial(run, tile="none"),
        "bf16, whole": partial(run, tile="none", precision="bf16"),
        "bf16, exact tiles": partial(run, tile=tile, tile_mode="exact", precision="bf16"),
        "bf16, tiles of others": partial(run, tile=tile, tile_mode="independent", precision="bf16"),
    }
    if not small:
        ways["bf16, whole, compiled"] = partial(run, tile="none", precision="bf16", compile=True)
    print(f"x{scale} from {x.shape[3]}x{x.shape[2]}")
    times = card.turns(ways, rounds=2 if small else 7)
    whole = ways["float32, whole"]().image
    apart = {name: float((way().image - whole).abs().max() * 255) for name, way in ways.items()}
    print(", ".join(f"{name}: {grey:.2f} grey levels from float32" for name, grey in apart.items()))
    return card.table(times, "frames", 1), whole


def main(arguments: Sequence[str] | None = None) -> Path:
    """Time both factors, train a smaller network; returns the page."""
    about = (__doc__ or "").splitlines()[0]
    options = card.options_of(about, arguments, image="a frame of your own")
    small, sections = options.small, {}
    for scale in (2, 4):
        height, width = (2160 // scale, 3840 // scale) if not small else (24, 32)
        x = frame(options.image, height, width)
        sections[f"x{scale}"], large = speed(x, scale, small)
        side = min(160, height)
        top, left = (height - side) // 2, (width - side) // 2
        cut = x[0, :, top : top + side, left : left + side]
        near = torch.nn.functional.interpolate(cut[None], scale_factor=scale, mode="nearest")[0]
        ours = large[0, :, scale * top : scale * (top + side), scale * left : scale * (left + side)]
        both = torch.cat([near, ours.cpu()], 2).clamp(0, 1)
        path = options.out / f"x{scale}.png"
        Image.fromarray((both.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)).save(path)
        sections[f"x{scale}: pixels before and after"] = card.picture(path)
    original = (frame(options.image, 96, 96)[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    student = IMDN(2, 16, 2, "bicubic")
    training = replace(TRAINING, steps=3 if small else 500, batch=4 if small else 16)
    rows = train(
        student, degrade([original], 2), training, terms=Terms(output=1.0),
        teacher=load_model("potstill-x2"), progress=False, **({"patch": 16} if small else {}),
    )  # fmt: skip
    print(f"distilled: loss {rows[0]['loss']:.4f} to {rows[-1]['loss']:.4f} in {len(rows)} steps")

    def curve(axes: Any) -> None:
        axes.plot([row["loss"] for row in rows], color="#3b82f6")
        axes.set_xlabel("step")
        axes.set_ylabel("loss")

    sections["A student of a quarter of the width"] = draw_svg(curve)
    return card.write(options, "4K on a GPU", sections)


if __name__ == "__main__":
    main()
