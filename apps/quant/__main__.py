"""Students of several domains at 8, 4 and 2 bits, on one page: ``python -m apps.quant``.

Each row is one run of ``potstill quant distill``; post-training and training without the teacher
stand beside training with it. Nothing is downloaded.
"""

from __future__ import annotations

import sys
from pathlib import Path

from cyclopts import App

from potstill.core import Column, Report, Training
from potstill.quant import Distill, DistillConfig

app = App(name="quant", help=__doc__)

SUBJECTS = {
    "gratings": "potstill.quant:gratings",
    "sr": "apps.quant.sr:subject",
    "graph": "apps.quant.graph:subject",
}
SHOWN = {
    "fp32": "full precision", "mse": "post-training mse", "gptq": "post-training gptq",
    "labels": "without teacher", "teacher": "with teacher",
}  # fmt: skip
"""Columns that fit a terminal, and what a run calls them."""


@app.default
def main(
    domains: tuple[str, ...] = tuple(SUBJECTS),
    *,
    bits: tuple[int, ...] = (8, 4, 2),
    steps: int = 200,
    out: Path = Path("runs/quant-tour"),
) -> int:
    """Lower, train and compare.

    Args:
        domains: Domains of the students.
        bits: Numbers of bits.
        steps: Steps of each training.
        out: Folder of the page and of the runs.
    """
    report = Report(
        "Students in few bits",
        summary="Quality of the same student at each number of bits: in full precision, rounded "
        "(mse, gptq), and trained in these bits on labels and with its teacher. kB: of the packed "
        "file.",
        columns={"bytes": Column("kB")},
        label="student",
    )
    for domain in domains:
        for number in bits:
            config = DistillConfig(
                SUBJECTS[domain], out=out / f"{domain}-{number}", bits=number,  # type: ignore[arg-type]
                start="gptq", training=Training(steps=steps, device="cpu"),
            )  # fmt: skip
            found = Distill(config).run(progress=f"{domain}, {number} bits").summary
            shown = {column: found[name] for column, name in SHOWN.items()}
            report.add(f"{domain}, {number} bits", **shown, bytes=found["bytes"] / 1e3)
    report.show()
    report.save(out)
    return 0


if __name__ == "__main__":
    sys.exit(app())
