"""The proof on CUDA, without CUDA: it reaches every test, loses one part at a time, and goes on."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "tools"))
import prove_cuda as proof


@pytest.fixture
def prove(monkeypatch, tmp_path):
    """Run the proof over parts that are programs; its exit code and its page."""

    def run(minutes="1", **programs):
        made = [proof.Part(n, [], ["-c", program], 6) for n, program in programs.items()]
        monkeypatch.setattr(proof, "parts", lambda out: made)
        command = ["prove_cuda.py", "--out", str(tmp_path), "--dry", "--minutes", minutes]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as end:
            proof.main()
        return end.value.code, (tmp_path / "page.md").read_text()

    return run


def test_every_test_marked_cuda_is_reached():
    reached = {
        name for part in proof.parts(Path("out")) for name in part.command if name.endswith(".py")
    }
    marked = {
        path.relative_to(proof.ROOT).as_posix()
        for path in (proof.ROOT / "tests").rglob("test_*.py")
        if re.search(r"^@(requires_cuda|pytest\.mark\.cuda)$", path.read_text(), re.MULTILINE)
    }
    assert marked <= reached
    assert len(marked) > 4


def test_the_dry_run_does_every_part(tmp_path):
    command = [sys.executable, "tools/prove_cuda.py", "--out", str(tmp_path), "--dry"]
    done = subprocess.run(command, cwd=proof.ROOT, capture_output=True, text=True, check=False)
    page = (tmp_path / "page.md").read_text()
    assert done.returncode == 0, page[:6000] + done.stderr[-3000:]
    assert "## Failed: 0" in page
    assert "## Not run: 0" in page
    demos = [path.parent.name for path in proof.ROOT.glob("apps/*/cuda.py")]
    assert len(demos) > 6
    for domain in demos:
        html = (tmp_path / "demos" / domain / "index.html").read_text()
        assert "no GPU: the CPU" in html
        assert "x the first" in html
        assert re.search(r"<svg|data:image/png", html)


def test_a_part_that_fails_loses_itself_alone_and_is_run_again(prove, tmp_path):
    code, page = prove(good="print('3 passed')", crash="import os; os.abort()", bad="1 / 0")
    assert code == 1
    assert page.index("crash: failed") < page.index("good: passed")
    assert "ZeroDivisionError" in page
    assert "3 passed" in page
    code, page = prove(good="print('again')", crash="pass", bad="pass")
    assert code == 0
    assert "again" not in page, "what passed is not run again"
    rows = [json.loads(line) for line in (tmp_path / "parts.jsonl").read_text().splitlines()]
    assert [row["part"] for row in rows] == ["good", "crash", "bad", "crash", "bad"]
    assert all(row["torch"] and row["dry"] for row in rows)


def test_a_part_that_hangs_is_stopped_and_what_had_no_time_is_named(prove):
    code, page = prove(
        minutes="0.1",
        slow="print(1, flush=True); import time; time.sleep(60)",
        beside="import time; time.sleep(60)",
        late="pass",
    )
    assert code == 1
    assert "slow: no answer within" in page
    assert "## Not run: 1\n\n- late" in page


def test_planted_faults_are_found():
    """A wrong stride, a missing mask and an unscaled loss; and nothing where nothing is wrong."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.devices.faults"]
    done = subprocess.run(command, cwd=proof.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert {name for name, seen in found.items() if seen == name.startswith("nothing")} == set()
    assert len(found) == 6
