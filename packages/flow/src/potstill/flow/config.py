"""Configurations of the commands; importing them is cheap."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Literal

from potstill.core import ConfigError, Training

__all__ = [
    "CriticConfig",
    "DistillConfig",
    "EvaluateConfig",
    "MapConfig",
    "StudentConfig",
    "TeacherConfig",
]

_COUNTS = ("updates", "pairs", "pair_steps", "nodes", "node_steps", "interval")
Method = Literal["boot", "freeflow", "dmd", "dmd2", "disback", "phased", "twinflow"]


@dataclass(frozen=True)
class TeacherConfig:
    """Train a flow teacher on images in class folders, or on points.

    Attributes:
        data: Folder or .zip file with a folder for each class; ``mixture`` for points.
        out: Folder of the run.
        network: Network: UNet2DModel or DiTTransformer2DModel of diffusers, or an MLP for points.
        widths: Channels of each level of a UNet; or width of a DiT or an MLP.
        depth: Blocks of a DiT, layers of an MLP, or layers of each level of a UNet.
        patch: Side of a DiT's patch.
        drop: Share of the items whose class is hidden, for guidance.
        size: Side of the square to which images are resized and cropped.
        training: Budget, optimizer, precision, device and seed.

    Raises:
        ConfigError: A share outside [0, 1), or no widths.
    """

    data: Path | None = None
    _: KW_ONLY
    out: Path = Path("runs/teacher")
    network: Literal["unet", "dit", "points"] = "unet"
    widths: tuple[int, ...] = (32, 64)
    depth: int = 1
    patch: int = 2
    drop: float = 0.1
    size: int | None = None
    training: Training = field(
        default_factory=lambda: Training(steps=5000, batch=64, lr=5e-4, final=0.0, ema=0.999)
    )

    def __post_init__(self) -> None:
        if not 0 <= self.drop < 1 or not self.widths or self.depth < 1:
            raise ConfigError(
                "TeacherConfig: drop must be in [0, 1), widths not empty and depth at least 1, got "
                f"{self.drop}, {self.widths} and {self.depth}"
            )


@dataclass(frozen=True)
class MapConfig:
    """Options of boot and freeflow.

    Attributes:
        derivative: Form of the condition: one step of the teacher, two more evaluations of the
            student, or forward differentiation.
        step: Step in time of the first two.
        correction: Weight of freeflow's correction by a critic.
    """

    derivative: Literal["bootstrap", "finite", "jvp"] = "bootstrap"
    step: float = 0.02
    correction: float = 0.3


@dataclass(frozen=True)
class CriticConfig:
    """Options of the methods that have a critic.

    Attributes:
        updates: Updates of the critic for each of the student.
        lr: Learning rate of the critic; that of the student by default.
        adversarial: Weight of dmd2's adversarial term, 0.003 by default; 0 for none.
        head: Module of the network whose output tells real from made items; by default the middle
            of a UNet, or the last block.
        regression: Weight of dmd's regression on pairs of noise and endpoint, 0.25 by default; 0
            for none.
        pairs: Number of pairs, which the teacher makes first.
        pair_steps: Steps of the teacher for each pair.
        nodes: Teachers that disback records on its way to the student's first distribution.
        node_steps: Steps from one of them to the next.
        interval: Steps of the student with each of them, on the way back.
    """

    updates: int = 5
    lr: float | None = None
    adversarial: float | None = None
    head: str | None = None
    regression: float | None = None
    pairs: int = 1000
    pair_steps: int = 50
    nodes: int = 3
    node_steps: int = 100
    interval: int = 200


@dataclass(frozen=True)
class StudentConfig:
    """Number and size of the students.

    Attributes:
        students: Number of students, each for its own classes (MSD).
        levels: Noise levels in (0, 1), falling, at which phased goes from one expert to the next.
        partition: Rule that gives each its classes; random parts are there to compare with.
        widths: Channels of each level of a smaller network; the teacher's weights by default.
        depth: Layers of each level, or blocks, of a smaller network.
        matching_steps: Steps in which a smaller network first learns to say what the teacher says.
    """

    students: int = 1
    levels: tuple[float, ...] = (0.5,)
    partition: Literal["consecutive", "random"] = "consecutive"
    widths: tuple[int, ...] = ()
    depth: int = 1
    matching_steps: int = 1000


@dataclass(frozen=True)
class DistillConfig:
    """Distil a diffusion or flow teacher into a one-step student.

    Attributes:
        teacher: Folder of a teacher, or of a pipeline of diffusers; ``mixture`` for points,
            ``digits`` for the teacher that comes with the package.
        method: Method.
        out: Folder of the run.
        guidance: Weight of the teacher's classifier-free guidance.
        data: Real images: dmd2's adversarial term and twinflow need them, and the teacher is
            checked on them.
        check: Refuse a teacher that does not denoise the data: see `Teacher.check`.
        size: Side of the square to which images are resized and cropped.
        width: Width of the student for ``mixture``, whose teacher has no network.
        map: Options of boot and freeflow.
        critic: Options of freeflow, dmd, dmd2, disback and phased.
        student: Number and size of the students.
        training: Budget, optimizer, precision, device and seed.

    Raises:
        ConfigError: A method without the data that it needs, or weights that are negative.
    """

    teacher: Path | None = None
    method: Method = "boot"
    _: KW_ONLY
    out: Path = Path("runs/student")
    guidance: float | None = None
    data: Path | None = None
    check: bool = True
    size: int | None = None
    width: int = 96
    map: MapConfig = field(default_factory=MapConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    training: Training = field(
        default_factory=lambda: Training(steps=4000, batch=64, lr=5e-4, final=0.0, ema=0.99)
    )

    def __post_init__(self) -> None:
        critic = self.critic
        if min(critic.adversarial or 0, critic.regression or 0, self.map.correction) < 0:
            raise ConfigError(
                "DistillConfig: weights must not be negative, got critic.adversarial="
                f"{critic.adversarial}, critic.regression={critic.regression} and map.correction="
                f"{self.map.correction}"
            )
        counts = {f"critic.{name}": getattr(critic, name) for name in _COUNTS}
        counts |= {f"student.{n}": getattr(self.student, n) for n in ("students", "matching_steps")}
        for name, value in counts.items():
            if value < 1:
                raise ConfigError(f"DistillConfig: {name} must be at least 1, got {value}")
        if self.method == "phased" and self.student.students > 1:
            raise ConfigError("DistillConfig: phased has experts, not students; pass students=1")
        for name, owner in (("adversarial", "dmd2"), ("regression", "dmd")):
            if getattr(critic, name) and self.method != owner:
                raise ConfigError(
                    f"DistillConfig: critic.{name} is of {owner}, got method={self.method!r}"
                )
        if self.method == "twinflow" and self.data is None:
            raise ConfigError(
                "DistillConfig: twinflow learns from real items, of the teacher it takes the size "
                "alone; got no data; pass --data"
            )
        if self.adversarial and self.data is None:
            raise ConfigError(
                "DistillConfig: dmd2 compares samples with real items, got no data; pass --data, "
                "or critic.adversarial=0 to do without"
            )

    @property
    def maps(self) -> bool:
        """Whether the method learns the teacher's map from noise to data."""
        return self.method in ("boot", "freeflow")

    @property
    def real(self) -> bool:
        """Whether the method learns from real items."""
        return self.method == "twinflow" or bool(self.adversarial)

    @property
    def correction(self) -> float:
        """Weight of freeflow's correction."""
        return self.map.correction if self.method == "freeflow" else 0.0

    @property
    def adversarial(self) -> float:
        """Weight of the adversarial term."""
        own = self.critic.adversarial
        return (0.003 if self.method == "dmd2" else 0.0) if own is None else own

    @property
    def regression(self) -> float:
        """Weight of the regression on pairs."""
        own = self.critic.regression
        return (0.25 if self.method == "dmd" else 0.0) if own is None else own


@dataclass(frozen=True)
class EvaluateConfig:
    """Compare a student with its teacher on the same noise, and both with real items.

    Attributes:
        student: Folder of the student.
        teacher: Folder of the teacher; ``mixture`` for points.
        data: Real items that nothing was trained on.
        out: Folder of the run.
        samples: Samples of each.
        steps: Evaluations of the teacher, one row each.
        judge: Images in class folders to train a judge on, whose accuracy is then a column.
        judge_steps: Steps of its training.
        size: Side of the square to which images are resized and cropped.
        guidance: Weight of the teacher's classifier-free guidance.
        training: Batch, device and seed.

    Raises:
        ConfigError: Less than two samples, or no steps.
    """

    student: Path | None = None
    teacher: Path | None = None
    data: Path | None = None
    _: KW_ONLY
    out: Path = Path("runs/evaluate")
    samples: int = 1000
    steps: tuple[int, ...] = (1, 2, 4, 8, 50)
    judge: Path | None = None
    judge_steps: int = 1000
    size: int | None = None
    guidance: float | None = None
    training: Training = field(default_factory=lambda: Training(batch=256))

    def __post_init__(self) -> None:
        if self.samples < 2 or not self.steps:
            raise ConfigError(
                f"EvaluateConfig: samples must be at least 2 and steps not empty, got "
                f"{self.samples} and {self.steps}"
            )
