"""What few bits do to IMDN x4 with the official weights: PSNR of Y on Set5, and bytes.

python -m benchmarks quant
"""

import copy
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potstill.core import Objective, cosine, fit, locate, to_onnx
from potstill.core.measure.bench import Figure, at_least, at_most, benchmark
from potstill.quant import (
    Grid,
    bytes_of,
    calibrate,
    export_onnx,
    export_openvino,
    lower,
    lowered,
    post_training,
    run_onnx,
    run_openvino,
    time_files,
)
from potstill.sr import Patches, UpscalerToUpscaler, degrade, load_model, read_image, score
from potstill.sr.evaluation import evaluate, find_set, mean
from potstill.sr.images import find_photographs, quantize

DATA = ("sr/safetensors", "sr/Set5", "sr/T91")
KEEP = {"head": 8, "upsampler": 8, "body_out": 8}  # see which_layer
STEPS, LR = 200, 1e-4  # of training from GPTQ


@cache
def network() -> nn.Module:
    return load_model(locate("sr/safetensors/IMDN_x4.safetensors"))


@cache
def patches() -> Patches:
    """Batches of 8 patches of T91, 24 pixels of low resolution."""
    paths = find_photographs(locate("sr/T91"))
    pairs = degrade([read_image(path).rgb8() for path in paths], scale=4)
    return Patches(pairs, patch=24, batch=8)


def calibration(count: int) -> list[Tensor]:
    return [patches()(step, 0, 1)[0] for step in range(count)]


def psnr(student: nn.Module, quick: bool = False) -> float:
    images = find_set("Set5")
    return mean(evaluate(student, images[1:2] if quick else images)).ours.psnr


@benchmark(data=DATA, budget=300, threads=1)
def which_layer(quick: bool) -> dict[str, Figure]:
    """dB that IMDN x4 loses on Set5's butterfly with a single layer at 4 bits, the five worst."""
    model = network()
    full, paths = psnr(model, True), [each.path for each in lowered(lower(model, Grid(4)))]
    losses = {}
    for path in paths[:3] if quick else paths:
        others = {other: 32 for other in paths if other != path}
        losses[path] = full - psnr(lower(model, Grid(4), keep=others), True)
    worst = sorted(losses, key=losses.__getitem__, reverse=True)[:5]
    return {path: Figure(losses[path], "dB") for path in worst}


@benchmark(
    data=DATA,
    budget=900,
    threads=1,
    targets={
        "loss of gptq, 8 bits": at_most(0.1, "issue 23: 8-bit weights"),
        "gptq over mse, 4 bits": at_least(2.0, "design note, section 14"),
        "gptq over mse, 2 bits": at_least(1.0, "design note, section 14"),
        "megabytes, 4 bits": at_most(0.40, "issue 23: the packed file"),
    },
)
def post_trained(quick: bool) -> dict[str, Figure]:
    """dB that IMDN x4 loses on Set5 by rounding alone, and the megabytes that it then has."""
    model, inputs = network(), calibration(2 if quick else 16)
    full, found = psnr(model, quick), {}
    for bits in (4,) if quick else (8, 4, 3, 2):
        scores = {}
        for method in ("max", "mse", "gptq"):
            made = post_training(model, Grid(bits), inputs, method=method, keep=KEEP).student
            scores[method] = psnr(made, quick)
            found[f"loss of {method}, {bits} bits"] = Figure(full - scores[method], "dB")
        found[f"gptq over mse, {bits} bits"] = Figure(scores["gptq"] - scores["mse"], "dB")
        found[f"megabytes, {bits} bits"] = Figure(bytes_of(made) / 1e6, "MB")
    return found


def psnr_of(run: Callable[[Tensor], Tensor]) -> float:
    """PSNR of Y on Set5 of whatever enlarges [1 3 h w]."""
    pairs = degrade([read_image(path).rgb8() for path in find_set("Set5")], scale=4)
    inputs = [torch.from_numpy(pair.lr).permute(2, 0, 1)[None].float() / 255 for pair in pairs]
    return fmean(
        score(quantize(run(x)), pair.hr, 4).psnr for x, pair in zip(inputs, pairs, strict=True)
    )


@benchmark(
    data=DATA,
    budget=600,
    threads=1,
    targets={
        "loss, onnxruntime": at_most(0.10, "issue 23: onnxruntime W8A8"),
        "loss, openvino": at_most(0.25, "issue 23: OpenVINO int8"),
        "ratio, onnxruntime": at_least(1.4, "issue 23: onnxruntime W8A8"),
        "ratio, openvino": at_least(1.8, "issue 23: OpenVINO int8"),
    },
)
def deployed(quick: bool) -> dict[str, Figure]:
    """dB that the 8-bit files of IMDN x4 lose on Set5, and their time against fp32's."""
    model, inputs = network(), calibration(2 if quick else 16)
    axes, found = {0: "n", 2: "h", 3: "w"}, {}
    with TemporaryDirectory() as folder:
        full = to_onnx(model, inputs[0], Path(folder, "full.onnx"), dynamic=axes).path
        base = psnr_of(run_onnx(full))
        for name, bits, write, run, suffix in (
            ("onnxruntime", 7, export_onnx, run_onnx, "onnx"),  # 16-bit sums without VNNI
            ("openvino", 8, export_openvino, run_openvino, "xml"),
        ):
            student = lower(
                model, Grid(bits, form="restricted"), keep={"head": 32, "upsampler": 32}
            )
            calibrate(student, inputs, outputs=name == "onnxruntime")
            made = write(student, inputs[:2], Path(folder, f"low.{suffix}"), dynamic=axes)
            found[f"loss, {name}"] = Figure(base - psnr_of(run(made.path)), "dB")
            found[f"error, {name}"] = Figure(made.error)
            found[f"megabytes, {name}"] = Figure(made.bytes / 1e6, "MB")
            first = full
            if name == "openvino":
                import openvino

                first = Path(folder, "full.xml")
                openvino.save_model(openvino.convert_model(full), first, compress_to_fp16=False)
            rows = time_files([first, made.path], torch.rand(1, 3, 96, 96), 2 if quick else 8)
            ratio = float(rows.csv().splitlines()[2].split(",")[1])
            found[f"ratio, {name}"] = Figure(ratio, "x", timed=True)
    return found


def trained(bits: int, quick: bool) -> dict[str, Figure]:
    """From GPTQ, on photographs (labels) and on what full precision makes of them (teacher)."""
    model, full = network(), psnr(network(), quick)
    start = post_training(model, Grid(bits), calibration(2 if quick else 16), method="gptq",
                          keep=KEEP).student  # fmt: skip
    found = {"loss, gptq": Figure(full - psnr(start, quick), "dB")}
    for label, name in (("labels", "task"), ("teacher", "output")):
        student = copy.deepcopy(start)
        teacher = copy.deepcopy(model) if label == "teacher" else None
        distiller = UpscalerToUpscaler(student, Objective({name: (1.0, F.l1_loss)}), teacher)
        fit(distiller, patches(), steps=2 if quick else STEPS, lr=LR, schedule=cosine(),
            progress=False)  # fmt: skip
        found[f"loss, {label}"] = Figure(full - psnr(student, quick), "dB")
    return {**found, "megabytes": Figure(bytes_of(start) / 1e6, "MB")}


for bits in (4, 3, 2):
    function = partial(trained, bits)
    function.__doc__ = f"dB that IMDN x4 loses on Set5 at {bits} bits, trained for {STEPS} steps."
    benchmark(
        domain="quant", name=f"trained-{bits}-bits", data=DATA, budget=900, threads=1,
        targets={"loss, teacher": at_most(0.3, "issue 23: with the teacher")},
    )(function)  # fmt: skip
