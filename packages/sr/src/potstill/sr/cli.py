"""``potstill sr upscale | eval | compare | train | distill | export | bench``.

Only what the command line needs is imported here; torch comes with the command that runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from potstill.sr.config import StudentConfig, TrainConfig

__all__ = ["app"]

app = App(
    name="sr", help="Enlarge photographs without seams, evaluate, train and distil upscalers."
)

Flat = Parameter(name="*")
Words = Annotated[tuple[str, ...], Parameter(consume_multiple=True)]
Tile = str
Mode = Literal["auto", "none", "exact", "recompute", "gates", "independent"]
Backend = Literal["torch", "onnx", "openvino"]
Precision = Literal["fp32", "bf16"]


@app.command(name="upscale")
def upscale_files(
    inputs: Annotated[list[str], Parameter(name="IN")],
    /,
    *,
    out: Annotated[Path, Parameter(alias="-o")],
    scale: Literal[2, 3, 4] | None = None,
    model: str | None = None,
    target: str | None = None,
    tile: Tile = "auto",
    tile_mode: Mode = "auto",
    memory_limit: float | None = None,
    backend: Backend = "torch",
    precision: Precision = "fp32",
    device: str = "auto",
    compile: bool = False,
    self_ensemble: bool = False,
    format: Literal["png", "tiff", "webp", "jpg"] | None = None,
    overwrite: bool = False,
    json: bool = False,
) -> int:
    """Enlarge files, folders and patterns; one bad file does not stop the others.

    Args:
        inputs: Image files, folders, or patterns such as "photos/*.jpg".
        out: A folder, or a file when there is one input.
        scale: Factor; 2 when no model is named.
        model: Weight file, or one of our own by name.
        target: Final size WxH; a side of 0 follows from the other.
        tile: "auto", "none", or the side of tiles in pixels.
        tile_mode: How tiles share statistics.
        memory_limit: MiB that may be used on top of the input.
        backend: Who computes.
        precision: In what arithmetic.
        device: auto, cpu, cuda or mps.
        compile: Compile the network first.
        self_ensemble: Average over eight orientations: slower, slightly better.
        format: Of the output; that of the input by default, PNG where it cannot be written.
        overwrite: Replace files that are there.
        json: Print one JSON object for each file instead of a table.
    """
    from potstill.sr.batch import Batch, run_batch

    batch = Batch(
        tuple(inputs), out, scale, model, target, tile, tile_mode, memory_limit, backend, precision,
        device, compile, self_ensemble, format, overwrite,
    )  # fmt: skip
    return run_batch(batch, as_json=json)


@app.command(name="eval")
def evaluate_set(
    images: str = "Set5",
    /,
    *,
    scale: Literal[2, 3, 4] = 2,
    model: Words = (),
    protocol: Literal["paper", "imdn-repo"] = "paper",
    tile: Tile = "auto",
    tile_mode: Mode = "auto",
    backend: Backend = "torch",
    precision: Precision = "fp32",
    self_ensemble: bool = False,
    out: Path | None = None,
) -> None:
    """Measure PSNR and SSIM beside bicubic and beside the published figure of IMDN.

    One network gives a table of its images; several give one of networks, with time and size.

    Args:
        images: A folder of originals, or a set below ``sr/`` of the data root, such as Set5.
        scale: Factor.
        model: Weight files or names; our own weights by default.
        protocol: "paper" reproduces published tables, "imdn-repo" the authors' script.
        tile: "auto", "none", or the side of tiles in pixels.
        tile_mode: How tiles share statistics.
        backend: Who computes.
        precision: In what arithmetic.
        self_ensemble: Average over eight orientations; said in the table.
        out: Folder for a page with table and plot.
    """
    from potstill.sr.workflow import evaluation, ranking

    options = {
        "tile": _tile(tile),
        "tile_mode": tile_mode,
        "backend": backend,
        "precision": precision,
        "self_ensemble": self_ensemble,
    }
    if len(model) > 1:
        report = ranking(images, scale, model, protocol, options)
    else:
        report = evaluation(images, scale, model[0] if model else None, protocol, options)
    report.show()
    if out is not None:
        _say(f"page: {report.save(out)}")


@app.command
def compare(
    image: Path,
    /,
    *,
    out: Path,
    scale: Literal[2, 3, 4] = 2,
    models: Words = (),
    size: int = 96,
    corner: tuple[int, int] | None = None,
    seams: int | None = None,
) -> None:
    """Draw crops of an original, of bicubic and of networks, with their errors.

    Args:
        image: The original; it is shrunk and enlarged again.
        out: PNG file to write.
        scale: Factor.
        models: Weight files or names; our own by default.
        size: Side of the crop, pixels.
        corner: Top and left of the crop; where bicubic is worst by default.
        seams: Draw what tiles of this side change instead.
    """
    from potstill.sr.workflow import comparison

    _say(f"picture: {comparison(image, out, scale, models, size, corner, seams)}")


@app.command
def train(
    photographs: Path,
    /,
    *,
    out: Path,
    student: Annotated[StudentConfig, Flat] = StudentConfig(),  # noqa: B008 - frozen
    config: Annotated[TrainConfig, Flat] = TrainConfig(),  # noqa: B008
    init: str | None = None,
    validate: str | None = None,
) -> None:
    """Train an upscaler on a folder of photographs (any images, or DIV2K's layout).

    Args:
        photographs: The folder; low-resolution patches are made by MATLAB's bicubic.
        out: Folder of the run; an interrupted one goes on.
        student: See the options.
        config: See the options.
        init: Weights to start from; all tensors that fit are copied, so x3 can start from x2.
        validate: A folder or set whose PSNR keeps the best weights; never your test set.
    """
    from potstill.sr.workflow import training

    _say(f"weights: {training(photographs, out, student, config, init, validate)}")


@app.command
def distill(
    photographs: Path,
    /,
    *,
    out: Path,
    teacher: str,
    student: Annotated[StudentConfig, Flat] = StudentConfig(),  # noqa: B008
    config: Annotated[TrainConfig, Flat] = TrainConfig(task=0.5, output=0.5),  # noqa: B008
    init: str | None = None,
    validate: str | None = None,
) -> None:
    """Train a student on photographs and on what a larger teacher makes of them.

    Weights of the terms are options: --output (teacher's image), --affinity (FAKD), --wavelet
    (high frequencies), --contrastive (CSD).

    Args:
        photographs: The folder.
        out: Folder of the run.
        teacher: Weight file or name, of the same factor.
        student: See the options.
        config: See the options.
        init: Weights to start from.
        validate: A folder or set whose PSNR keeps the best weights.
    """
    from potstill.sr.workflow import training

    _say(f"weights: {training(photographs, out, student, config, init, validate, teacher)}")


@app.command
def export(
    model: str,
    /,
    *,
    out: Path,
    gates: bool = False,
    half: bool = False,
) -> None:
    """Write a network for other programs.

    Args:
        model: Weight file or name.
        out: .onnx (dynamic batch and sides, checked), or .safetensors under our tensor names.
        gates: With .onnx: take the gates as a second input, so that tiles can share them.
        half: With .safetensors: store in half precision.
    """
    from potstill.sr.workflow import exporting

    _say(f"written: {exporting(model, out, gates=gates, half=half)}")


@app.command
def bench(
    *,
    model: str | None = None,
    scale: Literal[2, 3, 4] = 4,
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
    """Time backends on this machine, interleaved; backends that are not installed are said so.

    Args:
        model: Weight file or name; the published shape with random weights by default.
        scale: Factor of the random network.
        size: Side of the input, pixels.
        backends: "<backend>:<precision>", with ":compiled" for a compiled torch.
        threads: CPU threads.
        out: Folder for a page.
    """
    from potstill.sr.workflow import benchmarking

    report = benchmarking(model, scale, size, backends, threads)
    report.show()
    if out is not None:
        _say(f"page: {report.save(out)}")


def _tile(text: str) -> int | str:
    return int(text) if text.isdigit() else text


def _say(text: str) -> None:
    from rich.console import Console

    Console().print(text, markup=False, highlight=False, soft_wrap=True)
