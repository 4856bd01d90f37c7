"""From a teacher of timm and a folder of images to a student with a page, by the command.

python -m benchmarks search answer --check        needs an idle machine
"""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors.torch import load_file

from potstill.core import locate
from potstill.core.measure.bench import Figure, Skip, at_most, benchmark
from potstill.search import save_student, timm_model

PHOTOS, TEACHER = "vision/cifar10_10k.zip", "vision/tiny_vit_cifar10"


def potstill(*words: str | Path) -> None:
    """Run a command; a clock that is not steady skips the benchmark."""
    done = subprocess.run(
        [sys.executable, "-m", "potstill.core", *map(str, words)], capture_output=True, text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"}, check=False,
    )  # fmt: skip
    if "timings must be steady" in done.stderr:
        raise Skip(done.stderr.strip().splitlines()[-1])
    if done.returncode:
        raise RuntimeError(f"{words}: {done.stderr[-2000:]}")


def answer(budget: tuple[str, str], quick: bool) -> dict[str, Figure]:
    """CPU-minutes to the student of a ViT for 8,000 photos, which other commands then accept:"""
    about = json.loads(locate(f"{TEACHER}.json").read_text(encoding="utf-8"))
    teacher = timm_model("vit_tiny_patch16_224", **about["kwargs"])
    teacher.load_state_dict(load_file(locate(f"{TEACHER}.safetensors")))
    photos = locate(PHOTOS) / "cifar10"
    with TemporaryDirectory() as name:
        folder = Path(name)
        run, space, student = folder / "run", folder / "space.toml", folder / "run/student"
        save_student(teacher, folder / "teacher", about["classes"], (about["mean"], about["std"]))
        potstill("search", "space", "vit", space)
        before = os.times()
        potstill(
            "search", "suggest", space, "--teacher", f"timm:local-dir:{folder / 'teacher'}",
            "--images", photos / "train", "--validation", photos / "test", "--device", "cpu",
            *budget, "--out", run, *(("--steps", "2", "--shortlist", "2") if quick else ()),
        )  # fmt: skip
        after = os.times()
        found = json.loads((run / "best.json").read_text(encoding="utf-8"))
        assert (run / "index.html").is_file()
        checkpoint = student / "model.safetensors"
        potstill("acm", "convert", folder / "adaptive", "--checkpoint", checkpoint)
        potstill("mae", "export", student, folder / "student.safetensors")
    minutes = sum(after[2:4]) - sum(before[2:4])  # of children, user and system
    return {
        "CPU-minutes": Figure(minutes / 60, timed=True),
        "accuracy": Figure(found["accuracy"], "%"),
        "teacher": Figure(found["teacher"], "%"),
        **{name: Figure(value) for name, value in found["costs"].items()},
    }


for _name, _budget in {
    "answer": ("--milliseconds", "1.5"),
    "answer-by-macs": ("--macs", "1.5e7"),
}.items():
    _function = partial(answer, _budget)
    _function.__doc__ = f"{answer.__doc__} {' '.join(_budget).removeprefix('--')}."  # type: ignore[attr-defined]
    benchmark(
        domain="search", name=_name, data=(PHOTOS, f"{TEACHER}.json"), threads=1, budget=900,
        targets={"CPU-minutes": at_most(15.0, "issue 25: an answer with a page")},
    )(_function)  # fmt: skip
