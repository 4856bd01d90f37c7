"""``potstill quant sizes | post | distill | export | time``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from cyclopts import App

from potstill.core.command import table, verb
from potstill.quant.config import Auto, Bits, DistillConfig, kept, number

__all__ = ["app"]

app = App(name="quant", help="Make students of 8, 4, 3 and 2 bits, with their teachers.")
verb(app, "distill", "potstill.quant.jobs:Distill", DistillConfig)


@app.command
def sizes(
    subject: str,
    *,
    data: Path | None = None,
    bits: tuple[Bits, ...] = (8, 4, 3, 2, 1),
    keep: tuple[str, ...] = (),
    out: Path | None = None,
) -> None:
    """Say what each number of bits would weigh; nothing is run.

    Args:
        subject: Function that gives the student, package.module:function or file.py:function.
        data: Handed to that function.
        bits: Numbers of bits.
        keep: Modules with other bits, as PATH=BITS; 32 leaves one alone.
        out: Folder for the page.
    """
    from potstill.quant.pages import sizes as page
    from potstill.quant.subject import load_subject

    found = load_subject(subject, data)
    report = page(found.student, bits, {**found.keep, **kept(keep)})
    report.show()
    if out is not None:
        report.save(out)


@app.command
def post(
    subject: str,
    out: Path,
    *,
    data: Path | None = None,
    bits: Bits | Auto = 8,
    method: Literal["max", "mse", "gptq"] = "gptq",
    keep: tuple[str, ...] = (),
    correct_bias: bool = False,
) -> None:
    """Lower a student without training, and write its packed file.

    Args:
        subject: Function that gives the student, package.module:function or file.py:function.
        out: File that ends in .safetensors.
        data: Handed to that function.
        bits: Bits of a weight; auto is 8, or 7 where this processor has no VNNI.
        method: How levels are found.
        keep: Modules with other bits, as PATH=BITS; 32 leaves one alone.
        correct_bias: Correct biases by the mean error of the outputs.
    """
    from potstill.quant.files import save_packed
    from potstill.quant.pages import bytes_of
    from potstill.quant.post import post_training
    from potstill.quant.subject import judge, load_subject
    from potstill.quant.weights import Grid

    found = load_subject(subject, data)
    made = post_training(
        found.student, Grid(number(bits)), found.inputs, method=method, correct_bias=correct_bias,
        keep={**found.keep, **kept(keep)},
    )  # fmt: skip
    save_packed(made.student, out)
    missed = {"nearest levels only": ", ".join(made.missed)} if made.missed else {}
    table(f"{method} at {number(bits)} bits", {
        "full precision": judge(found, found.student), method: judge(found, made.student),
        "bytes": bytes_of(made.student), "of": bytes_of(found.student), "file": str(out), **missed,
    })  # fmt: skip


@app.command
def export(
    subject: str,
    student: Path,
    out: Path,
    *,
    data: Path | None = None,
    activations: Literal["none", "inputs", "both"] = "none",
    keep_inputs: tuple[str, ...] = (),
    dynamic: tuple[int, ...] = (),
    tolerance: float | None = None,
) -> None:
    """Write a packed student for onnxruntime (.onnx) or OpenVINO (.xml), checked on real inputs.

    Args:
        subject: Function that gives the student, package.module:function or file.py:function.
        student: Packed file of ``distill`` or ``post``.
        out: File that ends in .onnx or .xml.
        data: Handed to that function.
        activations: Also put inputs of layers onto 8-bit grids, calibrated on the subject's
            inputs; both means outputs too, as onnxruntime needs it to multiply integers.
        keep_inputs: Paths of layers whose inputs stay in full precision.
        dynamic: Axes of the input that may have any size.
        tolerance: Largest error of the file against the student; by default 0.001, and 0.05 where
            activations are rounded.
    """
    from potstill.quant.files import export_onnx, export_openvino, load_lowered
    from potstill.quant.post import calibrate
    from potstill.quant.subject import load_subject

    found = load_subject(subject, data)
    lowered = load_lowered(found.student, student)
    bypassed = []
    if activations != "none":
        both = activations == "both"
        bypassed = calibrate(lowered, found.inputs, keep=keep_inputs, outputs=both)
    write = export_openvino if out.suffix == ".xml" else export_onnx
    made = write(
        lowered, found.inputs[:4], out, dynamic={axis: f"axis{axis}" for axis in dynamic},
        tolerance=tolerance,
    )  # fmt: skip
    rows = {"inputs in full precision": ", ".join(bypassed)} if bypassed else {}
    table(f"file {out}", {"bytes": made.bytes, "error": made.error, **rows})


@app.command
def time(
    subject: str, *files: Path, data: Path | None = None, rounds: int = 10, out: Path | None = None
) -> None:
    """Time files beside each other on this processor; ratios are to the first.

    Args:
        subject: Function that gives an input, package.module:function or file.py:function.
        files: Files .onnx and .xml.
        data: Handed to that function.
        rounds: Blocks of each file.
        out: Folder for the page.
    """
    from potstill.quant.subject import load_subject
    from potstill.quant.timing import time_files

    report = time_files(files, load_subject(subject, data).inputs[0], rounds)
    report.show()
    if out is not None:
        report.save(out)
