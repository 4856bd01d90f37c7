"""Two adaptive models, each at the budget that it was saved with."""

from __future__ import annotations

from typing import Any

import torch

from apps.tour.acm import SHOWN, overlaid
from apps.tour.chapter import Chapter, Side, forward
from apps.tour.digits import digits
from apps.tour.widgets import film, sheet, table
from potstill.acm import IMAGENET, Images, from_pretrained, load_images, profile, record_gates
from potstill.acm.analysis import compute_maps, grid_of
from potstill.core.adapters import statistics_of

BATCH = 64
HALF = (0.5,) * 3


def images(source: str, model: Any) -> Images:
    """What a model is judged on: images by class as it knows them, or the test part of digits."""
    size = model.patch_embed.img_size[0]
    if source:
        numbers, classes = statistics_of(model) or IMAGENET, model.acm_classes or None
        return load_images(source, size=size, statistics=numbers, classes=classes)
    _, test = digits()
    pixels = torch.nn.functional.interpolate(test.images, size=size)
    pixels = ((pixels + 1) * 127.5).round().byte()
    names = tuple(map(str, range(len(pixels))))
    return Images(pixels, test.labels, names, tuple("0123456789"), (HALF, HALF))


def compare(first: str, second: str, data: str) -> Chapter:
    """``first``, ``second``: folders of adaptive models; ``data``: images in folders by class."""
    sides, figures, heat = [], [], {}
    for source, role in zip((first, second), ("first", "second"), strict=True):
        model = from_pretrained(source)
        shown = images(data, model)
        found = profile(model, shown.batches())
        few = next(iter(shown.batches(SHOWN)))[0]
        with torch.no_grad(), record_gates(model) as readings:
            model(few)
        maps = compute_maps(readings, *grid_of(model)).mean(1)
        heat[f"{role}: share of the cost"] = [overlaid(shown.pixels[:SHOWN], maps)]
        figures.append(found)
        many = next(iter(shown.batches(BATCH)))[0]
        sides.append(Side(source, model, 100 * found.accuracy, forward, (model, many)))
    pictures = {"images": [sheet(shown.pixels[:SHOWN].permute(0, 2, 3, 1), 4)]}
    rows = [
        ["budget", *(found.budget for found in figures)],
        ["its deviation over images", *(found.spread for found in figures)],
        ["multiply-adds of the mean image [M]", *(found.macs / 1e6 for found in figures)],
        ["the same, dense [M]", *(found.dense_macs / 1e6 for found in figures)],
    ]
    return Chapter(
        title="Adaptive models",
        teacher=sides[0],
        student=sides[1],
        measure="top-1",
        unit="%",
        work=f"{len(many)} images",
        command=f"potstill acm profile {first} --data IMAGES --out runs/page",
        html=film(
            {**pictures, **heat},
            ["the same images"],
            slider="nothing",
            caption="Dark: no learner; bright: all.",
            pixels=True,
        )
        + table(["", "first", "second"], rows),
        roles=("first", "second"),
    )
