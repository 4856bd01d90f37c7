"""Where an adaptive model computes: a folder of images becomes heat maps and a table of choices.

    python apps/acm/heatmaps.py photos/ --model runs/acm/model --out runs/heatmaps
    python apps/acm/heatmaps.py photos/ --model runs/acm/model --device cuda     # fused backend
    python apps/acm/heatmaps.py --demo --out runs/heatmaps          # needs POTSTILL_DATA

Writes one picture for each image (left the image, right what its patches cost), the cheapest and
dearest in one sheet, the choices of all tokens as ``choices.csv``, and a page with plots.
``--demo`` adapts the small CIFAR-10 teacher in about a minute and shows it on test images.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from safetensors.torch import load_file
from torch import Tensor, nn

from potstill.acm import (
    BACKENDS,
    CIFAR10,
    IMAGENET,
    Images,
    acmize,
    acms,
    calibrate,
    distill,
    finetune,
    from_pretrained,
    load_images,
    plots,
    pretrain_gates,
    profile,
    record_gates,
)
from potstill.core import Engine, atomic, locate
from potstill.core.adapters import statistics_of
from potstill.core.engine import resolve_device
from potstill.core.measure.report import Column, Report

TEACHER = {
    "img_size": 32, "patch_size": 8, "embed_dim": 96, "depth": 4, "num_heads": 3,
    "num_classes": 10, "global_pool": "avg",
}  # fmt: skip


def demo_model(steps: int) -> nn.Module:
    """The CIFAR-10 teacher of the data folder, adapted to a budget of 0.5."""
    archive = locate("vision/cifar10_10k.zip")
    train = load_images(archive / "cifar10" / "train", statistics=CIFAR10)
    teacher = timm.create_model("vit_tiny_patch16_224", **TEACHER)
    teacher.load_state_dict(load_file(locate("vision/tiny_vit_cifar10.safetensors")))
    model = acmize(teacher.eval())
    draws, short = train.draws(128), max(2, steps // 3)
    with Engine(device="cpu") as engine:
        distill(model, teacher, draws, steps=steps, engine=engine, progress="phase 1")
        pretrain_gates(model, teacher, draws, steps=short, engine=engine, progress="phase 2")
        finetune(model, draws, budget=0.5, steps=steps, lr=5e-4, engine=engine, progress="phase 3")
    calibrate(model, train.take(torch.arange(0, len(train), 20)).batches(), 0.5)
    return model.eval()


def choices_of(
    model: nn.Module, images: Images, device: torch.device, batch: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Cost of each patch, [images modules rows columns], and the choices of all tokens."""
    grid, prefix = plots.grid_of(model)
    maps, choices = [], {name: [] for name in acms(model)}
    batches = list(images.batches(batch))
    for pixels, _ in track(batches, "running", console=Console(stderr=True)):
        with torch.no_grad(), record_gates(model) as readings:
            model(pixels.to(device))
        maps.append(plots.compute_maps(readings, grid, prefix).cpu())
        for name, reading in readings.items():
            choices[name].append(reading.choices.flatten(1).cpu())
    return torch.cat(maps), {name: torch.cat(parts) for name, parts in choices.items()}


def write_choices(path: Path, names: Sequence[str], choices: dict[str, Tensor]) -> None:
    """One row an image and module: the number of learners of each token."""
    tokens = max(found.shape[1] for found in choices.values())
    with atomic(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "module", *(f"token {i}" for i in range(tokens))])
        for index, name in enumerate(names):
            for module, found in choices.items():
                writer.writerow([name, module, *found[index].tolist()])


def write_maps(folder: Path, images: Images, maps: Tensor, side: int = 256) -> None:
    """For each image a picture of itself and of what it cost."""
    scale = (float(maps.min()), max(float(maps.max()), float(maps.min()) + 1e-6))
    for index, name in enumerate(images.names):
        pixels = images.pixels[index].permute(1, 2, 0).numpy()
        pair = [pixels, plots.overlay(pixels, maps[index].numpy(), scale)]
        sheet = Image.new("RGB", (2 * side + 8, side), "white")
        for i, part in enumerate(pair):
            shown = Image.fromarray(part).resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(shown, (i * (side + 8), 0))
        with atomic(folder / "maps" / f"{Path(name).with_suffix('')}.png") as temporary:
            sheet.save(temporary)


def report_of(
    model: nn.Module,
    images: Images,
    by_module: Tensor,
    device: torch.device,
    batch: int,
    note: str,
    out: Path,
) -> Report:
    """Figures and plots of the whole set."""
    batches = [pixels.to(device) for pixels, _ in images.batches(batch)]
    found = profile(model, batches)
    report = Report(
        "Where computation goes", summary=note, label="figure", columns={"value": Column()},
        device=str(device),
    )  # fmt: skip
    for name, value in found.row().items():
        if value == value:  # what needs labels or a dense model is NaN here
            report.add(name, value=value)
    maps = by_module.mean(1)
    few = maps.flatten(1).mean(1).argsort()
    shown = torch.cat([few[:10], few[-10:]]) if len(few) > 20 else few
    figure = plots.heat_maps(images.pixels[shown], maps[shown])
    with atomic(out / "sheet.png") as temporary:
        figure.savefig(temporary, dpi=110)
    report.figure(figure, "Cheapest to dearest; share of the full cost by patch", "Heat maps")
    some = few[torch.linspace(0, len(few) - 1, min(6, len(few))).long()]
    figure = plots.module_maps(images.pixels[some], by_module[some], list(found.choices))
    report.figure(figure, "By module, from a cheap image to a dear one")
    report.plot(
        lambda axes: plots.draw_gate_histogram(axes, found.choices),
        "What tokens choose, by module", size=(6.4, 1.2 + 0.32 * len(found.choices)),
    )  # fmt: skip
    report.plot(lambda axes: plots.draw_cost_histogram(axes, found.images), "What images cost")
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("images", nargs="?", type=Path, help="folder or zip of images")
    parser.add_argument("--model", help="folder of an adaptive model, or a name on the Hub")
    parser.add_argument("--out", type=Path, default=Path("runs/heatmaps"))
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--backend", default="auto", help="auto: fused on cuda, sorted on a cpu")
    parser.add_argument("--statistics", choices=("model", "imagenet", "cifar10"), default="model")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--demo", action="store_true", help="small model and images of CIFAR-10")
    parser.add_argument("--steps", type=int, default=150, help="length of the demo's training")
    options = parser.parse_args()
    if not options.demo and (options.images is None or options.model is None):
        parser.error("give a folder of images and --model, or --demo")
    device = resolve_device(options.device)
    BACKENDS.resolve(options.backend, device)
    model: Any
    if options.demo:
        model = demo_model(options.steps)
        test = locate("vision/cifar10_10k.zip") / "cifar10" / "test"
        images = load_images(test, statistics=CIFAR10)
        images = images.take(torch.arange(0, len(images), 25))
        note = f"A small ViT on CIFAR-10, adapted in {options.steps} steps; no claims."
    else:
        model = from_pretrained(options.model)
        own = statistics_of(model) or IMAGENET
        known = {"model": own, "cifar10": CIFAR10, "imagenet": IMAGENET}
        size = model.patch_embed.img_size[-1]
        images = load_images(options.images, size=size, statistics=known[options.statistics])
        note = f"{len(images)} images of {options.images.name} through {options.model}."
    for acm in acms(model).values():
        acm.backend = options.backend
    model = model.to(device).eval()
    maps, choices = choices_of(model, images, device, options.batch)
    write_maps(options.out, images, maps.mean(1))
    write_choices(options.out / "choices.csv", images.names, choices)
    report = report_of(model, images, maps, device, options.batch, note, options.out)
    report.show()
    Console().print(f"wrote {report.save(options.out)}, choices.csv and maps/", markup=False)


if __name__ == "__main__":
    main()
