"""Teachers and students as folders that diffusers reads: the network, and what it means."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import nn

from potstill.core import ConfigError, DataError, Pretrained, atomic, nearest, reading, staging
from potstill.flow.methods.twin import Twin
from potstill.flow.student import Generator, Phased, Student, Students
from potstill.flow.teachers.analytic import ring
from potstill.flow.teachers.networks import PointNet, diffusers, is_diffusers
from potstill.flow.teachers.paths import Linear, path_from, path_name
from potstill.flow.teachers.teacher import Teacher
from potstill.flow.teachers.velocity import Velocity

__all__ = ["load_student", "load_teacher", "save_student", "save_teacher"]

_STUDENT, _TEACHER = "student.json", "teacher.json"
_OWN: dict[str, type[Any]] = {"PointNet": PointNet}
_NETWORK = "unet"  # where pipelines of diffusers look


def save_teacher(teacher: Teacher, folder: str | os.PathLike[str], **about: Any) -> Path:
    """Write ``unet/`` and ``teacher.json``; `load_teacher` reads them, and diffusers the network.

    Args:
        teacher: The teacher.
        folder: Folder, made when missing.
        **about: How it was trained, for the record.

    Raises:
        ConfigError: A network that can be written neither by diffusers nor by `Pretrained`, or a
            condition that is no label.
    """
    if isinstance(teacher.null, torch.Tensor):
        raise ConfigError("save_teacher: null must be a label to be written, got a tensor")
    facts = {"guidance": teacher.guidance, "null": teacher.null, "about": about}
    return _save(teacher, teacher, Path(folder), _TEACHER, facts)


def save_student(student: Generator, folder: str | os.PathLike[str]) -> Path:
    """Write ``unet/`` and ``student.json``; of several, a folder each.

    A network of diffusers is in diffusers' own layout. Where the student is a whole pipeline of
    one step, without classes and asked at time 1 on the linear path, ``DDPMPipeline`` loads it.

    Raises:
        ConfigError: A network that can be written neither by diffusers nor by `Pretrained`.
    """
    if isinstance(student, Student):
        facts = {"at": student.at, "about": student.about}
        return _save(student, student.net, Path(folder), _STUDENT, facts)
    if isinstance(student, Twin):
        facts = {"two_times": True, "about": student.about}
        net = Velocity(student.model, "flow", Linear(student.scale))
        return _save(student, net, Path(folder), _STUDENT, facts)
    facts = {"about": student.about}
    if isinstance(student, Phased):
        sizes: Any = {"shape": student.shape, "classes": student.classes}
        facts["levels"] = student.levels[:-1]
        nets: Any = zip(student.experts, student.levels, strict=False)
        parts = [Student(net, at, **sizes) for net, at in nets]
    elif isinstance(student, Students):
        facts["router"] = student.router.tolist()
        parts = list(student.students)  # type: ignore[arg-type]
    else:
        raise ConfigError(f"save_student: got a {type(student).__name__}, which is no student")
    target = Path(folder)
    (target / _STUDENT).unlink(missing_ok=True)
    for number, part in enumerate(parts):
        save_student(part, target / str(number))
    with atomic(target / _STUDENT) as temporary:
        text = json.dumps({"parts": len(parts), **facts}, indent=1)
        temporary.write_text(text, encoding="utf-8")
    return target


def load_teacher(
    folder: str | os.PathLike[str],
    *,
    guidance: float | None = None,
    model: nn.Module | None = None,
) -> Teacher:
    """Read a teacher: a folder of `save_teacher`, a pipeline of diffusers, or one by name.

    Args:
        folder: The folder; ``mixture`` is the exact teacher of eight Gaussians around a circle, and
            ``digits`` comes with the package: images of 8x8 pixels in ten classes.
        guidance: Weight of classifier-free guidance; as written by default.
        model: The network, where it is of a class that only its author knows.

    Raises:
        DataError: Nothing there, or files that are damaged.
        ConfigError: Guidance of a teacher that was trained without a label for "no condition".
    """
    if str(folder) == "mixture" and not Path(folder).exists():
        return Teacher(ring())
    if str(folder) == "digits" and not Path(folder).exists():
        folder = str(resources.files("potstill.flow") / "pretrained" / "digits")
    if (Path(folder) / "model_index.json").exists() and not (Path(folder) / _TEACHER).exists():
        return Teacher.from_diffusers(folder, guidance=guidance or 1.0)
    about, velocity = _load(Path(folder), _TEACHER, model)
    return Teacher(
        velocity.model, velocity.prediction, velocity.path,
        guidance=about["guidance"] if guidance is None else guidance, null=about["null"],
        shape=tuple(about["shape"]), classes=about["classes"],
    )  # fmt: skip


def load_student(folder: str | os.PathLike[str], *, model: nn.Module | None = None) -> Generator:
    """Read what `save_student` wrote.

    Args:
        folder: The folder.
        model: The network, where it is of a class that only its author knows.

    Raises:
        DataError: No student there, or files that are damaged.
    """
    path = Path(folder) / _STUDENT
    if path.is_file():
        with reading(path, "the description of a student"):
            several = json.loads(path.read_text(encoding="utf-8"))
            if "parts" in several:
                return _together(path.parent, several).eval()
    about, velocity = _load(Path(folder), _STUDENT, model)
    if about.get("two_times"):
        twin = Twin(
            velocity.model, scale=velocity.path.options()["scale"], shape=tuple(about["shape"]),
            classes=about["classes"], about=about["about"],
        )  # fmt: skip
        return twin.eval()
    student = Student(
        velocity, about["at"], shape=tuple(about["shape"]), classes=about["classes"],
        about=about["about"],
    )  # fmt: skip
    return student.eval()


def _save(item: Any, velocity: Velocity, folder: Path, name: str, facts: Mapping[str, Any]) -> Path:
    """Parts into their places, the description last: without it there is nothing."""
    model: Any = velocity.model
    about = {
        "network": type(model).__name__, "library": "diffusers" if is_diffusers(model) else "flow",
        "prediction": velocity.prediction, "path": path_name(velocity.path),
        "options": velocity.path.options(), "shape": list(item.shape), "classes": item.classes,
        **facts,
    }  # fmt: skip
    if not is_diffusers(model) and not isinstance(model, Pretrained):
        raise ConfigError(
            f"save: a network must be of diffusers or a potstill.core.Pretrained to be written, "
            f"got {type(model).__name__}; save its weights yourself"
        )
    with staging(folder) as new:
        model.save_pretrained(new / _NETWORK)
        if isinstance(item, Student) and _is_pipeline(item):
            _pipeline(model).save_pretrained(new)
        (new / name).write_text(json.dumps(about, indent=1), encoding="utf-8")
        (folder / name).unlink(missing_ok=True)
        parts = sorted(new.iterdir(), key=lambda part: part.name == name)
        for part in parts:
            if (folder / part.name).is_dir():
                shutil.rmtree(folder / part.name)
            os.replace(part, folder / part.name)
    return folder


def _together(folder: Path, facts: Mapping[str, Any]) -> Generator:
    """Students or experts, each from its own folder."""
    made: list[Any] = [load_student(folder / str(n)) for n in range(int(facts["parts"]))]
    if "router" in facts:
        return Students(made, torch.tensor(facts["router"], dtype=torch.long), facts["about"])
    return Phased(
        [part.net for part in made], facts["levels"], shape=made[0].shape,
        classes=made[0].classes, about=facts["about"],
    )  # fmt: skip


def _is_pipeline(student: Student) -> bool:
    """Whether one step of a flow-matching scheduler is what the student does."""
    net, path = student.net, student.net.path
    plain = net.prediction == "flow" and isinstance(path, Linear) and path.scale == 1000
    return plain and student.at == 1 and type(net.model).__name__ == "UNet2DModel"


def _pipeline(model: Any) -> Any:
    package = diffusers("save_student")
    scheduler = package.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000)
    return package.DDPMPipeline(unet=model, scheduler=scheduler)


def _load(folder: Path, name: str, model: nn.Module | None) -> tuple[dict[str, Any], Velocity]:
    path = folder / name
    if not path.is_file():
        raise DataError(
            f"load: {folder} must hold {name}, got none; was it written to its end, and is it a "
            f"{name.partition('.')[0]}?"
        )
    with reading(path, f"the description of a {name.partition('.')[0]}"):
        about = json.loads(path.read_text(encoding="utf-8"))
        noise = path_from(about["path"], about["options"])
        kind, library = str(about["network"]), about["library"]
        about = {**about, "classes": int(about["classes"]), "shape": list(map(int, about["shape"]))}
    if model is None:
        model = _network(folder / _NETWORK, kind, library, path)
    with reading(path, f"the description of a {name.partition('.')[0]}"):
        return about, Velocity(model, about["prediction"], noise)


def _network(folder: Path, kind: str, library: str, path: Path) -> nn.Module:
    if library == "diffusers":
        known = diffusers("load")
        if not kind.endswith("Model") or not hasattr(known, kind):
            raise DataError(f"{path}: network must be a model of diffusers, got {kind!r}")
        with reading(folder, "a network of diffusers"):
            found: nn.Module = getattr(known, kind).from_pretrained(folder, use_safetensors=True)
            return found
    if kind not in _OWN:
        raise DataError(
            f"{path}: network must be known, got {kind!r}; {nearest(kind, _OWN)}; or pass model="
        )
    made: nn.Module = _OWN[kind].from_pretrained(folder)
    return made
