"""``potstill graph``: train, distill, predict, diagnose, bench.

Only what the command line needs is imported here; torch comes with the command that runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from potstill.core import ConfigError
from potstill.graph.config import DiagnoseConfig, DistillConfig, TrainConfig

app = App(name="graph", help="Distil graph neural networks into networks that need no graph.")

Flat = Parameter(name="*")


@app.command
def train(config: Annotated[TrainConfig, Flat] = TrainConfig()) -> None:  # noqa: B008
    """Train a teacher, and write what it says about every node to ``logits.npy``.

    Args:
        config: See the options.
    """
    import numpy as np
    from rich.console import Console
    from safetensors.torch import save_file

    from potstill.core import Engine, atomic
    from potstill.core.command import config as configs
    from potstill.graph.data import load
    from potstill.graph.training import teacher_logits, train_teacher

    configs.record(config, config.out, ignore=("out", "device", "download"))
    data = load(config.dataset, seed=config.seed, download=config.download)
    with Engine(device=config.device) as engine:
        teacher = train_teacher(
            data,
            config.recipe(),
            seed=config.seed,
            engine=engine,
            progress=f"{config.teacher} teacher",
            run=config.out / "run",
        )
    with atomic(config.out / "logits.npy") as temporary:
        np.save(temporary, teacher_logits(teacher.model, data).numpy())
    with atomic(config.out / "teacher.safetensors") as temporary:
        weights = teacher.model.state_dict()
        save_file({k: v.contiguous() for k, v in weights.items()}, temporary)
    scores = ", ".join(f"{name} {100 * value:.1f} %" for name, value in teacher.accuracy.items())
    Console().print(f"{config.teacher} on {config.dataset}: {scores}; in {config.out}")


@app.command
def distill(config: Annotated[DistillConfig, Flat] = DistillConfig()) -> None:  # noqa: B008
    """Train a GNN, distil it into MLPs, and compare accuracy, size and latency.

    The default takes a minute: scikit-learn's digits, five seeds, no network and no files.

    Args:
        config: See the options.
    """
    from rich.console import Console

    from potstill.core import Engine
    from potstill.core.command import config as configs
    from potstill.graph.comparison import compare, save_page
    from potstill.graph.data import load

    console = Console()
    configs.record(config, config.out, ignore=("out", "device", "download"))
    with Engine(device=config.device) as engine:
        comparison = compare(
            lambda seed: load(config.dataset, seed=seed, download=config.download),
            config.recipe(),
            config.methods,
            range(config.seed, config.seed + config.seeds),
            hold_out_rate=config.hold_out,
            logits=config.logits,
            kind=config.kind,
            engine=engine,
            progress=lambda label: label,
            done=console.print,
        )
    title = f"{config.dataset}: {config.teacher} to MLP"
    report = save_page(comparison, title, config.out)
    report.show(console)
    console.print(f"page: {config.out / 'index.html'}, student: {config.out / 'student'}")


@app.command
def predict(
    student: Path, features: Path, /, *, out: Path | None = None, batch_size: int | None = None
) -> None:
    """Predict classes of nodes from their features alone; no graph is read.

    Args:
        student: Folder of a saved student.
        features: Features [N F]: ``.npy`` (memory-mapped), or ``.npz`` of a scipy sparse matrix.
        out: Where the classes [N] go, ``.npy``; shown when left out.
        batch_size: Nodes at a time.
    """
    import numpy as np
    from rich.console import Console

    from potstill.graph.models import MLPStudent

    model = MLPStudent.from_pretrained(student)
    classes = model.predict(_features(features), batch_size).numpy()
    if out is None:
        Console().print(np.array2string(classes, threshold=1000))
        return
    from potstill.core import atomic

    with atomic(out.with_suffix(".npy")) as temporary:
        np.save(temporary, classes)


@app.command
def diagnose(config: Annotated[DiagnoseConfig, Flat] = DiagnoseConfig()) -> None:  # noqa: B008
    """Show what students take over from their teacher while they train, and what they lose.

    Args:
        config: See the options.
    """
    from rich.console import Console

    from potstill.core import Engine
    from potstill.core.command import config as configs
    from potstill.graph import diagnostics
    from potstill.graph.data import load

    configs.record(config, config.out, ignore=("out", "device", "download"))
    data = load(config.dataset, seed=config.seed, download=config.download)
    with Engine(device=config.device) as engine:
        found = diagnostics.diagnose(
            data,
            config.recipe(),
            config.methods,
            seed=config.seed,
            every=config.every,
            engine=engine,
            progress=lambda label: label,
        )
    title = f"{config.dataset}: what students of a {config.teacher} learn"
    found.save(config.out, title).show(Console())
    Console().print(f"page: {config.out / 'index.html'}")


@app.command
def bench(*names: str, check: bool = False, quick: bool = False) -> int:
    """Run the benchmarks of this domain, in a clone of the repository.

    Args:
        names: Which; all when none.
        check: Compare with the declared targets; exit code 1 when one is missed.
        quick: A smoke run.
    """
    from potstill.core.command import main

    return main(["bench", "graph", *names, *["--check"] * check, *["--quick"] * quick])


def _features(path: Path) -> Any:
    import numpy as np
    import scipy.sparse as sp

    if path.suffix not in (".npy", ".npz") or not path.is_file():
        raise ConfigError(
            f"predict: features must be an existing .npy or .npz file, got {path}; "
            "numpy.save and scipy.sparse.save_npz write them"
        )
    if path.suffix == ".npz":
        return sp.load_npz(path)
    return np.load(path, mmap_mode="c", allow_pickle=False)
