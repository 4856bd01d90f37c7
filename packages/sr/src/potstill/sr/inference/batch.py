"""A batch of files: which they are, where they go, and what became of each."""

from __future__ import annotations

import glob
import json
import re
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from potstill.core import ConfigError, PotstillError
from potstill.core.command import progress
from potstill.core.measure.report import print_table
from potstill.sr.config import UpscaleConfig
from potstill.sr.images.animation import MOVING, is_animated, read_animation, write_animation
from potstill.sr.images.picture import Picture
from potstill.sr.images.reading import is_picture, read_image
from potstill.sr.images.resize import lanczos
from potstill.sr.images.writing import FORMATS, check_output, write_image
from potstill.sr.inference.enlarge import Result, upscale
from potstill.sr.inference.planes import Progress, release_memory
from potstill.sr.inference.planning import Plan
from potstill.sr.models.base import Upscaler
from potstill.sr.models.imdn import IMDN
from potstill.sr.models.weights import load_model

__all__ = ["find_inputs", "resized", "run_batch"]


def find_inputs(words: Sequence[str], *, recursive: bool = False) -> dict[Path, Path]:
    """Files that the words of a command line mean: files, folders, and patterns.

    Hidden files of a folder, which are what other programs are writing, are left out.

    Args:
        words: Words.
        recursive: Search folders below too.

    Returns:
        Each file with its folder in the output: the one below its folder of the command line.

    Raises:
        ConfigError: A word means nothing.
    """
    found: dict[Path, Path] = {}
    for word in words:
        path = Path(word)
        if path.is_dir():
            below = path.rglob("*") if recursive else path.iterdir()
            files = sorted(p for p in below if is_picture(p, path))
            places = [file.parent.relative_to(path) for file in files]
        else:
            literal = path.exists() or not glob.has_magic(word)
            files = [path] if literal else sorted(map(Path, glob.glob(word, recursive=True)))
            places = [Path()] * len(files)
        if not files:
            raise ConfigError(f"upscale: {word} must mean at least one image, got none")
        found = dict(zip(files, places, strict=True)) | found
    return found


def resized(picture: Picture, width: int, height: int) -> Picture:
    """A picture at another size, by Lanczos; colour is weighted by alpha meanwhile."""
    if picture.color.shape[:2] == (height, width):
        return picture
    peak, alpha = picture.peak, picture.alpha
    color = _planes_resized(picture.color, width, height)
    soft = None
    if alpha is not None:
        soft = _planes_resized(alpha[..., None], width, height)
        seen = _planes_resized(picture.color * (alpha / np.float32(peak))[..., None], width, height)
        color = np.where(soft > 0.5, seen * peak / np.maximum(soft, 0.5), color)
        soft = soft[..., 0].round().clip(0, peak).astype(alpha.dtype)
    color = color.round().clip(0, peak).astype(picture.color.dtype)
    return replace(picture, color=color, alpha=soft)


def _planes_resized(values: NDArray[Any], width: int, height: int) -> NDArray[np.float32]:
    return np.dstack([lanczos(values[..., c], width, height) for c in range(values.shape[2])])


def run_batch(batch: UpscaleConfig) -> int:
    """Enlarge all files of a batch and say what became of each.

    Whatever goes wrong with a file is recorded as that file's, and the next one follows.

    Returns:
        0, or 1 when a file failed; the others are done nevertheless.

    Raises:
        ConfigError: Wrong usage, found before anything is read.
    """
    if batch.overwrite and batch.skip_existing:
        raise ConfigError("upscale: overwrite and skip_existing exclude each other, got both")
    if batch.quality is not None and not 1 <= batch.quality <= 100:
        raise ConfigError(f"upscale: quality must be from 1 to 100, got {batch.quality}; try 95")
    size = _target(batch.target)
    files = find_inputs(batch.inputs, recursive=batch.recursive)
    model = load_model(batch.model or f"potstill-x{batch.scale or 2}", scale=batch.scale)
    targets = _targets(batch, files, model)
    console = Console()
    rows: list[dict[str, Any]] = []
    for number, (path, target) in enumerate(targets.items(), 1):
        started = time.perf_counter()
        try:
            if batch.skip_existing and target.exists():
                row = {"input": str(path), "output": str(target), "skipped": True}
            else:
                with progress(escape(f"{path.name} ({number}/{len(files)})")) as shown:
                    row = _one(batch, model, path, target, size, shown)
        except PotstillError as error:
            row = {"input": str(path), "error": str(error)}
        except MemoryError:
            row = {"input": str(path), "error": f"upscale: {path} needs more memory; set tile"}
        except Exception as error:  # it is this file's, whatever it is
            row = {"input": str(path), "error": f"{path}: {type(error).__name__}: {error}"}
        if "error" in row:
            release_memory()
        row["total_seconds"] = round(time.perf_counter() - started, 3)
        rows.append(row)
        if batch.json:
            console.print(json.dumps(row), markup=False, highlight=False, soft_wrap=True)
    if not batch.json:
        print_table(_table(rows), console)
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


def _targets(batch: UpscaleConfig, files: dict[Path, Path], model: Upscaler) -> dict[Path, Path]:
    """Where each file goes.

    Raises:
        ConfigError: Two files would be one.
    """
    Image.init()
    single = batch.out.suffix.lower() in Image.registered_extensions() and not batch.out.is_dir()
    if single and len(files) > 1:
        raise ConfigError(
            f"upscale: out must be a folder for {len(files)} inputs, got the file {batch.out}"
        )
    if single:
        return dict.fromkeys(files, batch.out)
    try:
        name = Path(batch.model or f"potstill-x{model.scale}").stem
        ending = batch.suffix.format(scale=model.scale, model=name)
    except (KeyError, IndexError, ValueError) as error:
        raise ConfigError(
            f"upscale: suffix must have no fields but {{scale}} and {{model}}, got {batch.suffix!r}"
        ) from error
    targets: dict[Path, Path] = {}
    taken: dict[Path, Path] = {}
    for path, place in files.items():
        target = batch.out / place / f"{path.stem}{ending}.{_format(batch, path)}"
        if target in taken:
            raise ConfigError(
                f"upscale: outputs must differ, got {target} for both {taken[target]} and {path}; "
                "name their common folder with recursive, or enlarge them into two folders"
            )
        taken[target] = path
        targets[path] = target
    return targets


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
    options: dict[str, Any] = {
        "tile": batch.tile,
        "tile_mode": batch.tile_mode,
        "memory_limit": None if batch.memory_limit is None else int(batch.memory_limit * 2**20),
        "backend": batch.backend,
        "precision": batch.precision,
        "device": batch.device,
        "compile": batch.compile,
        "self_ensemble": batch.self_ensemble,
        "alpha": batch.alpha,
        "keep_hidden": batch.keep_hidden,
        "progress": shown,
        "planned": partial(_announce, path.name, said=[]),
    }
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        moving = FORMATS.get(target.suffix.lower()[1:]) in MOVING and is_animated(path)
        if moving:
            animation = read_animation(path, megapixels=batch.megapixels)
            frames = animation.frames
            if isinstance(model, IMDN):  # of the first frame, for all: nothing flickers
                options |= _shared(batch)
        else:
            frames = [read_image(path, megapixels=batch.megapixels)]
        h, w = frames[0].color.shape[:2]
        goal = _goal(size, w, h)
        final = goal or (w * model.scale, h * model.scale)
        check_output(
            target,
            final[1],
            final[0],
            frames[0].color.itemsize,
            transparent=_clear(frames[0]),
            overwrite=batch.overwrite,
        )
        made: list[Picture] = []
        results: list[Result] = []
        for frame in frames:
            made.append(_enlarged(frame, model, goal, options, results))
            if moving and results[-1].gates is not None:
                options |= {"gates": results[-1].gates, "tile_mode": "gates"}
        if moving:
            write_animation(
                replace(animation, frames=made),
                target,
                overwrite=batch.overwrite,
                quality=batch.quality,
            )
        else:
            write_image(made[0], target, overwrite=batch.overwrite, quality=batch.quality)
    return {
        "input": str(path),
        "output": str(target),
        "from": f"{w}x{h}",
        "to": f"{made[0].color.shape[1]}x{made[0].color.shape[0]}",
        "frames": len(frames),
        "mode": results[0].mode,
        "tile": results[0].tile,
        "seconds": round(sum(result.seconds for result in results), 3),
        "peak_mib": round(max(result.peak_bytes for result in results) / 2**20),
        "self_ensemble": batch.self_ensemble,
        "warnings": list(dict.fromkeys(str(w.message) for w in caught)),
    }


def _shared(batch: UpscaleConfig) -> dict[str, Any]:
    """Options with which the first frame finds gates for all of them."""
    finds = {"exact", "recompute", "gates"}
    mode = "exact" if batch.backend == "torch" else "recompute"
    return {
        "tile": "auto" if batch.tile == "none" else batch.tile,
        "tile_mode": batch.tile_mode if batch.tile_mode in finds else mode,
    }


def _clear(picture: Picture) -> bool:
    """Whether anything of it is not opaque."""
    return picture.alpha is not None and not bool((picture.alpha == picture.peak).all())


def _enlarged(
    picture: Picture,
    model: Upscaler,
    goal: tuple[int, int] | None,
    options: dict[str, Any],
    results: list[Result],
) -> Picture:
    """A picture through the network, as often as the goal takes, and at its size."""
    h, w = picture.color.shape[:2]
    if model.scale == 1 and goal is not None:
        picture = resized(picture, *goal)
    passes = 1
    if model.scale > 1 and goal is not None:
        while max(goal[0] / w, goal[1] / h) > model.scale**passes:
            passes += 1
    for _ in range(passes):
        results.append(upscale(picture, model, **options))
        picture = results[-1].image
    return picture if goal is None else resized(picture, *goal)


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


def _format(batch: UpscaleConfig, path: Path) -> str:
    """Suffix of an output; what cannot be written, or with few colours only, becomes PNG."""
    suffix = batch.format or path.suffix.lower().lstrip(".")
    if batch.format is None and (suffix == "bmp" or (suffix == "gif" and not is_animated(path))):
        return "png"
    return suffix if suffix in FORMATS else "png"


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table("image", "from", "to", "mode", "seconds", "result")
    for row in rows:
        name = escape(row["input"])
        if "error" in row:
            table.add_row(name, "", "", "", "", f"[red]failed:[/red] {escape(row['error'])}")
            continue
        if "skipped" in row:
            table.add_row(name, "", "", "", "", escape(f"{row['output']} is there: skipped"))
            continue
        mode = row["mode"] + (f" {row['tile']}" if row["tile"] else "")
        said = escape("; ".join([row["output"], *row["warnings"]]))
        table.add_row(name, row["from"], row["to"], mode, f"{row['seconds']:.2f}", said)
    return table
