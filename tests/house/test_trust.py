"""Every long job of every package is in the table of `hatch run trust`."""

import re

import pytest
import trust
from workspace import DOMAINS, ROOT


@pytest.mark.parametrize("domain", DOMAINS)
def test_every_job_is_tried(domain: str) -> None:
    source = ROOT / "packages" / domain / "src" / "potstill" / domain / "cli.py"
    verbs = re.findall(r'^verb\(app, "([\w-]+)"', source.read_text(encoding="utf-8"), re.MULTILINE)
    tried = {job.words.split()[1] for job in trust.JOBS[domain].values()}
    assert set(verbs) == tried


def test_the_page_has_a_row_for_each_job() -> None:
    text = trust.PAGE.read_text(encoding="utf-8")
    for package, jobs in trust.JOBS.items():
        for name in jobs:
            assert f"| {package} {name} |" in text
