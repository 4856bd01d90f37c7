"""The worked program of speculative sampling: exact where it says so."""

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

from potstill.core.criteria import acceptance_rate, tvd

PROGRAM = Path(__file__).parents[2] / "docs" / "examples" / "speculative_digits.py"


@pytest.fixture(scope="module")
def program() -> dict[str, Any]:
    return runpy.run_path(str(PROGRAM))


@pytest.fixture(scope="module")
def target(program: dict[str, Any]) -> torch.nn.Module:
    made: torch.nn.Module = program["Target"](*program["tokens"]())
    return made


def test_exact_sampling_passes_and_others_do_not(
    program: dict[str, Any], target: torch.nn.Module
) -> None:
    draft = program["Draft"]()
    assert program["p_value"](target, draft, "exact") > 0.01
    assert program["p_value"](target, draft, "lenient") < 1e-6
    assert program["p_value"](target, draft, "always") < 1e-6
    rng = torch.Generator().manual_seed(0)
    same, per_call = program["speculate"](target, target, torch.arange(10), rng)
    assert int(same.max()) < 32  # p = q: all drafts accepted, 5 tokens a call, the last block cut
    assert per_call == 16 / 4


def test_total_variation_raises_the_acceptance(
    program: dict[str, Any], target: torch.nn.Module
) -> None:
    rng = torch.Generator().manual_seed(0)
    contexts, judged = (program["contexts_of"](target, 2000, rng) for _ in range(2))
    start = program["Draft"]()
    better = program["align"](target, start, tvd, [contexts], 30)
    before, after = (float(acceptance_rate(d(judged), target(judged)).mean())
                     for d in (start, better))  # fmt: skip
    assert after > before + 0.1
