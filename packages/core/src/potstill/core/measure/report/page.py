"""One self-contained HTML page: no network, light and dark, phone and desktop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Section", "page", "table_html"]

# Nothing is fetched, whatever a fragment says: the page is as good in ten years as today.
_POLICY = (
    "default-src 'none'; img-src data:; media-src data:; font-src data:; "
    "style-src 'unsafe-inline'; script-src 'unsafe-inline'"
)

_STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --soft: #59636e; --line: #d1d9e0;
  --paper: #ffffff; --shade: #f6f8fa; --accent: #0969da; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9198a1; --line: #3d444d;
  --paper: #0d1117; --shade: #151b23; --accent: #4493f8; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); line-height: 1.55;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .5rem; text-wrap: balance; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .75rem; padding-bottom: .3rem;
  border-bottom: 1px solid var(--line); }
p { max-width: 44rem; margin: .6rem 0; }
.summary { color: var(--soft); font-size: 1.1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .45rem .9rem .45rem 0; text-align: left; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th { color: var(--soft); font-weight: 600; font-size: .875rem; vertical-align: bottom; }
td.number, th.number { text-align: right; padding-left: .9rem; padding-right: 0; }
td.number + td:not(.number), th.number + th:not(.number) { padding-left: .9rem; }
td.best { font-weight: 700; }
tr.published td { color: var(--soft); font-style: italic; }
figure { margin: 1rem 0; }
figure svg { display: block; width: 100%; max-width: 46rem; height: auto; }
figure svg text { font-family: inherit !important; }
figcaption { color: var(--soft); font-size: .9rem; margin-top: .4rem; }
.paper { background: #fff; color: #1f2328; padding: .5rem; border-radius: 8px; max-width: 47rem; }
.grid { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); }
.grid figure { margin: 0; }
.grid img { display: block; width: 100%; height: auto; border-radius: 6px; }
img.pixels { image-rendering: pixelated; }
footer { margin-top: 3rem; padding-top: 1rem; border-top: 1px solid var(--line);
  color: var(--soft); font-size: .85rem; }
footer dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: 0; }
footer dt { font-weight: 600; } footer dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 36rem) { main { padding-top: 1.25rem; } h1 { font-size: 1.5rem; }
  th, td { font-size: .875rem; padding-right: .6rem; } td.number, th.number { padding-left: .6rem; }
  td:first-child { white-space: normal; } }
@media print { main { max-width: none; } }
"""


@dataclass(frozen=True)
class Section:
    """A part of a page: a heading, which may be empty, and an HTML fragment."""

    title: str
    html: str


def page(
    title: str,
    sections: Sequence[Section],
    *,
    summary: str = "",
    provenance: Mapping[str, str] | None = None,
) -> str:
    """Put sections together to a page.

    Args:
        title: Heading and title.
        sections: Their fragments go in as they are; styles and scripts must be inline, and a
            policy in the page keeps it from loading anything.
        summary: A sentence below the heading.
        provenance: Shown at the end; empty values are left out.
    """
    parts = []
    for section in sections:
        heading = f"<h2>{escape(section.title)}</h2>\n" if section.title else ""
        parts.append(f"<section>\n{heading}{section.html}\n</section>")
    facts = "".join(
        f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>"
        for key, value in (provenance or {}).items()
        if value
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<header>
<h1>{escape(title)}</h1>
{f'<p class="summary">{escape(summary)}</p>' if summary else ""}
</header>
{"".join(part + chr(10) for part in parts)}{f"<footer><dl>{facts}</dl></footer>" if facts else ""}
</main>
</body>
</html>
"""


def table_html(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numeric: Sequence[bool] | None = None,
    best: frozenset[tuple[int, int]] = frozenset(),
    published: frozenset[int] = frozenset(),
) -> str:
    """A table that scrolls sideways on narrow screens.

    Args:
        header: Column titles.
        rows: Cells as text.
        numeric: Which columns are right-aligned; none when None.
        best: (row, column) of cells to set in bold.
        published: Rows that are someone else's figures.
    """
    right = [' class="number"' if flag else "" for flag in numeric or [False] * len(header)]
    head = "".join(f"<th{c}>{escape(h)}</th>" for h, c in zip(header, right, strict=True))
    body = []
    for i, row in enumerate(rows):
        cells = []
        for j, cell in enumerate(row):
            names = [n for n, on in (("number", right[j]), ("best", (i, j) in best)) if on]
            attribute = f' class="{" ".join(names)}"' if names else ""
            cells.append(f"<td{attribute}>{escape(cell)}</td>")
        mark = ' class="published"' if i in published else ""
        body.append(f"<tr{mark}>{''.join(cells)}</tr>")
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>'
        + "\n".join(body)
        + "</tbody></table></div>"
    )
