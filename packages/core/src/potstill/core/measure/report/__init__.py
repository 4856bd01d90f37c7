"""Reports: rows with provenance as table, CSV, plots and one self-contained page.

Example:
    >>> report = Report("Digits", columns={"accuracy": Column("%", best="max")}, seed=0)
    >>> report.add("teacher", accuracy=[92.1, 92.9])
    >>> report.add("student", accuracy=91.9)
    >>> print(report.markdown())
    | method  | accuracy [%] |
    |---------|--------------|
    | teacher | 92.50 ± 0.57 |
    | student | 91.90        |
"""

from potstill.core.measure.report.image import Draw, data_uri, draw_svg, figure_svg
from potstill.core.measure.report.page import Section, page, table_html
from potstill.core.measure.report.rows import Column, Report
from potstill.core.measure.report.table import csv_text, markdown, number, print_table

__all__ = [
    "Column",
    "Draw",
    "Report",
    "Section",
    "csv_text",
    "data_uri",
    "draw_svg",
    "figure_svg",
    "markdown",
    "number",
    "page",
    "print_table",
    "table_html",
]
