"""Answers for rows of features: names, labels and values, and what is refused."""

import json

import pytest
import torch

from potstill.core.serve import Refused
from potstill.graph import MLPStudent
from potstill.graph.serving import answer


def asked(student, rows):
    return answer(student.eval(), json.dumps({"x": rows}).encode())


def test_answers_have_names_and_probabilities():
    student = MLPStudent(2, 4, 2, 3, classes=("a", "b", "c"))
    found = asked(student, [[0, 1], [2, 3]])
    x = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
    assert found["answers"] == ["abc"[k] for k in student.predict(x)]
    assert found["classes"] == ("a", "b", "c")
    torch.testing.assert_close(torch.tensor(found["probabilities"]), student.predict_proba(x))
    several = MLPStudent(2, 4, 2, 3, task="labels")
    expected = [[str(k) for k in range(3) if row[k]] for row in several.eval().predict(x)]
    assert asked(several, x.tolist())["answers"] == expected
    values = MLPStudent(2, 4, 2, 1, task="values")
    assert asked(values, x.tolist()) == {"answers": values.predict(x).tolist()}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"[]", "the body must be"),
        (b'{"x": [["a"]]}', "x must be rows of numbers"),
        (b'{"x": [[1, 1e99]]}', "x must be"),
        (b'{"x": [[1, 2, 3]]}', r"x must be \[N, 2\]"),
        (b'{"x": []}', r"x must be \[N, 2\]"),
    ],
)
def test_other_bodies_are_refused(body, message):
    with pytest.raises((Refused, ValueError), match=message):
        answer(MLPStudent(2, 4, 2, 3).eval(), body)


def test_missing_numbers_are_filled_where_the_student_knows_how():
    student = MLPStudent(2, 4, 2, 3, nan="fill", fill=(5.0, 6.0))
    body = b'{"x": [[null, 1]]}'
    found = answer(student.eval(), body)
    assert found["answers"] == asked(student, [[5.0, 1.0]])["answers"]
    with pytest.raises(Refused, match="finite"):
        answer(MLPStudent(2, 4, 2, 3), body)
