"""A saved student in use: an address that answers for nodes by their features, and its export."""

from __future__ import annotations

import json
import math
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from potstill.core import ConfigError, to_exported, to_onnx
from potstill.core.command import say
from potstill.core.serve import Page, Refused, Server, Work, read_json
from potstill.graph.models import MLPStudent

if TYPE_CHECKING:
    from starlette.requests import Request

__all__ = ["answer", "routes", "run", "write"]

_LARGEST = 2**24  # bytes of the rows of a request
_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>student</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
 :root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
 body { max-width: 40rem; margin: 2rem auto; padding: 0 1rem; }
 textarea { width: 100%; height: 8rem; box-sizing: border-box; font: inherit; }
 button { font: inherit; padding: .4rem 1.2rem; }
 .bar { height: .5rem; border-radius: .25rem; background: #3b82f6; }
</style>
<h1>One node, no graph</h1><p id="about"></p>
<textarea id="x" aria-label="features" placeholder="features of a node, with commas"></textarea>
<p><button id="ask">predict</button></p><div id="said"></div>
<script>
const at = id => document.getElementById(id);
fetch('/about').then(r => r.json()).then(a => { at('about').textContent = a.text; });
at('ask').onclick = async () => {
  const x = at('x').value.trim().split(/\\n/).map(line => line.split(',')
    .map(cell => cell.trim() === '' ? null : Number(cell)));
  const reply = await fetch('/predict', {method: 'POST', body: JSON.stringify({x})});
  const r = await reply.json();
  at('said').replaceChildren();
  const line = text => { const p = document.createElement('p'); p.textContent = text;
                         at('said').append(p); };
  if (!reply.ok) return line(r.error);
  r.answers.forEach((answer, i) => {
    line(`row ${i + 1}: ${answer}`);
    (r.probabilities?.[i] ?? []).forEach((p, k) => {
      line(`${r.classes[k]} ${(100 * p).toFixed(1)} %`);
      const bar = document.createElement('div');
      bar.className = 'bar'; bar.style.width = 100 * p + '%'; at('said').append(bar);
    });
  });
};
</script></html>"""


def answer(model: MLPStudent, body: bytes) -> dict[str, Any]:
    """What a student says about rows of features, ``{"x": [[...], ...]}``; null is missing.

    Returns:
        ``answers``: class, labels or values of each row; ``probabilities`` and ``classes`` where
        there are classes or labels.

    Raises:
        Refused: Something else than rows of numbers of the right width.
    """
    asked = read_json(body)
    if not isinstance(asked, dict) or "x" not in asked:
        raise Refused(400, 'the body must be {"x": [[...], ...]}, rows of features')
    try:
        rows = [[math.nan if cell is None else cell for cell in row] for row in asked["x"]]
        x = torch.tensor(rows, dtype=torch.float32)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise Refused(400, f"x must be rows of numbers: {error}") from error
    if x.isinf().any() or (x.isnan().any() and model.nan != "fill"):
        raise Refused(400, "x must be finite in float32")
    found = model.predict(x).tolist()
    if model.task == "values":
        return {"answers": found}
    names = model.classes or tuple(map(str, range(model.layers[-1].out_features)))  # type: ignore[arg-type]
    if model.task == "classes":
        said: list[Any] = [names[k] for k in found]
    else:
        said = [[names[k] for k, there in enumerate(row) if there] for row in found]
    return {"answers": said, "classes": names, "probabilities": model.predict_proba(x).tolist()}


def routes(model: MLPStudent, text: str, work: Work) -> dict[str, Any]:
    """The three addresses of a student."""
    front = Page(_PAGE)

    async def page(request: Request) -> Page:
        return front

    async def about(request: Request) -> dict[str, str]:
        return {"text": text}

    async def predict(request: Request) -> Any:
        body = await request.body()
        return await work.answer(request, lambda piece: answer(model, body))

    return {"GET /": page, "GET /about": about, "POST /predict": predict}


def run(student: Path, host: str, port: int, *, check: bool = False) -> None:
    """Serve a saved student until interrupted.

    Args:
        student: Its folder.
        host: Name or address to be asked by.
        port: 0 takes any free one.
        check: Answer one request, then end.

    Raises:
        BackendError: ``potstill-core[serve]`` is not installed.
        ConfigError: The address is taken.
    """
    model = MLPStudent.from_pretrained(student)
    server, work = Server(host, 0 if check else port, limit=_LARGEST), Work()
    text = f"{student.name}: {model.in_channels} features of a node to {model.task}."
    made = routes(model, text, work)
    if not check:
        say(f"serving at {server.address}, Ctrl-C ends")
        server.run(made, work)
        return
    with server.background(made, work) as address:
        row = json.dumps({"x": [[0.0] * model.in_channels]}).encode()
        with urllib.request.urlopen(f"{address}/predict", row, timeout=30) as reply:
            say(f"{address}: {json.load(reply)['answers'][0]}")


def write(student: Path, out: Path) -> float:
    """Export a saved student, features [nodes, F] to logits [nodes, C]; it is checked first.

    Args:
        student: Its folder.
        out: File, ``.onnx`` or ``.pt2`` (torch.export).

    Returns:
        The largest difference to the student, relative to its largest output.

    Raises:
        ConfigError: Another suffix.
        BackendError: ``potstill-core[export]`` is not installed.
    """
    if out.suffix not in (".onnx", ".pt2"):
        raise ConfigError(f"export: out must end in .onnx or .pt2, got {out}")
    model = MLPStudent.from_pretrained(student)
    make = to_onnx if out.suffix == ".onnx" else to_exported
    rows = torch.rand(3, model.in_channels, generator=torch.Generator().manual_seed(0))
    return make(model, rows, out, dynamic={0: "nodes"}).error
