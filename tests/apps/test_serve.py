"""The demo server answers for nodes of the graph, for new nodes, and for wrong questions."""

import importlib.util
import json
import urllib.error
import urllib.request
from http.server import ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from potstill.graph.training import Recipe

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
    with ThreadingHTTPServer(("127.0.0.1", 0), serve.handler(service)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def get(url, data=None):
    with urllib.request.urlopen(url, data, timeout=30) as answer:
        return json.load(answer)


def test_both_models_answer(address):
    answer = get(f"{address}/node?id=7")
    assert answer["node"] == 7
    assert len(answer["picture"]) == 64
    for name in ("gnn", "student"):
        assert answer[name]["ms"] > 0
        assert 0 <= answer[name]["class"] < 10
    body = json.dumps({"x": [answer["picture"]]}).encode()
    assert get(f"{address}/predict", body)["classes"] == [answer["student"]["class"]]


def test_the_page_needs_nothing_else(address):
    with urllib.request.urlopen(address, timeout=30) as answer:
        page = answer.read().decode()
    assert "One node, two models" in page
    assert "http://" not in page
    assert "https://" not in page


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/node?id=5000", None, r"node must be in [0, 1797), got 5000"),
        ("/predict", {"x": [[1.0, 2.0]]}, r"x must be [N, 64]"),
        ("/predict", {"y": []}, "x"),
        ("/nowhere", None, "no such page"),
    ],
)
def test_wrong_questions_are_answered_with_an_error(address, path, body, message):
    data = None if body is None else json.dumps(body).encode()
    with pytest.raises(urllib.error.HTTPError) as error:
        get(address + path, data)
    with error.value as answer:
        assert message in json.load(answer)["error"]
