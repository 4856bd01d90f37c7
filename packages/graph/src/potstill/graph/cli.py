"""``potstill graph``: train, distill, predict, diagnose, bench.

Only what the command line needs is imported here; torch comes with the command that runs.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from potstill.core.errors import ConfigError
from potstill.graph.config import DistillConfig

app = App(name="graph", help="Distil graph neural networks into networks that need no graph.")

Flat = Parameter(name="*")


@app.command
def distill(config: Annotated[DistillConfig, Flat] = DistillConfig()) -> None:  # noqa: B008
    """Train a GNN, distil it into MLPs, and compare accuracy, size and latency.

    The default takes a minute: scikit-learn's digits, five seeds, no network and no files.

    Args:
        config: See the options.
    """
    from rich.console import Console

    from potstill.core import config as configs

    _quiet()
    from potstill.core import Engine
    from potstill.graph.comparison import compare, save_page
    from potstill.graph.data import load

    console = Console()
    configs.record(config, config.out, ignore=("out", "device", "download"))
    seeds = range(config.seed, config.seed + config.seeds)
    with Engine(device=config.device) as engine:
        comparison = compare(
            lambda seed: load(config.dataset, seed=seed, download=config.download),
            config.recipe(),
            config.methods,
            seeds,
            hold_out_rate=config.hold_out,
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

    _quiet()
    from potstill.graph.models import MLPStudent

    model = MLPStudent.from_pretrained(student)
    classes = model.predict(_features(features), batch_size).numpy()
    if out is None:
        Console().print(np.array2string(classes, threshold=1000))
        return
    from potstill.core.files import atomic

    with atomic(out.with_suffix(".npy")) as temporary:
        np.save(temporary, classes)


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


def _quiet() -> None:
    """PyG uses parts of torch that warn about their age whenever it is imported."""
    warnings.filterwarnings("ignore", message=".*torch.jit.script.* is deprecated")
