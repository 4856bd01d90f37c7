"""What the commands do: evaluation, pictures, training, export, timing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.console import Console

from potstill.core import (
    BackendError,
    ConfigError,
    Run,
    atomic,
    count_macs,
    count_parameters,
    latency,
    seed_all,
)
from potstill.core.command import config as configs
from potstill.core.measure.report import Column, Report
from potstill.sr.backends import export_onnx, make_runner
from potstill.sr.compare import quality_against_time, seam_figure, strip
from potstill.sr.config import StudentConfig, TrainConfig
from potstill.sr.data import prepare
from potstill.sr.evaluate import PUBLISHED, Row, bicubic, evaluate, find_set, mean
from potstill.sr.images import read_image
from potstill.sr.metrics import Protocol
from potstill.sr.models import IMDN
from potstill.sr.models.imdn import GlobalSkip
from potstill.sr.resize import imresize
from potstill.sr.train import train, warm_start
from potstill.sr.upscale import upscale
from potstill.sr.weights import load_model, save_model

__all__ = ["benchmarking", "comparison", "evaluation", "exporting", "ranking", "training"]


def evaluation(
    images: str, scale: int, model: str | None, protocol: Protocol, options: dict[str, Any]
) -> Report:
    """Table of a test set: each image, the mean, bicubic, and the published figure."""
    network = load_model(model or f"potstill-x{scale}")
    name = Path(images).name
    with _progress(f"{name} x{scale}") as progress:
        rows = evaluate(
            network, find_set(images), scale=scale, protocol=protocol, progress=progress, **options
        )
    average = mean(rows)
    ensemble = ", self-ensemble of 8" if options.get("self_ensemble") else ""
    summary = (
        f"{model or f'potstill-x{scale}'}{ensemble} on {name} x{scale}, protocol {protocol!r}: "
        f"{average.ours.psnr:.2f} dB, bicubic {average.bicubic.psnr:.2f} dB."
    )
    columns = {
        "psnr": Column("dB", best="max", digits=5),
        "ssim": Column(digits=4),
        "bicubic": Column("dB", digits=5),
        "bicubic_ssim": Column(digits=4),
        "seconds": Column("s", digits=3),
    }
    report = Report(f"{name} x{scale}", summary=summary, columns=columns, label="image", data=name)
    for row in [*rows, average]:
        report.add(row.name, **_cells(row))
    _add_published(report, name, scale)
    return report


def ranking(
    images: str, scale: int, models: Sequence[str], protocol: Protocol, options: dict[str, Any]
) -> Report:
    """Several networks on a test set: what each costs and gives, as a table and a picture."""
    name, originals = Path(images).name, find_set(images)
    columns = {
        "psnr": Column("dB", best="max", digits=5),
        "ssim": Column(best="max", digits=4),
        "seconds": Column("s an image", best="min", digits=3),
        "parameters": Column(digits=9),
    }
    report = Report(f"{name} x{scale}", columns=columns, label="network", data=name)
    points: list[dict[str, Any]] = []
    for model in models:
        network = load_model(model)
        evaluate(network, originals[:1], scale=scale, **options)  # the first call is a slow one
        with _progress(f"{name} x{scale}: {model}") as progress:
            average = mean(
                evaluate(
                    network, originals, scale=scale, protocol=protocol, progress=progress, **options
                )
            )
        point: dict[str, Any] = {
            "psnr": average.ours.psnr,
            "ssim": average.ours.ssim,
            "seconds": average.seconds,
            "parameters": count_parameters(network),
        }
        report.add(Path(model).stem, **point)
        points.append({"name": Path(model).stem, **point})
    report.add("bicubic", psnr=average.bicubic.psnr, ssim=average.bicubic.ssim)
    _add_published(report, name, scale)
    threads = f"{torch.get_num_threads()} threads"
    best = max(points, key=lambda point: point["psnr"])
    report.summary = (
        f"{name} x{scale}, protocol {protocol!r}, {threads}: {best['name']} is best with "
        f"{best['psnr']:.2f} dB in {best['seconds']:.2g} s an image."
    )
    figure = quality_against_time(points, title=f"{name} x{scale}, {threads}")
    report.figure(figure, "PSNR against time; the area of a point is the number of parameters")
    return report


def _add_published(report: Report, name: str, scale: int) -> None:
    known = PUBLISHED.get((name, scale))
    if known is not None:
        report.add("IMDN", published="Hui et al. 2019", psnr=known[0], ssim=known[1])


def _cells(row: Row) -> dict[str, Any]:
    return {
        "psnr": row.ours.psnr,
        "ssim": row.ours.ssim,
        "bicubic": row.bicubic.psnr,
        "bicubic_ssim": row.bicubic.ssim,
        "seconds": row.seconds,
    }


def comparison(
    image: Path,
    out: Path,
    scale: int,
    models: Sequence[str],
    size: int,
    corner: tuple[int, int] | None,
    seams: int | None,
) -> Path:
    """Draw crops, or what tiling changes; returns the picture's path."""
    original = read_image(image).rgb8()
    h, w = (side - side % scale for side in original.shape[:2])
    original = np.ascontiguousarray(original[:h, :w])
    lr = imresize(original, Fraction(1, scale))
    names = models or (f"potstill-x{scale}",)
    title = f"{image.stem}, x{scale}"
    if seams is not None:
        network = load_model(names[0])
        whole = upscale(lr, network, tile="none").image
        tiled = {
            mode: upscale(lr, network, tile=seams, tile_mode=mode).image
            for mode in ("independent", "exact")
        }
        return _save(seam_figure(whole, tiled, title=f"{title}, tiles of {seams}"), out)
    made = {"bicubic": bicubic(lr, scale)}
    for name in names:
        network = load_model(name)
        source = made["bicubic"] if network.scale == 1 else lr
        made[Path(name).stem] = upscale(source, network).image
    return _save(strip(original, made, scale=scale, size=size, corner=corner, title=title), out)


def _save(figure: Figure, out: Path) -> Path:
    with atomic(out) as temporary:
        figure.savefig(temporary, dpi=130)
    return out


def training(
    photographs: Path,
    out: Path,
    student: StudentConfig,
    config: TrainConfig,
    init: str | None,
    validate: str | None,
    teacher: str | None = None,
) -> Path:
    """Train or distil; returns the weight file, with ``curves.png`` beside it."""
    configs.record(config, out, ignore=("device",))
    large = None if teacher is None else load_model(teacher, scale=student.scale)
    seed_all("student", config.seed)
    skip: GlobalSkip = "bicubic" if student.global_skip == "bicubic" else None
    network = IMDN(student.scale, student.channels, student.blocks, skip)
    if skip and init is None:
        torch.nn.init.zeros_(network.upsampler.weight)  # so that it starts as bicubic
    if init is not None:
        warm_start(network, load_model(init))
    with _progress("reading photographs") as progress:
        pairs = prepare(photographs, student.scale, out / "cache", progress)
    score: Callable[..., float] | None = None
    if validate is not None:
        score = partial(_psnr, originals=find_set(validate))
    label = "distil" if teacher else "train"
    train(network, pairs, config, teacher=large, score=score, run=Run(out), progress=label)
    return save_model(network, out / f"imdn-x{student.scale}.safetensors")


def _psnr(network: IMDN, originals: Sequence[Path]) -> float:
    device = next(network.parameters()).device.type  # where it is being trained
    return mean(evaluate(network, originals, device=device)).ours.psnr


def exporting(model: str, out: Path, *, gates: bool, half: bool) -> Path:
    """Write ONNX or safetensors."""
    network = load_model(model)
    if out.suffix == ".onnx":
        return export_onnx(network, out, gates=gates)
    if out.suffix != ".safetensors":
        raise ConfigError(f"export: out must end in .onnx or .safetensors, got {out}")
    return save_model(network, out, dtype=torch.float16 if half else torch.float32)


def benchmarking(
    model: str | None, scale: int, size: int, backends: Sequence[str], threads: int | None
) -> Report:
    """Seconds of backends on a square image, one after another in turns."""
    if threads is not None:
        torch.set_num_threads(threads)
    seed_all(0)
    network = load_model(model) if model else IMDN(scale).eval()
    image = torch.rand(1, 3, size, size)
    work = 2 * count_macs(network, image)
    title = f"{model or 'IMDN'} x{network.scale}, {size}x{size}, {torch.get_num_threads()} threads"
    columns = {
        "seconds": Column("s", best="min", digits=3),
        "per_megapixel": Column("s/MPx of output", digits=3),
        "gflops": Column("GFLOP/s", digits=4),
        "difference": Column("max abs to fp32", digits=2),
    }
    report = Report(title, columns=columns, label="backend")
    expected = make_runner(network, "torch", "fp32", "cpu")(image).clone()
    megapixels = expected.shape[2] * expected.shape[3] / 1e6
    with _progress("backends") as progress:
        for done, word in enumerate(backends):
            name, _, rest = word.partition(":")
            precision, _, compiled = rest.partition(":")
            progress(done, len(backends))
            try:
                runner = make_runner(
                    network,
                    name,
                    precision or "fp32",  # type: ignore[arg-type]
                    "cpu",
                    compiled=compiled == "compiled",
                )
                difference = float((runner(image).float() - expected).abs().max())
            except BackendError as error:
                report.add(word, seconds=str(error))
                continue
            seconds = latency(runner, image, blocks=5, block_seconds=1e-3, warmup=1).median
            report.add(
                word,
                seconds=seconds,
                per_megapixel=seconds / megapixels,
                gflops=work / seconds / 1e9,
                difference=difference,
            )
    report.text(f"{count_parameters(network):,} parameters, {work / 1e9:.1f} GFLOP a call.")
    return report


@contextlib.contextmanager
def _progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """A line of progress on a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda done, total: None
        return
    from rich.progress import Progress

    with Progress(console=console, transient=True) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
