"""A condensed set: a folder of images that anybody reads, and what images cannot say beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors.torch import load, save_file
from torch import Tensor, nn

from potstill.condense.data.pool import Pool
from potstill.condense.models.convnet import make_network
from potstill.core import ConfigError, DataError, atomic, fingerprint, generator, reading
from potstill.core.images import Statistics

__all__ = ["Condensed", "Teacher"]

_ABOUT, _TENSORS, _TEACHER = "condensed.json", "condensed.safetensors", "teacher.safetensors"


@dataclass(frozen=True)
class Teacher:
    """The network that labels every view of the images anew.

    Attributes:
        name: Name for `make_network`.
        network: The network with its weights.
        temperature: Temperature of its labels.
    """

    name: str
    network: nn.Module
    temperature: float = 1.0


@dataclass(frozen=True)
class Condensed:
    """Few images in the place of many.

    Attributes:
        images: [images channels height width], normalised.
        classes: Names of the classes.
        labels: Class of each image.
        statistics: Mean and standard deviation that the images are normalised with.
        about: Method, seed, budget, options, and the digest of the data that were condensed.
        logits: Soft labels before their softmax, or None.
        lr: Learning rate to train with that the method found, or None.
        teacher: Network that labels every view anew, or None.
        rows: Rows of the pool that were selected, or None where images were made.
        baseline: Random rows of the pool [draws images]: sets of the same size to compare with.
        baseline_logits: Their labels by the same method [draws images classes], where images have
            soft labels.

    Raises:
        DataError: Parts that do not fit each other.
    """

    images: Float[Tensor, "images channels height width"]
    labels: Int[Tensor, " images"]
    classes: tuple[str, ...]
    statistics: Statistics
    about: Mapping[str, Any] = field(default_factory=dict)
    logits: Float[Tensor, "images classes"] | None = None
    lr: float | None = None
    teacher: Teacher | None = None
    rows: Int[Tensor, " images"] | None = None
    baseline: Int[Tensor, "draws images"] | None = None
    baseline_logits: Float[Tensor, "draws images classes"] | None = None

    def __post_init__(self) -> None:
        images, classes = len(self.images), len(self.classes)
        wanted = {
            "labels": (self.labels, (images,)),
            "logits": (self.logits, (images, classes)),
            "rows": (self.rows, (images,)),
        }
        for name, (tensor, shape) in wanted.items():
            if tensor is not None and tensor.shape != shape:
                raise DataError(
                    f"Condensed: {name} must be {list(shape)}, got {list(tensor.shape)}"
                )

    @classmethod
    def of(cls, pool: Pool, rows: Tensor, **about: Any) -> Condensed:
        """The real images of some rows."""
        return cls(
            pool.normalized(rows), pool.labels[rows], pool.classes, pool.statistics,
            {"data": pool.digest(), **about}, rows=rows,
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.images)

    @property
    def labelled(self) -> str:
        """Kind of the labels: ``hard``, ``soft``, or ``teacher``."""
        return "teacher" if self.teacher else "hard" if self.logits is None else "soft"

    def pixels(self) -> Tensor:
        """The images as bytes, what lies outside of their range cut off."""
        mean, deviation = (torch.tensor(s)[:, None, None] for s in self.statistics)
        return ((self.images * deviation + mean).clamp(0, 1) * 255).round().to(torch.uint8)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write ``images/CLASS/NUMBER.png``, ``condensed.safetensors`` and ``condensed.json``.

        The images are lossless PNG in class folders, as torchvision's ``ImageFolder`` and timm read
        them; exact floats, soft labels and the learning rate are in the tensors. Each file is whole
        or absent, and ``condensed.json`` comes last: without it there is no set.

        Raises:
            ConfigError: Images that are neither grey nor RGB.
            DataError: The folder holds something else, is full or cannot be written.
        """
        from PIL import Image

        target = Path(folder)
        if self.images.shape[1] not in (1, 3):
            raise ConfigError(
                f"Condensed: images must have 1 or 3 channels to be written as PNG, got "
                f"{self.images.shape[1]}"
            )
        known = (target / _TENSORS).exists() or (target / "images").is_dir()
        if target.exists() and any(target.iterdir()) and not known:
            raise DataError(
                f"Condensed: {target} must be empty or hold a condensed set, got other files; "
                "choose another folder"
            )
        (target / _ABOUT).unlink(missing_ok=True)
        names = list(self._names())
        for name, pixels in zip(names, self.pixels().permute(0, 2, 3, 1).numpy(), strict=True):
            with atomic(target / "images" / name) as temporary:
                picture = Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)
                picture.save(temporary, format="PNG")
        _clean(target / "images", set(names))
        with atomic(target / _TENSORS) as temporary:
            save_file(self._tensors(), temporary)
        about = dict(self.about) | {
            "classes": list(self.classes), "statistics": [list(s) for s in self.statistics],
            "images": len(self), "labels": self.labelled, "digest": self.digest(),
        }  # fmt: skip
        if self.teacher is not None:
            with atomic(target / _TEACHER) as temporary:
                state = self.teacher.network.state_dict()
                save_file({n: v.contiguous().cpu() for n, v in state.items()}, temporary)
            about["teacher"] = {
                "network": self.teacher.name, "temperature": self.teacher.temperature,
            }  # fmt: skip
        with atomic(target / _ABOUT) as temporary:
            temporary.write_text(json.dumps(about, indent=1), encoding="utf-8")
        return target

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Condensed:
        """Read what `save` wrote; the tensors are equal bit for bit.

        Raises:
            DataError: No condensed set there, one that was not written to its end, or files that
                do not belong together.
        """
        source = Path(folder)
        if not (source / _ABOUT).is_file():
            raise DataError(
                f"Condensed: {source} must hold a condensed set, got no {_ABOUT}; was it written "
                "to its end?"
            )
        with reading(source / _ABOUT, "the description of a condensed set"):
            about = json.loads((source / _ABOUT).read_text(encoding="utf-8"))
            classes = tuple(map(str, about["classes"]))
            mean, deviation = (tuple(map(float, s)) for s in about["statistics"])
            named = about.get("teacher")
        with reading(source / _TENSORS, "the tensors of a condensed set"):
            found = load((source / _TENSORS).read_bytes())
            images, labels = found.pop("images"), found.pop("labels")
            rate = found.pop("lr", None)
            made = cls(
                images, labels, classes, (mean, deviation), about,
                lr=None if rate is None else float(rate),
                **{name: found.get(name) for name in _OPTIONAL},
                teacher=_teacher(source, named, len(classes), images.shape[1:]),
            )  # fmt: skip
            if made.digest() != about["digest"]:
                raise DataError(f"{source / _TENSORS} and {_ABOUT} must belong together")
        return made

    def digest(self) -> str:
        """Hash of the tensors."""
        tensors = self._tensors()
        return fingerprint(*(tensors[name].numpy() for name in sorted(tensors)), sorted(tensors))

    def _tensors(self) -> dict[str, Tensor]:
        rate = None if self.lr is None else torch.tensor(self.lr, dtype=torch.float64)
        every = {name: getattr(self, name) for name in ("images", "labels", *_OPTIONAL)}
        every["lr"] = rate
        return {n: v.detach().cpu().contiguous() for n, v in every.items() if v is not None}

    def _names(self) -> Iterator[str]:
        """``CLASS/NUMBER.png``; sorted folders are the classes in order, as readers number them."""
        ordered = list(self.classes) == sorted(self.classes)
        digits = len(str(len(self.classes) - 1))
        taken: dict[int, int] = {}
        for label in self.labels.tolist():
            number = taken[label] = taken.get(label, -1) + 1
            name = self.classes[label]
            yield f"{name if ordered else f'{label:0{digits}}-{name}'}/{number:05}.png"


_OPTIONAL = ("logits", "rows", "baseline", "baseline_logits")


def random_sets(pool: Pool, labels: Tensor, draws: int, seed: int) -> Tensor:
    """Random rows with the given labels, [draws images]."""
    found = []
    for draw in range(draws):
        rows = torch.empty_like(labels)
        for number in labels.unique().tolist():
            own = (pool.labels == number).nonzero().flatten()
            wanted = int((labels == number).sum())
            rng = generator("baseline", seed, draw, number)
            rows[labels == number] = own[torch.randperm(len(own), generator=rng)[:wanted]]
        found.append(rows)
    return torch.stack(found)


def _teacher(
    source: Path, named: Mapping[str, Any] | None, classes: int, shape: torch.Size
) -> Teacher | None:
    if named is None:
        return None
    network = make_network(str(named["network"]), classes, shape)
    network.load_state_dict(load((source / _TEACHER).read_bytes()))
    return Teacher(str(named["network"]), network.eval(), float(named["temperature"]))


def _clean(folder: Path, names: set[str]) -> None:
    """Remove images of an earlier set of another size."""
    for path in folder.rglob("*.png"):
        if path.relative_to(folder).as_posix() not in names and not path.name.startswith("."):
            path.unlink()
