"""``potstill graph``: train, distill, predict, diagnose.

Only what the command line needs is imported here; torch comes with the command that runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from potstill.core import ConfigError, atomic, reading
from potstill.core.command import say, verb
from potstill.graph.config import DiagnoseConfig, DistillConfig, TrainConfig

app = App(name="graph", help="Distil graph neural networks into networks that need no graph.")

verb(app, "train", "potstill.graph.jobs:Train", TrainConfig)
verb(app, "distill", "potstill.graph.jobs:Distill", DistillConfig)
verb(app, "diagnose", "potstill.graph.jobs:Diagnose", DiagnoseConfig)


@app.command
def predict(
    student: Path,
    features: Path,
    /,
    *,
    out: Annotated[Path | None, Parameter(alias="-o")] = None,
    batch_size: Annotated[int | None, Parameter(alias="--batch")] = None,
) -> None:
    """Predict classes of nodes from their features alone; no graph is read.

    Args:
        student: Folder of a saved student.
        features: Features [N F]: ``.npy`` (memory-mapped), or ``.npz`` of a scipy sparse matrix.
        out: File for the classes [N], ``.npy``; they are shown when it is left out.
        batch_size: Nodes at a time.
    """
    import numpy as np

    from potstill.graph import MLPStudent

    model = MLPStudent.from_pretrained(student)
    classes = model.predict(_features(features), batch_size).numpy()
    if out is None:
        say(np.array2string(classes, threshold=1000))
        return
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
    with reading(path, "features saved by numpy.save or scipy.sparse.save_npz"):
        if path.suffix == ".npz":
            return sp.load_npz(path)
        return np.load(path, mmap_mode="c", allow_pickle=False)
