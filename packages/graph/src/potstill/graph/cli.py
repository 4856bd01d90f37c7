"""``potstill graph``: check, train, distill, evaluate, predict, export, serve, diagnose.

Only what the command line needs is imported here; torch comes with the command that runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from potstill.core.command import say, table, verb
from potstill.graph.config import DiagnoseConfig, DistillConfig, GraphConfig, TrainConfig

app = App(name="graph", help="Distil graph neural networks into networks that need no graph.")

verb(app, "train", "potstill.graph.jobs:Train", TrainConfig)
verb(app, "distill", "potstill.graph.jobs:Distill", DistillConfig)
verb(app, "diagnose", "potstill.graph.jobs:Diagnose", DiagnoseConfig)

Flat = Annotated[GraphConfig | None, Parameter(name="*")]


@app.command
def check(config: Flat = None) -> None:
    """Say what is found in a graph; nothing is trained and nothing is written.

    Args:
        config: The graph.
    """
    config = config or GraphConfig()
    from potstill.graph.data import describe
    from potstill.graph.jobs import load_graph

    table(config.dataset, describe(load_graph(config)))


@app.command
def evaluate(
    student: Path,
    config: Flat = None,
    *,
    out: Annotated[Path, Parameter(alias="-o")] = Path("runs/graph/evaluation"),
) -> None:
    """Score a saved student on the parts of a graph, and on each of its classes.

    Args:
        student: Folder of a saved student.
        config: The graph.
        out: Folder of the page.
    """
    config = config or GraphConfig()
    from potstill.graph.analysis import evaluation
    from potstill.graph.jobs import load_graph
    from potstill.graph.models import MLPStudent

    model = MLPStudent.from_pretrained(student)
    own: dict[str, Any] = (
        {"scaling": "none", "fill": model.nan == "fill"} if config.is_file() else {}
    )
    report = evaluation(model, load_graph(config, **own), f"{student.name}: {config.dataset}")
    report.save(out)
    report.show()
    say(f"page: {out / 'index.html'}")


@app.command
def predict(
    student: Path,
    features: Path,
    /,
    *,
    out: Annotated[Path | None, Parameter(alias="-o")] = None,
    batch_size: Annotated[int | None, Parameter(alias="--batch")] = None,
    probabilities: bool = False,
) -> None:
    """Predict classes of nodes from their features alone; no graph is read.

    Args:
        student: Folder of a saved student.
        features: Features [N F]: ``.npy`` (memory-mapped), ``.npz`` of a scipy sparse matrix, or
            ``.csv``, whose columns id, label and split are left out.
        out: File for what is predicted, ``.npy``, or ``.csv`` with names of classes; it is shown
            when it is left out.
        batch_size: Nodes at a time.
        probabilities: Write the probability of each class [N C] instead of the class.
    """
    import numpy as np

    from potstill.graph.models import MLPStudent, write_predictions

    model = MLPStudent.from_pretrained(student)
    x = _features(features)
    found = (model.predict_proba if probabilities else model.predict)(x, batch_size).numpy()
    if out is None:
        say(np.array2string(found, threshold=1000))
    else:
        write_predictions(model, found, out)


@app.command
def export(student: Path, /, *, out: Annotated[Path, Parameter(alias="-o")]) -> None:
    """Write a saved student as ONNX, or as a program of torch.export; it is checked first.

    Args:
        student: Folder of a saved student.
        out: File, ``.onnx`` or ``.pt2``: features [nodes, F] to logits [nodes, C].
    """
    from potstill.graph.serving import write

    say(f"{out}: differs from the student by at most {write(student, out):.1e}")


@app.command
def serve(
    student: Path, /, *, host: str = "127.0.0.1", port: int = 8765, check: bool = False
) -> None:
    """Answer requests for nodes by their features, with a page to try it.

    Args:
        student: Folder of a saved student.
        host: Name or address to be asked by.
        port: Port; 0 takes any free one.
        check: Answer one request, then end.
    """
    from potstill.graph.serving import run

    run(student, host, port, check=check)


def _features(path: Path) -> Any:
    from potstill.graph.data import read_features

    return read_features(path)
