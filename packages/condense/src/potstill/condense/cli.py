"""``potstill condense condense | select | evaluate | preset``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from potstill.condense.config import CondenseConfig, EvaluateConfig, SelectConfig, preset
from potstill.core.command import dump, table, verb

__all__ = ["app"]

app = App(name="condense", help="Make a small training set of a large one.")
verb(app, "condense", "potstill.condense.jobs:Condense", CondenseConfig)
verb(app, "evaluate", "potstill.condense.jobs:Evaluate", EvaluateConfig)


@app.command
def select(
    data: Path,
    out: Path,
    *,
    config: Annotated[SelectConfig, Parameter(name="*")] = SelectConfig(),  # noqa: B008
) -> None:
    """Choose real images to keep, and write them as a condensed set.

    Args:
        data: Folder or .zip file with a folder for each class.
        out: Folder of the result.
        config: Rule and share.
    """
    from potstill.condense.jobs import select_images

    found = select_images(data, out, config)
    table(f"selected images in {out}", {"images": len(found), "method": config.method})


@app.command(name="preset")
def write_preset(name: str, out: Path) -> None:
    """Write published options as a configuration for ``condense --config``.

    Args:
        name: Name of the preset.
        out: File that ends in .yaml, .toml or .json.
    """
    path = dump(preset(name), out)
    table(f"preset {name}", {"file": str(path)})
