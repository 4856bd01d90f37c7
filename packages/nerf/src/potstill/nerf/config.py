"""Options of ``potstill nerf train`` and ``potstill nerf convert``."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

from cyclopts import Parameter

from potstill.core import ConfigError, Training

__all__ = ["ConvertConfig", "FieldSize", "SceneConfig", "TrainConfig"]

Kind = Literal["hash", "mlp", "vm", "cp", "grid", "composite"]


def _short(name: str) -> Parameter:
    return Parameter(alias=f"--{name}")


@dataclass(frozen=True)
class FieldSize:
    """Size of the field; 0 is the default of the kind.

    Attributes:
        levels: Levels of hash.
        log2_rows: Rows of a level of hash, as a power of two.
        finest: Finest resolution of hash.
        depth: Hidden layers of mlp.
        width: Width of these layers.
        resolution: Resolution of vm, cp and grid.
    """

    levels: int = 0
    log2_rows: int = 0
    finest: int = 0
    depth: int = 0
    width: int = 0
    resolution: int = 0


@dataclass(frozen=True)
class SceneConfig:
    """A scene; each option has a short form: ``--scene.data`` is ``--data``.

    Attributes:
        data: Folder of the scene; "analytic" needs none.
        layout: Layout of the folder; found out by default.
        downsample: Factor by which images are smaller; 0 is the layout's default.
        allow_missing: Leave out frames whose image is absent.
        rescale_intrinsics: Scale intrinsics that are for images of another size.
        scale: Factor from lengths of the data to those of the field; the layout's by default.
        center: Point of the data that becomes the origin.
        aabb: Box of the data outside of which nothing is: minimum and maximum corner.
        bounded: The same with a box around the points of a COLMAP model.
        near: Distance in the data at which rays start.
        far: Distance in the data at which rays end, in a scene without end.
    """

    data: Annotated[str, _short("data")] = "analytic"
    _: KW_ONLY
    layout: Annotated[str, _short("layout")] = "auto"
    downsample: Annotated[float, _short("downsample")] = 0
    allow_missing: Annotated[bool, _short("allow-missing")] = False
    rescale_intrinsics: Annotated[bool, _short("rescale-intrinsics")] = False
    scale: Annotated[float | None, _short("scale")] = None
    center: Annotated[tuple[float, ...], _short("center")] = ()
    aabb: Annotated[tuple[float, ...], _short("aabb")] = ()
    near: Annotated[float | None, _short("near")] = None
    far: Annotated[float | None, _short("far")] = None
    bounded: Annotated[bool, _short("bounded")] = False


def _optional(cls: type) -> type:
    """Options like those of a configuration, none of which has to be given."""
    options = []
    for name, hint in get_type_hints(cls, include_extras=True).items():
        if name != "_":
            value, *notes = get_args(hint)
            options.append((name, Annotated[(value | None, *notes)], field(default=None)))
    namespace = {"__doc__": cls.__doc__, "__module__": __name__}
    return make_dataclass(f"Other{cls.__name__}", options, frozen=True, namespace=namespace)


OtherScene: Any = _optional(SceneConfig)
"""Options of a scene in the place of those that a run was made with; None keeps these."""


@dataclass(frozen=True)
class TrainConfig:
    """Train a field on posed images; without data, on a scene that needs none.

    Attributes:
        out: Folder of the run: field.safetensors, prior.json, comparison.png, curves.png.
        scene: Images to learn from.
        kind: Kind of the field.
        size: Size of the field.
        samples: Samples per process and step; the batch is the number of rays to take them from.
        background: Colour behind transparent pixels; noise behind images without alpha by default.
        depth: Weight of the depth maps of the scene.
        distortion: Weight of the distortion loss, against fog.
        variation: Weight of the total variation of vm, cp and grid.
        every: Steps between validations; 0 for none.
        occupancy: Cells an axis of the occupancy grid.
        backend: Backend of the encodings.
        training: Budget, optimizer, device and seed; the learning rate decays exponentially.
    """

    _: KW_ONLY
    out: Annotated[Path, Parameter(alias="-o")] = Path("runs/nerf")
    scene: SceneConfig = field(default_factory=SceneConfig)
    kind: Kind = "hash"
    size: FieldSize = field(default_factory=FieldSize)
    samples: int = 6144
    background: Literal["auto", "white", "black", "random"] = "auto"
    depth: float = 0.0
    distortion: float = 0.0
    variation: float = 0.0
    every: int = 250
    occupancy: int = 64
    backend: str = "auto"
    training: Training = field(
        default_factory=lambda: Training(
            steps=1000, batch=2048, optimizer="row-adam", warmup=0.02375, final=0.1
        )
    )

    def __post_init__(self) -> None:
        weights = dict.fromkeys(("depth", "distortion", "variation"), 0)
        _check(self, {"samples": 1, "occupancy": 1, "every": 0, **weights})
        if not self.training.final:
            raise ConfigError("TrainConfig: final must be positive, got 0; it decays exponentially")


@dataclass(frozen=True)
class ConvertConfig:
    """Turn a trained field into one of another kind; no image is needed.

    Attributes:
        teacher: Folder of a run, or file of a field.
        out: Folder of the conversion: field.safetensors, prior.json, conversion.json, index.html.
        kind: Kind of the student.
        size: Size of the student.
        prior: JSON file of a pose prior; prior.json beside the teacher by default.
        scene: Images to evaluate the student by; not needed.
        clock: Seconds of the wall or of the CPU, in budgets and rows.
        samples: Samples per step, of all processes together; so is the batch, unlike elsewhere.
        feature_until: Share of the budget in which only features count.
        points_until: Share from which on pixels count.
        norm: Norm of the losses.
        pools: Bring hard poses and rays back.
        inherit: Begin with the teacher's block 2 where that fits.
        hand_over: Share of the budget that is then spent on the images of ``data``.
        erase: Box to remove from the student: minimum and maximum corner.
        keep: Box outside of which everything is removed: minimum and maximum corner.
        every: Steps between evaluations; 0 for none.
        backend: Backend of the encodings.
        training: Budget, optimizer, device and seed.
    """

    teacher: Path
    _: KW_ONLY
    out: Annotated[Path, Parameter(alias="-o")] = Path("runs/convert")
    kind: Kind = "vm"
    size: FieldSize = field(default_factory=FieldSize)
    prior: str = ""
    scene: SceneConfig = field(default_factory=lambda: SceneConfig(data=""))
    clock: Literal["wall", "cpu"] = "wall"
    samples: int = 6144
    feature_until: float = 1 / 15
    points_until: float = 1 / 6
    norm: Literal["normalized", "paper"] = "normalized"
    pools: bool = False
    inherit: bool = True
    hand_over: float = 0.0
    erase: tuple[float, ...] = ()
    keep: tuple[float, ...] = ()
    every: int = 100
    backend: str = "auto"
    training: Training = field(
        default_factory=lambda: Training(
            steps=1000, batch=4096, optimizer="row-adam", warmup=0.01, final=0.02
        )
    )

    def __post_init__(self) -> None:
        _check(self, {"samples": 1, "every": 0})
        if not 0 <= self.hand_over < 1 or (self.hand_over and not self.scene.data):
            raise ConfigError(
                "ConvertConfig: hand_over must be a share in [0, 1), with data whose images it "
                f"learns from, got {self.hand_over} and data {self.scene.data!r}"
            )
        if self.pools and self.training.accumulate > 1:
            raise ConfigError(
                f"ConvertConfig: accumulate must be 1 with pools, got {self.training.accumulate}"
            )
        for name in ("erase", "keep"):
            if len(getattr(self, name)) not in (0, 6):
                raise ConfigError(
                    f"ConvertConfig: {name} must be six numbers, the low and the high corner, got "
                    f"{len(getattr(self, name))}"
                )
        if self.erase and self.keep:
            raise ConfigError("ConvertConfig: erase or keep a box, got both; convert twice")


def _check(config: TrainConfig | ConvertConfig, at_least: dict[str, int]) -> None:
    for name, least in at_least.items():
        if getattr(config, name) < least:
            raise ConfigError(
                f"{type(config).__name__}: {name} must be at least {least}, got "
                f"{getattr(config, name)}"
            )
