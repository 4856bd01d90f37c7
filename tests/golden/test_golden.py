"""The distillers that ship: their curves do not move, they are short, and none is forgotten.

`hatch run golden` writes the curves anew; the difference is what a reviewer looks at.
"""

import ast
import importlib.util
import io
import statistics
import tokenize
from functools import cache
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent
SOURCES = sorted((FOLDER.parents[1] / "packages").glob("*/src/**/*.py"))
LONGEST, MEDIAN = 40, 15  # logical lines of a distiller, its docstrings left out

# Another processor adds up in another order. Between AVX2 and no vector instructions, one thread
# and two, and native kernels or none, terms in float32 moved by 1e-6, norms of gradients by 6e-5
# (a sign flips where an L1 loss has a kink), and everything in float64 by 1e-12.
TERMS = {torch.float32: 1e-4, torch.float64: 1e-7}
NORMS = {torch.float32: 1e-3, torch.float64: 1e-7}

spec = importlib.util.spec_from_file_location("golden_programs", FOLDER / "programs.py")
programs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(programs)


def read(path):
    """One line a step: ``step=0 loss=1.25 task=0.5``."""
    lines = path.read_text().splitlines()
    return [{k: float(v) for k, v in (part.split("=") for part in line.split())} for line in lines]


@pytest.mark.parametrize("name", programs.PROGRAMS)
def test_the_curve_is_the_golden_one_and_no_teacher_is_saved(name):
    _, distiller, dtype = programs.PROGRAMS[name]
    curve, keys = programs.observe(name)
    golden = read(FOLDER / f"{name}.txt")
    assert len(curve) == len(golden) == programs.STEPS
    for row, expected in zip(curve, golden, strict=True):
        assert row.pop("grad_norm", 0) == pytest.approx(
            expected.pop("grad_norm", 0), rel=NORMS[dtype]
        )
        assert row == pytest.approx(expected, rel=TERMS[dtype], abs=1e-12)
    assert set(keys) == {distiller}
    assert not [key for key in keys[distiller] if key.startswith(("teacher", "sources"))]


@cache
def shipped():
    """Source of every subclass of `Distiller` in the packages, and its bases, by name."""
    found = {"Distiller": ("", set())}
    classes = []
    for path in SOURCES:
        source = path.read_text()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ClassDef):
                bases = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
                classes.append((node.name, ast.get_source_segment(source, node), bases))
    while new := {c[0]: c[1:] for c in classes if c[0] not in found and c[2] & found.keys()}:
        found |= new
    del found["Distiller"]
    return found


def test_every_distiller_has_a_program():
    distillers = shipped()
    inherited = set().union(*(bases for _, bases in distillers.values()))
    # Others inherit from public ones that are for use too; a private base is for nothing else.
    used = {name for name in distillers if name not in inherited or not name.startswith("_")}
    assert {program.distiller for program in programs.PROGRAMS.values()} == used


def test_distillers_are_short():
    counts = {name: logical_lines(source) for name, (source, _) in shipped().items()}
    ordered = sorted(counts.items(), key=lambda pair: -pair[1])
    report = "\n".join(f"{count:4} {name}" for name, count in ordered)
    print(report)
    median = statistics.median(counts.values())
    assert max(counts.values()) <= LONGEST and median <= MEDIAN, f"median {median:g}\n{report}"  # noqa: PT018


def logical_lines(source):
    """Lines as written by hand: what the formatter breaks over several counts once."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    count = sum(token.type == tokenize.NEWLINE for token in tokens)
    scopes = ast.ClassDef, ast.FunctionDef
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, scopes)]
    return count - sum(ast.get_docstring(node) is not None for node in nodes)
