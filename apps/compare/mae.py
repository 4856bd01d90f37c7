"""Two pre-trained students: what their features are worth, and what they paint."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from apps.tour.chapter import Chapter, Side, forward
from apps.tour.digits import Digits, digits
from apps.tour.mae import reconstructions
from apps.tour.widgets import paragraph, table
from potstill.core import ConfigError
from potstill.mae import (
    ImageSet,
    Student,
    block_similarity,
    eval_transform,
    features_of,
    knn_probe,
    statistics_of,
)


def images(source: str, student: Student) -> tuple[Digits, Digits]:
    """Training and test part, as ``student`` wants them; every fifth image of a folder tests."""
    size = student.encoder.image_size[0]
    if not source:
        parts = digits()
        return tuple(Digits(F.interpolate(p.images, size=size), p.labels) for p in parts)
    found = ImageSet(source, labels=True)
    found.transform = eval_transform(size, statistics_of(student.encoder.vit))
    pixels, labels = zip(*(found[i] for i in range(len(found))), strict=True)
    every, targets = torch.stack(pixels), torch.tensor(labels)
    tests = torch.arange(len(found)) % 5 == 0
    return Digits(every[~tests], targets[~tests]), Digits(every[tests], targets[tests])


def compare(first: str, second: str, data: str) -> Chapter:
    """``first`` and ``second``: folders of students; ``data``: a folder of images by class."""
    students = [Student.from_pretrained(source) for source in (first, second)]
    sides, painted = [], ""
    for source, role, student in zip((first, second), ("first", "second"), students, strict=True):
        train, test = images(data, student)
        vit = student.export_student().eval()
        known, seen = (features_of(vit, [part]) for part in (train, test))
        top = knn_probe(*known, *seen, neighbors=min(20, len(train.labels)))
        sides.append(Side(source, vit, top, forward, (vit, test.images[:1])))
        if student.decoder is not None:
            painted += paragraph(f"What the {role} paints:") + reconstructions(student, test)
    return Chapter(
        title="Masked students",
        teacher=sides[0],
        student=sides[1],
        measure="nearest neighbours, top-1",
        unit="%",
        work="1 image",
        command=f"potstill mae probe --init {first} --data.train TRAIN --data.test TEST",
        html=painted + _similarity(students, test),
        roles=("first", "second"),
    )


def _similarity(students: list[Student], test: Digits) -> str:
    """How alike the blocks of both are."""
    try:
        values = block_similarity(*(s.encoder for s in students), [test.images[:128]])
    except ConfigError as error:  # other patch grids
        return paragraph(f"Their blocks cannot be compared: {error}")
    header = ["linear CKA", *(f"second's block {j}" for j in range(values.shape[1]))]
    rows = [[f"first's block {i}", *row] for i, row in enumerate(values.tolist())]
    return table(header, rows)
