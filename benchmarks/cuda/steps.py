"""Each domain's main job on a GPU: what a training step waits for, and its peak memory."""

from functools import partial

import torch

from benchmarks.cuda.place import DEVICE
from potstill.core.measure.bench import Figure, at_most, benchmark

SOURCE = "issue 17: no host synchronisation inside a training step"
DOCUMENTED = {
    "core/engine/update.py:_share": "numbers of the batch go to the device with its terms",
    "core/engine/update.py:finish": "the terms come back: a row a step, and none that is NaN",
    "core/engine/device.py:clip": "the norm of the gradient is in that row",
    "core/criteria/rows.py:_sweep": "whether a closed form met classes that are masked",
    "core/criteria/correlation.py:dist": "the same, and whether all rows have labels",
    # samples are packed by ray, and only the device knows how many there are
    "nerf/backends/reference.py:march": "how many samples the rays have",
    "nerf/render/march.py:march": "the same, by any backend",
    "nerf/render/march.py:some": "how many samples each ray keeps",
    "nerf/render/march.py:within": "how many rays fill the budget of samples",
    "nerf/render/composite.py:sum_before": "whether counts and samples agree",
    "nerf/render/image.py:_composite": "how many samples are seen, and need a colour",
    "nerf/encodings/harmonics.py:harmonics": "whether a direction is zero",
    "nerf/distill/choice.py:choose": "how many rays the last step left budget for",
    "nerf/distill/choice.py:learn": "whether a batch had no sample",
    "nerf/distill/targets.py:targets_of": "how many samples the teacher is asked about",
    "nerf/distill/objective.py:forward": "how many samples take part",
}
"""Waits that the engine's note gives a reason for; all others count against the target."""


def job(name: str) -> dict[str, Figure]:
    """Waits of every training step of a domain's main job, by place, and its peak memory."""
    from tests.devices.jobs import JOBS  # which replaces parts of torch where there is no GPU
    from tests.devices.syncs import any_gpu, counted

    with any_gpu() as device, counted(device) as syncs:
        JOBS[name]()
    figures = {"waits": Figure(0.0, "a step")}
    for distiller, places in syncs.each_step().items():
        for place, count in places.items():
            figures[f"{distiller} {place}"] = Figure(float(count), "a step")
        other = sum(count for place, count in places.items() if place not in DOCUMENTED)
        worst = max(figures["waits"].value, float(other))
        figures["waits"] = Figure(worst, "a step")
    if DEVICE == "cuda":
        figures["peak"] = Figure(torch.cuda.max_memory_allocated() / 2**20, "MiB")
    return figures


for _name in ("graph", "mirage", "sr", "mae", "acm", "nerf", "search", "flow"):
    _function = partial(job, _name)
    _function.__doc__ = job.__doc__  # type: ignore[attr-defined]
    benchmark(domain="cuda", name=f"steps-{_name}", device="cuda",
              targets={"waits": at_most(0, SOURCE)})(_function)  # fmt: skip
