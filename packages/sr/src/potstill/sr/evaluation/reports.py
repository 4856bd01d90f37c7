"""Verbs that measure and draw: ``potstill sr eval``, ``compare`` and ``time``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from cyclopts import Parameter

from potstill.core import (
    BackendError,
    Column,
    ConfigError,
    Report,
    atomic,
    count_macs,
    count_parameters,
    latency,
    seed_all,
)
from potstill.core.command import progress, say
from potstill.sr.backends.runners import make_runner
from potstill.sr.config import Backend, Mode, Precision, Scale, Tile
from potstill.sr.evaluation.drawings import quality_against_time, seam_figure, strip
from potstill.sr.evaluation.scores import PUBLISHED, evaluate, find_pairs, mean
from potstill.sr.images.metrics import Protocol
from potstill.sr.images.reading import read_image
from potstill.sr.images.resize import imresize, reduced
from potstill.sr.inference.enlarge import upscale
from potstill.sr.models.imdn import IMDN
from potstill.sr.models.weights import load_model

__all__ = ["compare", "evaluate_set", "time_backends"]

Words = Annotated[tuple[str, ...], Parameter(consume_multiple=True)]


def evaluate_set(
    images: str | None = None,
    /,
    *,
    gt: str | None = None,
    lr: str | None = None,
    glob: str | None = None,
    scale: Scale = 2,
    model: Words = (),
    protocol: Protocol = "paper",
    tile: Tile = "auto",
    tile_mode: Literal["auto"] | Mode = "auto",
    backend: Backend = "torch",
    precision: Precision = "fp32",
    self_ensemble: bool = False,
    out: Path | None = None,
) -> None:
    """Measure PSNR and SSIM of one network image by image, or of several networks.

    Args:
        images: Folder of originals, or a set below ``sr/`` of the data root; Set5 by default.
        gt: Folder of originals, the same as ``images``.
        lr: Folder of their low-resolution images; by default they are made by MATLAB's bicubic, or
            found in ``LRbicx<scale>`` beside ``GTmod<n>``.
        glob: Pattern of the originals below their folder, such as "*.png".
        scale: Factor.
        model: Weight files or names; our own weights by default.
        protocol: "paper" reproduces published tables, "imdn-repo" the authors' script.
        tile: Side of the tiles in pixels, "auto" or "none".
        tile_mode: Way in which tiles share statistics.
        backend: Inference backend.
        precision: Numeric precision.
        self_ensemble: Average over eight orientations; said in the table.
        out: Folder for a page with table and plot.
    """
    options: dict[str, Any] = {
        "scale": scale, "protocol": protocol, "tile": tile, "tile_mode": tile_mode,
        "backend": backend, "precision": precision, "self_ensemble": self_ensemble,
    }  # fmt: skip
    if images is not None and gt is not None:
        raise ConfigError(f"eval: gt must be left out where a set is named, got {images} and {gt}")
    images = images or gt or "Set5"
    pairs = find_pairs(images, scale, lr=lr, pattern=glob)
    options["lows"] = pairs.lows
    make = _ranking if len(model) > 1 else _table
    report = make(Path(images).name, pairs.originals, model or (f"potstill-x{scale}",), options)
    known = PUBLISHED.get((Path(images).name, scale))
    if known is not None:
        report.add("IMDN", published="Hui et al. 2019", psnr=known[0], ssim=known[1])
    _show(report, out)


def _table(
    name: str, originals: Sequence[Path], models: Sequence[str], options: Mapping[str, Any]
) -> Report:
    """Each image, and the mean."""
    scale = options["scale"]
    with progress(f"{name} x{scale}") as shown:
        rows = evaluate(load_model(models[0]), originals, progress=shown, **options)
    average = mean(rows)
    ensemble = ", self-ensemble of 8" if options["self_ensemble"] else ""
    summary = (
        f"{models[0]}{ensemble} on {name} x{scale}, protocol {options['protocol']!r}: "
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
        report.add(
            row.name,
            psnr=row.ours.psnr,
            ssim=row.ours.ssim,
            bicubic=row.bicubic.psnr,
            bicubic_ssim=row.bicubic.ssim,
            seconds=row.seconds,
        )
    return report


def _ranking(
    name: str, originals: Sequence[Path], models: Sequence[str], options: Mapping[str, Any]
) -> Report:
    """What each network costs and gives, as a table and a picture."""
    scale = options["scale"]
    columns = {
        "psnr": Column("dB", best="max", digits=5),
        "ssim": Column(best="max", digits=4),
        "seconds": Column("s an image", best="min", digits=3),
        "parameters": Column(digits=9),
    }
    report = Report(f"{name} x{scale}", columns=columns, label="network", data=name)
    points: list[dict[str, Any]] = []
    lows = options["lows"]
    first = {**options, "lows": lows and lows[:1]}
    for model in models:
        network = load_model(model)
        evaluate(network, originals[:1], **first)  # the first call is a slow one
        with progress(f"{name} x{scale}: {model}") as shown:
            average = mean(evaluate(network, originals, progress=shown, **options))
        point: dict[str, Any] = {
            "psnr": average.ours.psnr,
            "ssim": average.ours.ssim,
            "seconds": average.seconds,
            "parameters": count_parameters(network),
        }
        report.add(Path(model).stem, **point)
        points.append({"name": Path(model).stem, **point})
    report.add("bicubic", psnr=average.bicubic.psnr, ssim=average.bicubic.ssim)
    threads = f"{torch.get_num_threads()} threads"
    best = max(points, key=lambda point: point["psnr"])
    report.summary = (
        f"{name} x{scale}, protocol {options['protocol']!r}, {threads}: {best['name']} is best "
        f"with {best['psnr']:.2f} dB in {best['seconds']:.2g} s an image."
    )
    figure = quality_against_time(points, title=f"{name} x{scale}, {threads}")
    report.figure(figure, "PSNR against time; the area of a point is the number of parameters")
    return report


def compare(
    image: Path,
    /,
    *,
    out: Path,
    scale: Scale = 2,
    models: Words = (),
    size: int = 96,
    corner: tuple[int, int] | None = None,
    seams: int | None = None,
) -> None:
    """Draw crops of an original, of bicubic and of networks, with their errors.

    Args:
        image: Original, which is shrunk and enlarged again.
        out: PNG file to write.
        scale: Factor.
        models: Weight files or names; our own by default.
        size: Side of the crop, pixels.
        corner: Top and left of the crop; where bicubic is worst by default.
        seams: Side of tiles; draws what they change instead.
    """
    lr, original = reduced(read_image(image).rgb8(), scale)
    networks = {name: load_model(name) for name in models or (f"potstill-x{scale}",)}
    title = f"{image.stem}, x{scale}"
    if seams is not None:
        network = next(iter(networks.values()))
        whole, *tiled = (
            upscale(lr, network, tile=seams, tile_mode=mode).image
            for mode in ("none", "independent", "exact")
        )
        named = dict(zip(("independent", "exact"), tiled, strict=True))
        figure = seam_figure(whole, named, title=f"{title}, tiles of {seams}")
    else:
        made = {"bicubic": imresize(lr, scale)}
        for name, network in networks.items():
            source = made["bicubic"] if network.scale == 1 else lr
            made[Path(name).stem] = upscale(source, network).image
        figure = strip(original, made, scale=scale, size=size, corner=corner, title=title)
    with atomic(out) as temporary:
        figure.savefig(temporary, dpi=130)
    say(f"picture: {out}")


def time_backends(
    *,
    model: str | None = None,
    scale: Scale = 4,
    size: int = 256,
    backends: Words = (
        "torch:fp32",
        "torch:bf16",
        "onnx:fp32",
        "openvino:fp32",
        "openvino:bf16",
    ),
    threads: int | None = None,
    out: Path | None = None,
) -> None:
    """Time backends on the CPU of this machine, interleaved.

    Args:
        model: Weight file or name; the published shape with random weights by default.
        scale: Factor of the random network.
        size: Side of the input, pixels.
        backends: "<backend>:<precision>", with ":compiled" for a compiled torch.
        threads: CPU threads.
        out: Folder for a page.
    """
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
    with progress("backends") as shown:
        for done, word in enumerate(backends):
            shown(done, len(backends))
            name, precision, compiled = (*word.split(":"), "", "")[:3]
            how: Any = (name, precision or "fp32", "cpu", compiled == "compiled")
            try:
                runner = make_runner(network, *how)
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
    _show(report, out)


def _show(report: Report, out: Path | None) -> None:
    report.show()
    if out is not None:
        say(f"page: {report.save(out)}")
