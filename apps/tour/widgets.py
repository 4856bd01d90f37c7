"""The moving parts of the page: HTML fragments that need nothing but the page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from potstill.core.measure.report import Draw, data_uri, draw_svg, figure_svg, number, table_html

__all__ = ["assets", "film", "paper", "paragraph", "plots", "sheet", "strip", "table", "wipe"]

HERE = Path(__file__).parent


def assets() -> str:
    """Style and script of all fragments, once a page."""
    style, script = ((HERE / name).read_text("utf-8") for name in ("widgets.css", "widgets.js"))
    return f"<style>\n{style}</style>\n<script>\n{script}</script>"


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{escape(text)}</p>"


def wipe(before: Any, after: Any, names: tuple[str, str], caption: str) -> str:
    """Two pictures of one size on top of each other, and a slider that uncovers the second.

    Args:
        before: On the left of the border; as `data_uri` takes pictures.
        after: On the right.
        names: Shown in the corners.
        caption: Below.
    """
    left, right = map(escape, names)
    return f"""<figure class="wipe">
<div class="view"><img src="{data_uri(after)}" alt="{right}">
<img class="before" src="{data_uri(before)}" alt="{left}"><i></i><b>{left}</b><b>{right}</b></div>
<input type="range" min="0" max="100" value="50" step="0.1" aria-label="{left} or {right}">
<figcaption>{escape(caption)}</figcaption></figure>"""


def film(
    panes: Mapping[str, Sequence[Any]],
    captions: Sequence[str],
    *,
    slider: str,
    caption: str,
    start: int = 0,
    pixels: bool = False,
    plays: bool = False,
) -> str:
    """Pictures side by side that change together with one slider.

    Args:
        panes: For each name its pictures ``[H W 3]``, bytes or in [0, 1], one a position.
        captions: What each position is.
        slider: What the slider changes.
        caption: Below.
        start: First position.
        pixels: Show enlarged pixels as squares.
        plays: Offer a button that moves the slider.
    """
    shown = "".join(
        f'<figure><div class="pane"><img{" class=pixels" if pixels else ""} '
        f'src="{data_uri(np.concatenate([_bytes(picture) for picture in pictures], axis=1))}" '
        f'alt="{escape(name)}"></div><figcaption>{escape(name)}</figcaption></figure>'
        for name, pictures in panes.items()
    )
    button = '<button type="button" aria-label="play">&#9654;</button>' if plays else ""
    style = f"--count: {len(captions)}; --at: {start}; --panes: {len(panes)}"
    return f"""<figure class="film" style="{style}"
 data-captions="{escape(json.dumps(list(captions)))}">
<div class="panes{" many" * (len(panes) > 3)}">{shown}</div>
<div class="bar">{button}<input type="range" min="0" max="{len(captions) - 1}" value="{start}"
 aria-label="{escape(slider)}"><output>{escape(captions[start])}</output></div>
<figcaption>{escape(caption)}</figcaption></figure>"""


def plots(drawn: Mapping[str, Draw]) -> str:
    """Plots in the colours of the page, side by side where there is room.

    Args:
        drawn: By caption; small, so that their text can be read on a phone.
    """
    figures = "".join(_figure(draw_svg(draw, (4.8, 3.2)), name) for name, draw in drawn.items())
    return f'<div class="plots">{figures}</div>'


def paper(figure: Figure, caption: str) -> str:
    """A finished matplotlib figure, on white paper in either colour scheme."""
    return _figure(f'<div class="paper">{figure_svg(figure)}</div>', caption)


def table(header: Sequence[str], rows: Sequence[Sequence[str | float]]) -> str:
    """A table whose first column is text and whose others are numbers."""
    cells = [[c if isinstance(c, str) else number(c) for c in row] for row in rows]
    return table_html(header, cells, numeric=[i > 0 for i in range(len(header))])


def strip(facts: Mapping[str, str]) -> str:
    """The figures to remember, large."""
    cells = "".join(
        f"<div><strong>{escape(value)}</strong><span>{escape(name)}</span></div>"
        for name, value in facts.items()
    )
    return f'<div class="facts">{cells}</div>'


def sheet(pictures: Any, columns: int, gap: int = 1) -> NDArray[np.uint8]:
    """Pictures of one size in rows, with white between them.

    Args:
        pictures: [N H W 3], bytes or floats in [0, 1].
        columns: Pictures a row.
        gap: Pixels between them.
    """
    array = _bytes(np.asarray(pictures))
    count, height, width, _ = array.shape
    rows = -(-count // columns)
    cell = (height + gap, width + gap)
    out = np.full((rows * cell[0] - gap, columns * cell[1] - gap, 3), 255, np.uint8)
    for index, picture in enumerate(array):
        top, left = index // columns * cell[0], index % columns * cell[1]
        out[top : top + height, left : left + width] = picture
    return out


def _bytes(picture: Any) -> NDArray[np.uint8]:
    array = np.asarray(picture)
    if array.dtype == np.uint8:
        return array
    return np.asarray((array.clip(0, 1) * 255).round(), dtype=np.uint8)


def _figure(content: str, caption: str) -> str:
    labelled = content.replace("<svg", f'<svg role="img" aria-label="{escape(caption)}"', 1)
    return f"<figure>{labelled}<figcaption>{escape(caption)}</figcaption></figure>"
