"""``potstill sr upscale | eval | compare | train | distill | export | time``.

Only what the command line needs is imported here; torch comes with the command that runs.
"""

from __future__ import annotations

from cyclopts import App

from potstill.core.command import config as configs
from potstill.core.command import verb
from potstill.sr.config import DistillConfig, TrainConfig, UpscaleConfig

__all__ = ["app"]

app = App(
    name="sr", help="Enlarge photographs without seams, evaluate, train and distil upscalers."
)


def _upscale(config: UpscaleConfig) -> int:
    from potstill.sr.inference.batch import run_batch

    return run_batch(config)


app.command(
    configs.taking(UpscaleConfig, _upscale),
    name="upscale",
    help="Enlarge files, folders and patterns; one bad file does not stop the others.",
)
app.command(
    "potstill.sr.evaluation.reports:evaluate_set",
    name="eval",
    help="Measure PSNR and SSIM beside bicubic and beside the published figure of IMDN. One "
    "network gives a table of its images; several give one of networks, with time and size.",
)
app.command(
    "potstill.sr.evaluation.reports:compare",
    help="Draw crops of an original, of bicubic and of networks, with their errors.",
)
verb(app, "train", "potstill.sr.training.jobs:Train", TrainConfig)
verb(app, "distill", "potstill.sr.training.jobs:Train", DistillConfig)
app.command(
    "potstill.sr.backends.export:export",
    help="Write a network for other programs.",
)
app.command(
    "potstill.sr.evaluation.reports:time_backends",
    name="time",
    help="Time backends on the CPU of this machine, interleaved; those that are not installed are "
    "listed with what they need.",
)
