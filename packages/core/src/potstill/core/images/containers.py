"""Where images lie: folders, zip and tar files, tables, and lists of files."""

from __future__ import annotations

import csv
import glob
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from potstill.core.errors import BackendError, DataError, reading
from potstill.core.files import Files

__all__ = ["SUFFIXES", "Container", "contained"]

SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif",
)  # fmt: skip


class Container:
    """Encoded images by number; can be pickled, for worker processes.

    Attributes:
        names: Name of each.
        folders: Name of the class of each, "" where there is none.
        classes: All classes in their order; () where they are numbered as they are sorted.
        others: Number of files that are no images.
    """

    names: Sequence[str]
    folders: Sequence[str]
    classes: Sequence[str] = ()
    others: int = 0

    def read(self, index: int) -> bytes:
        """The bytes of an image file."""
        raise NotImplementedError


def contained(source: Path) -> Container:
    """The container that ``source`` is.

    A folder of nothing but tar files or parquet files is all of them, as is a pattern
    (``train-*.tar``).

    Raises:
        DataError: Nothing there, or a file that cannot be read.
        BackendError: A table without the ``datasets`` library.
    """
    if source.suffix in (".txt", ".csv", ".tsv"):
        return _Listed(source)
    if source.is_dir() and (source / "state.json").is_file():
        return _Table(source, saved=True)
    there = glob.glob(str(source)) if any(c in source.name for c in "*?[") else [source]
    paths = [source / n for n in os.listdir(source)] if source.is_dir() else map(Path, there)
    found = sorted(path for path in paths if not path.name.startswith("."))
    plain = any(path.is_dir() or path.suffix.lower() in SUFFIXES for path in found)
    for suffix, kind in () if plain else ((".tar", _Tar), (".parquet", _Table)):
        if fitting := [path for path in found if path.suffix == suffix]:
            return kind(*fitting)
    return _Files(source)


class _Files(Container):
    """A folder, or a zip file; the first folder below it is the class, as in ``ImageFolder``."""

    def __init__(self, source: Path) -> None:
        self.files = Files(source)
        self.names = [name for name in self.files if name.lower().endswith(SUFFIXES)]
        self.folders = [_folder(name) for name in self.names]
        self.others = len(self.files) - len(self.names)

    def read(self, index: int) -> bytes:
        return self.files.read(self.names[index])


class _Tar(Container):
    """Tar files, read in place; as in webdataset, ``a.cls`` holds the class of ``a.jpg``."""

    def __init__(self, *paths: Path) -> None:
        self.paths = paths
        images, labels = [], {}
        for number, path in enumerate(paths):
            with reading(path, "a tar file"), tarfile.open(path, "r:") as archive:
                for member in archive:
                    stem, suffix = os.path.splitext(member.name)
                    if suffix == ".cls" and (file := archive.extractfile(member)):
                        labels[number, stem] = file.read().decode().strip()
                    elif suffix.lower() in SUFFIXES and member.isfile():
                        place = number, member.offset_data, member.size
                        images.append((member.name.removeprefix("./"), stem, place))
                    else:
                        self.others += member.isfile()
        self.names = [name for name, _, _ in images]
        self.places = [place for _, _, place in images]
        self.folders = [labels.get((place[0], stem), _folder(n)) for n, stem, place in images]
        numbers = labels and all(value.isdigit() for value in labels.values())
        self.classes = sorted(set(self.folders), key=int) if numbers else ()

    def read(self, index: int) -> bytes:
        number, offset, size = self.places[index]
        with self.paths[number].open("rb") as file:  # a handle of its own: workers share none
            file.seek(offset)
            return file.read(size)


class _Listed(Container):
    """A text file of paths, relative to it: ``a.jpg``, or ``a.jpg<tab or comma>class``."""

    def __init__(self, source: Path) -> None:
        with reading(source, "a list of images"), source.open(newline="") as file:
            comma = "," if source.suffix == ".csv" else "\t"
            rows = [row for row in csv.reader(file, delimiter=comma) if row and row[0]]
        if rows and not rows[0][0].lower().endswith(SUFFIXES):  # names of the columns
            rows = rows[1:]
        self.source, self.names = source, [row[0] for row in rows]
        self.folders = [row[1].strip() if len(row) > 1 else "" for row in rows]

    def read(self, index: int) -> bytes:
        return (self.source.parent / self.names[index]).read_bytes()


class _Table(Container):
    """Parquet files, or a folder of ``datasets``: a column of images, and one of classes."""

    def __init__(self, *paths: Path, saved: bool = False) -> None:
        try:
            import datasets
        except ImportError as error:
            raise BackendError(
                f"ImageSet: {paths[0]} needs the datasets library, which cannot be imported: "
                f"{error}; pip install 'potstill-core[tables]'"
            ) from error
        files = [str(path) for path in paths]
        with reading(paths[0], "a table of images"):
            rows: Any = (
                datasets.load_from_disk(files[0])
                if saved
                else datasets.Dataset.from_parquet(files, keep_in_memory=False)
            )
        kinds = {name: type(kind).__name__ for name, kind in rows.features.items()}
        image = next((n for n, kind in kinds.items() if kind == "Image"), None)
        image = image or next((n for n in ("image", "jpg", "png", "img") if n in kinds), None)
        if image is None:
            raise DataError(
                f"ImageSet: {paths[0]} must have a column of images, got {', '.join(kinds)}; "
                "call it image"
            )
        label = next((n for n, kind in kinds.items() if kind == "ClassLabel"), None)
        label = label or next(
            (n for n in ("label", "class", "cls", "fine_label") if n in kinds), ""
        )
        self.rows, self.image = rows.cast_column(image, datasets.Image(decode=False)), image
        self.names = [f"{paths[0].name}:{index}" for index in range(len(rows))]
        values = rows[label] if label else [""] * len(rows)
        known = getattr(rows.features.get(label), "names", None) or ()
        self.folders = [known[v] if known else str(v) for v in values]
        numbers = not known and label and all(isinstance(v, int) for v in values)
        self.classes = sorted(set(self.folders), key=int) if numbers else known

    def read(self, index: int) -> bytes:
        held = self.rows[index][self.image]
        return bytes(held["bytes"] or Path(held["path"]).read_bytes())


def _folder(name: str) -> str:
    return name.partition("/")[0] if "/" in name else ""
