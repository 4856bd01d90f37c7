"""Pictures inside a page: data URIs, and plots that follow the reader's colours."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill.core.errors import DataError, ShapeError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Draw", "data_uri", "draw_png", "draw_svg", "figure_svg"]

Draw = Callable[["Axes"], None]

_INK = "#010203"  # stands for the colour of text until it becomes currentColor
_PALETTE = ["#3b82f6", "#f97316", "#10b981", "#a855f7", "#ef4444", "#eab308"]  # on white and black
_TYPES = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".gif": "gif", ".webp": "webp"}


def data_uri(image: Any) -> str:
    """A picture as a ``data:`` address, for the ``src`` of an ``<img>``.

    Args:
        image: Path of a PNG, JPEG, GIF or WebP file; bytes of a PNG; or an array or tensor
            ``[H W]``, ``[H W 3|4]`` or ``[3|4 H W]``, bytes or floats in [0, 1] (clipped).

    Raises:
        DataError: The file is missing or of another kind.
        ShapeError: The array has another shape.
    """
    kind = "png"
    if isinstance(image, str | Path):
        path = Path(image)
        kind = _TYPES.get(path.suffix.lower(), "")
        if not (kind and path.is_file()):
            raise DataError(
                f"data_uri: image must be an existing PNG, JPEG, GIF or WebP file, got {path}"
            )
        content = path.read_bytes()
    else:
        content = image if isinstance(image, bytes) else _png(image)
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _png(image: Any) -> bytes:
    import numpy as np
    from matplotlib.image import imsave

    array = np.asarray(image.detach().cpu() if hasattr(image, "detach") else image)
    if array.ndim == 3 and array.shape[-1] not in (3, 4) and array.shape[0] in (1, 3, 4):
        array = np.moveaxis(array, 0, -1)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in (3, 4))) or not array.size:
        raise ShapeError(
            f"data_uri: image must be [H W], [H W 3] or [3 H W], got {list(array.shape)}"
        )
    if array.dtype != np.uint8:
        array = (np.nan_to_num(array.astype(np.float64)).clip(0, 1) * 255).round().astype(np.uint8)
    out = io.BytesIO()
    imsave(out, array, format="png", cmap="gray", vmin=0, vmax=255)
    return out.getvalue()


def draw_svg(draw: Draw, size: tuple[float, float] = (6.4, 3.6)) -> str:
    """An inline SVG of ``draw(axes)`` whose ink is the text colour of the page, light or dark."""
    return figure_svg(_draw(draw, size, _INK)).replace(_INK, "currentColor")


def draw_png(draw: Draw, path: Path, size: tuple[float, float] = (6.4, 3.6)) -> None:
    """The same as a PNG on white, for Markdown and slides."""
    _draw(draw, size, "#1f2328").savefig(path, dpi=160, facecolor="white")


def _draw(draw: Draw, size: tuple[float, float], ink: str) -> Figure:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.rcsetup import cycler

    keys = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    style: dict[str, Any] = dict.fromkeys(keys, ink)
    style |= {
        "axes.facecolor": "none",
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.prop_cycle": cycler(color=_PALETTE),
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": ink,
        "grid.alpha": 0.12,
        "legend.frameon": False,
    }
    with matplotlib.rc_context(style):  # type: ignore[arg-type]
        figure = Figure(figsize=size, layout="constrained", facecolor="none")
        FigureCanvasAgg(figure)
        draw(figure.add_subplot())
        figure.draw_without_rendering()  # ticks take their style when they are made
        figure.set_layout_engine("none")  # it is laid out now: half of the time that a plot takes
    return figure


def figure_svg(figure: Figure) -> str:
    """A matplotlib figure as an ``<svg>`` element that scales with the page."""
    import matplotlib

    out = io.StringIO()
    # Text stays text (small, searchable); the salt makes equal figures equal bytes.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "potstill"}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, count=1, flags=re.DOTALL)
    head, _, rest = svg.partition(">")
    return re.sub(r'\s(width|height)="[^"]*"', "", head) + ">" + rest.strip()
