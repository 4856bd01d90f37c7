"""A batch of files: which they are, where they go, and what became of each."""

from __future__ import annotations

import glob
import json
import math
import re
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from potstill.core import ConfigError, PotstillError, is_leftover
from potstill.core.command import progress
from potstill.sr.config import UpscaleConfig
from potstill.sr.images.picture import Picture
from potstill.sr.images.reading import SUFFIXES, read_image
from potstill.sr.images.resize import lanczos
from potstill.sr.images.writing import FORMATS, check_output, write_image
from potstill.sr.inference.enlarge import upscale
from potstill.sr.inference.planes import Progress
from potstill.sr.inference.planning import Plan
from potstill.sr.models.base import Upscaler
from potstill.sr.models.weights import load_model

__all__ = ["find_inputs", "resized", "run_batch"]


def find_inputs(words: Sequence[str]) -> list[Path]:
    """Files that the words of a command line mean: files, folders (not below), and patterns.

    Raises:
        ConfigError: A word means nothing.
    """
    found: dict[Path, None] = {}
    for word in words:
        path = Path(word)
        if path.is_dir():
            files = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
            files = [path for path in files if not is_leftover(path)]
        elif path.exists() or not glob.has_magic(word):
            files = [path]
        else:
            files = sorted(map(Path, glob.glob(word, recursive=True)))
        if not files:
            raise ConfigError(f"upscale: {word} must mean at least one image, got none")
        found.update(dict.fromkeys(files))
    return list(found)


def resized(picture: Picture, width: int, height: int) -> Picture:
    """A picture at another size, by Lanczos."""

    def plane(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        real = lanczos(values, width, height)
        return real.round().clip(0, picture.peak).astype(values.dtype)

    if picture.color.shape[:2] == (height, width):
        return picture
    color = np.dstack([plane(picture.color[..., c]) for c in range(3)])
    alpha = None if picture.alpha is None else plane(picture.alpha)
    return replace(picture, color=color, alpha=alpha)


def run_batch(batch: UpscaleConfig) -> int:
    """Enlarge all files of a batch and say what became of each.

    Returns:
        0, or 1 when a file failed; the others are done nevertheless.

    Raises:
        ConfigError: Wrong usage, found before anything is read.
    """
    files = find_inputs(batch.inputs)
    single = batch.out.suffix.lower().lstrip(".") in FORMATS and not batch.out.is_dir()
    if single and len(files) > 1:
        raise ConfigError(
            f"upscale: out must be a folder for {len(files)} inputs, got the file {batch.out}"
        )
    if batch.overwrite and batch.skip_existing:
        raise ConfigError("upscale: overwrite and skip_existing exclude each other, got both")
    size = _target(batch.target)
    model = load_model(batch.model or f"potstill-x{batch.scale or 2}", scale=batch.scale)
    console = Console()
    rows: list[dict[str, Any]] = []
    for number, path in enumerate(files, 1):
        started = time.perf_counter()
        try:
            target = batch.out if single else _destination(batch, path)
            if batch.skip_existing and target.exists():
                row = {"input": str(path), "output": str(target), "skipped": True}
            else:
                with progress(f"{path.name} ({number}/{len(files)})") as shown:
                    row = _one(batch, model, path, target, size, shown)
        except PotstillError as error:
            row = {"input": str(path), "error": str(error)}
        except MemoryError:
            row = {"input": str(path), "error": f"upscale: {path} needs more memory; set tile"}
        row["total_seconds"] = round(time.perf_counter() - started, 3)
        rows.append(row)
        if batch.json:
            console.print(json.dumps(row), markup=False, highlight=False, soft_wrap=True)
    if not batch.json:
        console.print(_table(rows))
    return int(any("error" in row for row in rows))


def _target(text: str | None) -> tuple[int, int] | None:
    """Width and height of ``WxH``; a side of 0 follows from the other."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    sides = (int(match[1]), int(match[2])) if match else (0, 0)
    if not any(sides):
        raise ConfigError(f"upscale: target must be WxH such as 1920x1080 or 1920x0, got {text!r}")
    return sides


def _one(
    batch: UpscaleConfig,
    model: Upscaler,
    path: Path,
    target: Path,
    size: tuple[int, int] | None,
    shown: Progress,
) -> dict[str, Any]:
    """Enlarge one file."""
    if target.exists() and target.samefile(path):
        raise ConfigError(f"upscale: out must differ from the input, got {path} for both")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        picture = read_image(path)
        h, w = picture.color.shape[:2]
        goal = _goal(size, w, h)
        final = goal or (w * model.scale, h * model.scale)
        check_output(
            target,
            3 * math.prod(final) * picture.color.itemsize,
            transparent=picture.alpha is not None,
            overwrite=batch.overwrite,
        )
        if model.scale == 1 and goal is not None:
            picture = resized(picture, *goal)
        result = upscale(
            picture,
            model,
            tile=batch.tile,
            tile_mode=batch.tile_mode,
            memory_limit=None if batch.memory_limit is None else int(batch.memory_limit * 2**20),
            backend=batch.backend,
            precision=batch.precision,
            device=batch.device,
            compile=batch.compile,
            self_ensemble=batch.self_ensemble,
            progress=shown,
            planned=partial(_announce, path.name, said=[]),
        )
        made = result.image if goal is None else resized(result.image, *goal)
        write_image(made, target, overwrite=batch.overwrite)
    return {
        "input": str(path),
        "output": str(target),
        "from": f"{w}x{h}",
        "to": f"{made.color.shape[1]}x{made.color.shape[0]}",
        "mode": result.mode,
        "tile": result.tile,
        "seconds": round(result.seconds, 3),
        "peak_mib": round(result.peak_bytes / 2**20),
        "self_ensemble": batch.self_ensemble,
        "warnings": [str(w.message) for w in caught],
    }


def _announce(name: str, plan: Plan, said: list[Plan]) -> None:
    """Say once, on standard error, how a large image will be enlarged."""
    if plan.mode != "none" and not said:
        said.append(plan)
        about = f"about {plan.bytes / 2**30:.2f} GiB"
        Console(stderr=True).print(
            f"{name}: mode {plan.mode!r} in tiles of {plan.tile}, {about}",
            markup=False,
            highlight=False,
        )


def _goal(size: tuple[int, int] | None, width: int, height: int) -> tuple[int, int] | None:
    """The size to end at, a side of 0 following from the other."""
    if size is None:
        return None
    w, h = size
    return w or max(1, round(h * width / height)), h or max(1, round(w * height / width))


def _destination(batch: UpscaleConfig, path: Path) -> Path:
    suffix = batch.format or path.suffix.lower().lstrip(".")
    return batch.out / f"{path.stem}.{suffix if suffix in FORMATS else 'png'}"


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table("image", "from", "to", "mode", "seconds", "result")
    for row in rows:
        if "error" in row:
            table.add_row(row["input"], "", "", "", "", f"[red]failed:[/red] {row['error']}")
            continue
        if "skipped" in row:
            table.add_row(row["input"], "", "", "", "", f"{row['output']} is there: skipped")
            continue
        mode = row["mode"] + (f" {row['tile']}" if row["tile"] else "")
        said = "; ".join([row["output"], *row["warnings"]])
        table.add_row(row["input"], row["from"], row["to"], mode, f"{row['seconds']:.2f}", said)
    return table
