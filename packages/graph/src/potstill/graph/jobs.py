"""Jobs on one graph: a teacher, its students over seeds, and their diagnosis."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch_geometric.data import Data

from potstill.core import ConfigError, Job, Report, atomic, fingerprint, reading
from potstill.core.command import say
from potstill.graph.analysis.comparison import compare
from potstill.graph.analysis.diagnostics import diagnose
from potstill.graph.config import DiagnoseConfig, DistillConfig, GraphConfig, TrainConfig
from potstill.graph.data.check import check_graph, check_logits
from potstill.graph.data.datasets import load
from potstill.graph.data.readers import read_graph
from potstill.graph.data.scaling import in_units
from potstill.graph.data.splits import hold_out
from potstill.graph.training.choice import Choice, choose
from potstill.graph.training.protocol import teacher_logits, train_teacher
from potstill.graph.training.scores import SCORES

__all__ = ["Diagnose", "Distill", "Train", "load_graph"]

C = TypeVar("C", bound=TrainConfig)


def load_graph(config: GraphConfig, seed: int = 0, **options: Any) -> Data:
    """The graph that a configuration names: a known one, or a file.

    Args:
        config: Name or path, and how a file is read.
        seed: Draws splits.
        **options: Of `read_graph`, for files.
    """
    if not config.is_file():
        name, split = config.dataset, config.split
        data = load(name, seed=seed, split=split, download=config.download)
        if config.metric is not None:
            data.metric = config.metric
            data = check_graph(data)
        return data
    names = ("target", "split", "task", "metric", "directed", "scaling", "fill")
    own = {name: getattr(config, name) for name in names}
    return read_graph(config.dataset, seed=seed, **{**own, **options})


class _GraphJob(Job[C]):
    """Parts by name, each a run in a folder of its own: a finished one is read back."""

    movable = (*Job.movable, "download")

    def load(self, seed: int) -> Data:
        """The graph of a seed."""
        return load_graph(self.config, seed)

    def options(self, progress: Any) -> dict[str, Any]:
        """Options of the functions that train several parts."""
        return {
            "training": self.config.training, "engine": self.engine,
            "run": self.config.out / "parts",
            "progress": lambda label: label if isinstance(progress, str) else progress,
        }  # fmt: skip


class Train(_GraphJob[TrainConfig]):
    """A teacher, and its logits."""

    def train(self, progress: Any) -> None:
        """Train the teacher."""
        seed = self.config.training.seed
        options = self.options(progress)
        options["progress"] = options["progress"](f"{self.config.teacher} teacher")
        options["run"] /= "teacher"
        self.data = self.load(seed)
        self.teacher = train_teacher(self.data, self.config.recipe(), seed=seed, **options)
        self.history = self.teacher.history

    def export(self, folder: Path, history: Any) -> dict[str, Any]:
        """Write ``logits.npy`` [N C] and ``teacher.safetensors``."""
        from safetensors.torch import save_file

        model = self.teacher.model
        with atomic(folder / "logits.npy") as temporary:
            np.save(temporary, teacher_logits(model, self.data).numpy())
        with atomic(folder / "logits.json") as temporary:
            temporary.write_text(json.dumps({"split": _split(self.data)}), encoding="utf-8")
        with atomic(folder / "teacher.safetensors") as temporary:
            save_file({k: v.contiguous() for k, v in model.state_dict().items()}, temporary)
        name = SCORES[self.data.metric].title
        return {f"{part} {name}": value for part, value in self.teacher.accuracy.items()}


class Distill(_GraphJob[DistillConfig]):
    """Teacher and students over seeds, compared on one page."""

    def load(self, seed: int) -> Data:
        """The graph of a seed; of another split than that of the teacher it is refused.

        Raises:
            ConfigError: The logits are those of a teacher that was trained on other labels.
        """
        data = load_graph(self.config, seed, logits=self.config.logits, kind=self.config.kind)
        logits = self.config.logits
        about = None if logits is None else logits.with_suffix(".json")
        if about is not None and about.is_file():
            with reading(about, "what `potstill graph train` wrote"):
                known = json.loads(about.read_text(encoding="utf-8"))["split"]
            if known != _split(data):
                raise ConfigError(
                    f"distill: {logits} must be of a teacher that was trained on the labels of "
                    f"this split, got those of another; pass --seed as it was for the teacher"
                )
        return data

    def train(self, progress: Any) -> None:
        """Train them, seed by seed."""
        config = self.config
        chosen = self.choose(progress) if config.auto else None
        self.comparison = compare(
            self.load,
            config.recipe(),
            config.methods if chosen is None else (chosen.method,),
            range(config.training.seed, config.training.seed + config.seeds),
            hold_out_rate=config.hold_out,
            logits=config.logits,
            kind=config.kind,
            done=say if progress and self.engine.main else lambda line: None,
            **self.options(progress),
        )
        trained = [one for many in self.comparison.trained.values() for one in many]
        self.history = [*self.history, *(row for one in trained for row in one.history)]

    def choose(self, progress: Any) -> Choice:
        """The method that suits the graph. The teacher is the one that the first seed needs."""
        config, seed = self.config, self.config.training.seed
        data, options = self.load(seed), self.options(progress)
        if config.hold_out:
            data = hold_out(data, config.hold_out, seed).observed
        if config.logits is None:
            own = {**options, "training": replace(config.training, lr=None)}
            own["run"] = options["run"] / f"seed-{seed}" / "teacher"
            own["progress"] = options["progress"](f"seed {seed}: {config.teacher} teacher")
            z = teacher_logits(train_teacher(data, config.recipe(), seed=seed, **own).model, data)
        else:
            z = in_units(data, check_logits(config.logits, len(data.y), kind=config.kind))
        chosen = choose(
            data, z, config.recipe(), seed=seed, training=config.training, engine=self.engine
        )
        if self.engine.main:
            say(chosen.text)
        return chosen

    def export(self, folder: Path, history: Any) -> Report:
        """Save the student of the last method; the page has accuracy, size and latency."""
        self.comparison.save_student(folder / "student")
        return self.comparison.report(f"{self.config.dataset}: {self.config.teacher} to MLP")


def _split(data: Data) -> str:
    return fingerprint(data.y, data.train_mask, data.val_mask)[:12]


class Diagnose(_GraphJob[DiagnoseConfig]):
    """Students measured while they train."""

    def train(self, progress: Any) -> None:
        """Train teacher and students."""
        config, seed = self.config, self.config.training.seed
        options = {"seed": seed, "every": config.every, **self.options(progress)}
        self.found = diagnose(self.load(seed), config.recipe(), config.methods, **options)
        self.history = [row for s in self.found.students.values() for row in s.history]

    def export(self, folder: Path, history: Any) -> Report:
        """Write ``curves.csv``, and the page of the curves."""
        title = f"{self.config.dataset}: what students of a {self.config.teacher} learn"
        self.found.save_curves(folder)
        return self.found.report(title)
