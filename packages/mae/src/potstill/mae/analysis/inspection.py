"""Pictures of a pre-training run: reconstructions, alignment error, similarity of blocks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from potstill.core import ConfigError
from potstill.core.command import load
from potstill.core.images import ImageSet
from potstill.mae import plots
from potstill.mae.analysis.cka import block_similarity
from potstill.mae.checkpoints import load_weights
from potstill.mae.config import Pretrain
from potstill.mae.models.encoder import block_tokens
from potstill.mae.models.students import channels_of
from potstill.mae.training.distiller import MaskedToMasked
from potstill.mae.training.jobs import make_distiller
from potstill.mae.training.reconstruction import denormalized, draw_reconstructions, sample

__all__ = ["inspect_run", "patch_errors"]


def inspect_run(run: Path, images: str, count: int, tokens: int) -> Iterator[Path]:
    """Draw the pictures of a pre-training run into its folder.

    Args:
        run: Folder of the run.
        images: Folder or zip file of images; those of the run where it is empty.
        count: Images to show.
        tokens: Patch tokens for the similarity of blocks.

    Returns:
        The paths of the pictures, as they are drawn.

    Raises:
        ConfigError: ``run`` is not the folder of a pre-training run.
    """
    path = run / "config.yaml"
    if not path.is_file():
        raise ConfigError(
            f"inspect: {run} must be the folder of a pre-training run, got no config.yaml there"
        )
    config = load(Pretrain, path)
    source = ImageSet(images or config.data.train)
    fresh, _ = make_distiller(config)
    trained, _ = make_distiller(config)
    load_weights(trained, run / "weights.safetensors")
    student, vit = trained.student, trained.student.encoder.vit
    source.channels = channels_of(vit)
    grid = student.encoder.grid
    if student.decoder is not None:
        yield draw_reconstructions(
            student, source, trained.masking, run / "reconstruction.png",
            normalized=config.normalize_pixels, count=count,
        )  # fmt: skip
    if trained.teacher is None:
        return
    few = sample(source, vit, count)
    errors = patch_errors(trained, few)
    figure = plots.alignment_error_map(denormalized(few, vit), errors, grid)
    rows = plots.rows_of(errors, "image", "patch", "error")
    yield plots.save(figure, run / "alignment_error.png", rows)

    wanted = -(-tokens // (grid[0] * grid[1]))
    batches = [part for part in sample(source, vit, max(wanted, 2)).split(16) if len(part) > 1]
    similarity = {
        title: block_similarity(d.student.encoder, d.teacher.model, batches, tokens // 2)  # type: ignore[union-attr]
        for title, d in (("before", fresh), ("after", trained))
    }
    figure = plots.cka_heatmap(similarity, list(trained.pairs.values()))
    rows = [
        row
        for title, values in similarity.items()
        for row in plots.rows_of(values, "student_block", "teacher_block", "cka", state=title)
    ]
    yield plots.save(figure, run / "cka.png", rows)


@torch.no_grad()
def patch_errors(distiller: MaskedToMasked, images: Tensor, term: str = "") -> Tensor:
    """Distance of aligned features of each patch, both models seeing all patches: [B L].

    Args:
        distiller: A distiller with a teacher.
        images: Images, normalised for the student.
        term: The aligned layer; the first by default.
    """
    term = term or next(iter(distiller.pairs))
    s, t = distiller.pairs[term]
    teacher: Any = distiller.teacher
    criterion: Any = distiller.objective.module(term)
    student = distiller.student.encoder
    images = images.to(next(student.parameters()).device)
    _, h_s = block_tokens(student, [s], images)
    _, h_t = block_tokens(teacher, [t], distiller.teacher_input(images))
    f_s = h_s[s][:, student.num_prefix_tokens :]
    f_t = h_t[t][:, teacher.model.num_prefix_tokens :]
    return criterion.criterion.per_token(criterion.projector(f_s), f_t)
