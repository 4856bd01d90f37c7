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

from potstill.core.report.image import data_uri
from potstill.core.report.page import Section, page
from potstill.core.report.rows import Column, Report
from potstill.core.report.table import csv_text, markdown, number

__all__ = ["Column", "Report", "Section", "csv_text", "data_uri", "markdown", "number", "page"]
