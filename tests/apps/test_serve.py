"""The demo server answers for nodes of the graph, for new nodes, and for wrong questions."""

import importlib.util
import json
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from potstill.core.serve import Server, Work
from potstill.graph.training import Recipe

pytest.importorskip("starlette")

FILE = Path(__file__).parents[2] / "apps" / "graph" / "serve.py"


@pytest.fixture(scope="module")
def serve():
    spec = importlib.util.spec_from_file_location("serve_graph", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.recipe_for = lambda dataset, teacher: Recipe(epochs=3, hidden=8)
    return module


@pytest.fixture(scope="module")
def address(serve):
    service = serve.Service("digits", "GCN", 0)
    work = Work()
    with Server(limit=serve.LARGEST).background(serve.routes(service, work), work) as address:
        yield address


def get(url, data=None):
    with urllib.request.urlopen(url, data, timeout=30) as answer:
        return json.load(answer)


def test_both_models_answer(address):
    answer = get(f"{address}/node?id=7")
    assert answer["node"] == 7
    assert len(answer["picture"]) == 64
    assert answer["alone"] in (True, False)
    for name in ("gnn", "student"):
        assert answer[name]["ms"] > 0
        assert 0 <= answer[name]["class"] < 10
    body = json.dumps({"x": [answer["picture"]]}).encode()
    assert get(f"{address}/predict", body)["classes"] == [answer["student"]["class"]]


def test_the_cascade_says_how_often_the_student_is_enough(serve):
    """With weights that agree everywhere, the student answers nearly all nodes; else none."""
    service = serve.Service("digits", "GCN", 0)
    _threshold, alone = service._calibrated()
    assert 0 <= alone <= 1
    assert f"answers {100 * alone:.0f} % of the nodes alone" in service.text
    serve.teacher_logits = lambda model, data: -service.student(data.x)
    assert service._calibrated() == (float("inf"), 0.0)
    serve.teacher_logits = lambda model, data: service.student(data.x)
    assert service._calibrated()[1] > 0.5


def test_the_page_needs_nothing_else(address):
    with urllib.request.urlopen(address, timeout=30) as answer:
        page = answer.read().decode()
    assert "One node, two models" in page
    assert "http://" not in page
    assert "https://" not in page


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/node?id=5000", None, 400, "node must be in [0, 1797), got 5000"),
        ("/node?id=-1", None, 400, "node must be in [0, 1797), got -1"),
        ("/node?id=nan", None, 400, "id must be the number of a node, got 'nan'"),
        ("/node?id=1e400", None, 400, "id must be the number of a node"),
        ("/node?id=" + "9" * 5000, None, 400, "id must be the number of a node"),
        ("/predict", '{"x": [[1.0, 2.0]]}', 400, "x must be [N, 64]"),
        ("/predict", '{"y": []}', 400, 'the body must be {"x":'),
        ("/predict", "[1, 2]", 400, 'the body must be {"x":'),
        ("/predict", "no JSON", 400, "the body must be JSON"),
        ("/predict", '{"x": [[NaN]]}', 400, "numbers must be finite, got NaN"),
        ("/predict", '{"x": [[1e999]]}', 400, "x must be finite"),
        ("/predict", '{"x": [[1e300]]}', 400, "x must be finite"),
        ("/predict", f'{{"x": [[{"9" * 400}]]}}', 400, "x must be"),
        ("/predict", '{"x": [["a"]]}', 400, "x must be rows of numbers"),
        ("/predict", '{"x": [[1], [1, 2]]}', 400, "x must be rows of numbers"),
        ("/predict", '{"x": ' + "[" * 500 + "]" * 500 + "}", 400, "x must be"),
        ("/predict", " " * (2**24 + 1), 413, "a body may have 16777216 bytes"),
        ("/nowhere", None, 404, "no such page"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_wrong_questions_are_answered_with_an_error(address, path, body, status, message):
    data = None if body is None else body.encode()
    with pytest.raises(urllib.error.HTTPError) as error:
        get(address + path, data)
    with error.value as answer:
        assert answer.status == status
        assert message in json.load(answer)["error"]


def test_in_a_browser_both_models_are_asked_and_drawn(address, browser):
    browser.visit(address, 800, 900)
    end = time.monotonic() + 30
    while "medians" not in browser.script("return document.getElementById('sum').innerText"):
        assert time.monotonic() < end
        time.sleep(0.05)
    assert "digits: GCN" in browser.script("return document.getElementById('about').innerText")
    assert browser.script("return document.getElementById('b-gnn').style.width") != ""
    assert not browser.script("return document.getElementById('picture').hidden")
    assert all("favicon.ico" in error for error in browser.errors())  # its policy allows it all
