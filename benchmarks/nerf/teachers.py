"""Teachers: decibels for CPU-seconds on lego, and poses that mean something on fox and fern."""

import time

import torch

from potstill.core import seed_all
from potstill.core.measure.bench import Figure, at_least, at_most, benchmark
from potstill.core.store import root
from potstill.nerf import KINDS, Scene, load_scene, make_field, score, train_field


def teach(scene: Scene, steps: int, seed: int, kind: str = "hash") -> tuple[float, float]:
    """PSNR on the test views, and CPU-seconds of training (evaluation left out)."""
    seed_all("field", seed)
    field = make_field(kind, scene.space)
    start = time.process_time()
    field, _ = train_field(field, scene, steps=steps, seed=seed, progress=False)
    taken = time.process_time() - start
    return score(field, scene.test), taken


@benchmark(
    threads=1,
    data="nerf/lego_200",
    budget=600,
    targets={
        "PSNR": at_least(25, "issue 8: hash teacher on lego at 100x100, median of 3 seeds"),
        "CPU time": at_most(40, "issue 8: in 40 CPU-seconds"),
    },
)
def lego_teacher(quick: bool) -> dict[str, Figure]:
    """Hash teacher on lego at 100x100: 1,300 steps, 40 test views, median of 3 seeds."""
    scene = load_scene(root() / "nerf" / "lego_200", downsample=2)
    runs = [teach(scene, 3 if quick else 1300, seed) for seed in range(1 if quick else 3)]
    quality, seconds = (sorted(column)[len(runs) // 2] for column in zip(*runs, strict=True))
    return {"PSNR": Figure(quality, "dB"), "CPU time": Figure(seconds, "s")}


@benchmark(threads=1, data="nerf/lego_200", budget=600)
def lego_kinds(quick: bool) -> dict[str, Figure]:
    """Every kind on lego at 100x100 after 30 CPU-seconds, 40 test views, one seed."""
    scene = load_scene(root() / "nerf" / "lego_200", downsample=2)
    figures = {}
    for kind in KINDS:
        seed_all("field", 0)
        field = make_field(kind, scene.space)
        budget = 0.5 if quick else 30.0
        field, history = train_field(
            field, scene, seconds=budget, clock=time.process_time, progress=False
        )
        views = 1 if quick else None
        figures[kind] = Figure(score(field, scene.test, views), "dB")
        figures[f"{kind}, steps"] = Figure(len(history))
    return figures


def with_and_without_poses(name: str, downsample: int, steps: int) -> dict[str, Figure]:
    scene = load_scene(root() / "nerf" / name, downsample=downsample)
    torch.manual_seed(0)
    given, _ = teach(scene, steps, 0)
    shuffled, _ = teach(scene.shuffled(), steps, 0)
    return {
        "given poses": Figure(given, "dB"),
        "shuffled poses": Figure(shuffled, "dB"),
        "gain": Figure(given - shuffled, "dB"),
    }


@benchmark(
    threads=1,
    data="nerf/fox_270",
    budget=300,
    targets={"gain": at_least(3, "issue 8: fox over the same run with shuffled poses")},
)
def fox_poses(quick: bool) -> dict[str, Figure]:
    """Fox at 90x160, contracted: held-out views with given and with shuffled poses."""
    return with_and_without_poses("fox_270", 3, 3 if quick else 1000)


@benchmark(
    threads=1,
    data="nerf/fern",
    budget=300,
    targets={"gain": at_least(3, "issue 8: fern over the same run with shuffled poses")},
)
def fern_poses(quick: bool) -> dict[str, Figure]:
    """Fern at 252x189, normalised device coordinates: given and shuffled poses."""
    return with_and_without_poses("fern", 16, 3 if quick else 1000)
