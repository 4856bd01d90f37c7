"""What few bits do to IMDN x4 with the official weights: PSNR of Y on Set5, and bytes.

python -m benchmarks quant
"""

from functools import cache

from torch import Tensor, nn

from potstill.core import locate
from potstill.core.measure.bench import Figure, at_least, at_most, benchmark
from potstill.quant import Grid, bytes_of, lower, lowered, post_training
from potstill.sr import Patches, degrade, load_model, read_image
from potstill.sr.evaluation import evaluate, find_set, mean
from potstill.sr.images import find_photographs

DATA = ("sr/safetensors", "sr/Set5", "sr/T91")
KEEP = {"head": 8, "upsampler": 8, "body_out": 8}  # see which_layer


@cache
def network() -> nn.Module:
    return load_model(locate("sr/safetensors/IMDN_x4.safetensors"))


@cache
def calibration(count: int) -> list[Tensor]:
    """Batches of 8 low-resolution patches of 24 pixels of T91."""
    paths = find_photographs(locate("sr/T91"))
    pairs = degrade([read_image(path).rgb8() for path in paths], scale=4)
    patches = Patches(pairs, patch=24, batch=8)
    return [patches(step, 0, 1)[0] for step in range(count)]


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
