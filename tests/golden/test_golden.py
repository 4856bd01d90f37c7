"""The five programs: they learn, their distillers are short, and their curves do not move.

`hatch run golden` writes the curves anew; the difference is what a reviewer looks at.
"""

import ast
import importlib.util
import io
import tokenize
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
spec = importlib.util.spec_from_file_location("golden_programs", FOLDER / "programs.py")
programs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(programs)

names = pytest.mark.parametrize("name", programs.PROGRAMS)


def read(path):
    """One line a step: ``step=0 loss=1.25 task=0.5``."""
    lines = path.read_text().splitlines()
    return [{k: float(v) for k, v in (part.split("=") for part in line.split())} for line in lines]


@names
def test_the_curve_is_the_golden_one(name):
    curve, golden = programs.curve(name), read(FOLDER / f"{name}.txt")
    assert len(curve) == len(golden) == programs.STEPS
    for row, expected in zip(curve, golden, strict=True):
        assert row == pytest.approx(expected, rel=1e-7, abs=1e-12)


@names
def test_the_loss_falls(name):
    curve = programs.curve(name)
    shared = set(curve[0]) & set(curve[-1]) - {"step"}
    first = sum(curve[0][term] for term in shared - {"loss"})
    last = sum(curve[-1][term] for term in shared - {"loss"})
    assert last < first


@names
def test_no_key_of_the_teacher_is_saved_and_projectors_are(name):
    distiller, _ = programs.build(name)
    keys = set(distiller.state_dict())
    assert not any("teacher" in key for key in keys)
    assert ("objective.criteria.feature.projector.weight" in keys) == (name == "mae")


def test_distillers_are_at_most_a_dozen_lines():
    source = (FOLDER / "programs.py").read_text()
    distillers = [
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef) and ast.unparse(node.bases[0]) == "Distiller"
    ]
    assert len(distillers) == len(programs.PROGRAMS)
    for node in distillers:
        count = logical_lines(ast.get_source_segment(source, node))
        assert count <= 12, f"{node.name} has {count} lines"


def logical_lines(source):
    """Lines as written by hand: what the formatter breaks over several counts once."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return sum(token.type == tokenize.NEWLINE for token in tokens)
