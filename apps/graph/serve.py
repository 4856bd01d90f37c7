"""Predictions for single nodes over HTTP: a distilled student beside the GNN it learned from.

    python apps/graph/serve.py                       # trains on the digits, then http://127.0.0.1:8765
    python apps/graph/serve.py --dataset cora --teacher GCN
    python apps/graph/serve.py --check               # answers a few requests itself and ends

The page asks both models about the same node and shows what they say and how long each took. The
GNN needs the graph: it collects the neighbourhood of the node, then runs on it. The student reads
one row of features, so it also answers for a node that is in no graph (POST /predict).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console

from potstill.core import PotstillError
from potstill.core.schemes import calibrate
from potstill.core.serve import Page, Refused, Server, Work, read_json
from potstill.graph import load, recipe_for, run_protocol, teacher_logits
from potstill.graph.analysis import single_node_call

if TYPE_CHECKING:
    from starlette.requests import Request

LARGEST = 2**24  # bytes of the rows of a request
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>GNN and student</title>
<meta name="viewport" content="width=device-width">
<style>
 :root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
 body { max-width: 46rem; margin: 3rem auto; padding: 0 1rem; }
 .row { display: flex; gap: 1rem; flex-wrap: wrap; }
 .card { flex: 1 1 16rem; border: 1px solid #8886; border-radius: .6rem; padding: 1rem; }
 .time { font-size: 2rem; font-variant-numeric: tabular-nums; }
 .bar { height: .5rem; border-radius: .25rem; background: #3b82f6; transition: width .2s; }
 button { font: inherit; padding: .3rem .9rem; }
 canvas { image-rendering: pixelated; width: 8rem; height: 8rem; border-radius: .4rem; }
</style>
<h1>One node, two models</h1>
<p id="about"></p>
<p><button id="one">Another node</button> <button id="many">200 nodes</button>
 <span id="progress"></span></p>
<canvas id="picture" width="8" height="8" hidden></canvas>
<p id="truth"></p>
<div class="row">
 <div class="card"><h2>GNN</h2><div class="time" id="t-gnn">-</div>
  <div class="bar" id="b-gnn"></div>
  <p id="c-gnn"></p></div>
 <div class="card"><h2>student</h2><div class="time" id="t-student">-</div>
  <div class="bar" id="b-student"></div><p id="c-student"></p></div>
</div>
<p id="sum"></p>
<script>
const at = id => document.getElementById(id);
const total = {gnn: [], student: []}, right = {gnn: 0, student: 0};
let count = 0;
const median = list => [...list].sort((a, b) => a - b)[list.length >> 1];
async function ask() {
  let answer = await fetch('/node');
  while (answer.status === 503) {  // many are asking: in a moment it is our turn
    await new Promise(later => setTimeout(later, 1000 * answer.headers.get('Retry-After')));
    answer = await fetch('/node');
  }
  const r = await answer.json();
  if (!answer.ok) throw new Error(r.error);
  count += 1;
  at('truth').textContent = `node ${r.node}, degree ${r.degree}, class ${r.label}; a cascade ` +
    (r.alone ? 'takes the student' : 'asks the GNN');
  const most = Math.max(r.gnn.ms, r.student.ms);
  for (const name of ['gnn', 'student']) {
    total[name].push(r[name].ms);
    right[name] += r[name].class === r.label;
    at('t-' + name).textContent = r[name].ms.toFixed(3) + ' ms';
    at('b-' + name).style.width = Math.max(1, 100 * r[name].ms / most) + '%';
    const sure = (100 * r[name].confidence).toFixed(0);
    at('c-' + name).textContent = `class ${r[name].class}, ${sure} % sure`;
  }
  if (r.picture) {
    const canvas = at('picture'), pen = canvas.getContext('2d'), image = pen.createImageData(8, 8);
    r.picture.forEach((v, i) => image.data.set([255 * v, 255 * v, 255 * v, 255], 4 * i));
    pen.putImageData(image, 0, 0); canvas.hidden = false;
  }
  const g = median(total.gnn), s = median(total.student);
  at('sum').textContent = `${count} ${count == 1 ? 'node' : 'nodes'}: `
    + `medians ${g.toFixed(3)} and ${s.toFixed(3)} ms, ${(g / s).toFixed(0)} times; `
    + `correct ${right.gnn} and ${right.student}.`;
}
const tell = error => at('progress').textContent = error.message;
at('one').onclick = () => ask().catch(tell);
at('many').onclick = async () => {
  try {
    for (let i = 1; i <= 200; i++) { await ask(); at('progress').textContent = `${i} / 200`; }
  } catch (error) { tell(error); }
};
fetch('/about').then(r => r.json()).then(a => at('about').textContent = a.text)
  .then(ask).catch(tell);
</script></html>"""


class Service:
    """Both models, and what is asked of them."""

    def __init__(self, dataset: str, teacher: str, seed: int) -> None:
        self.data = load(dataset, seed=seed)
        found = run_protocol(
            self.data,
            recipe_for(dataset, teacher),
            ("ff-g2m",),
            seed=seed,
            progress=lambda name: name,
        )
        self.gnn, self.student = found["teacher"].model, found["ff-g2m"].model
        scores = [100 * found[name].accuracy["test"] for name in ("teacher", "ff-g2m")]
        self.text = (
            f"{dataset}: {teacher} {scores[0]:.1f} %, student {scores[1]:.1f} % on the test nodes."
        )
        self.threshold, alone = self._calibrated()
        self.text += (
            f" In a cascade the student answers {100 * alone:.0f} % of the nodes alone; there it "
            "differs from the GNN in at most 10 % (bound of 90 %, on the validation nodes)."
        )
        self.tested = self.data.test_mask.nonzero().flatten()
        self.image = dataset == "digits"
        torch.set_num_threads(1)
        self.node(int(self.tested[0]))  # first calls make what later ones share

    def node(self, node: int | None = None) -> dict[str, Any]:
        """What both models say about a test node, drawn when None."""
        if node is None:
            node = int(self.tested[torch.randint(len(self.tested), ())])
        if not 0 <= node < self.data.num_nodes:
            raise Refused(400, f"node must be in [0, {self.data.num_nodes}), got {node}")
        answer = {
            name: self._timed(single_node_call(model, self.data, node))
            for name, model in (("gnn", self.gnn), ("student", self.student))
        }
        alone = answer["student"]["confidence"] >= self.threshold
        picture = self.data.x[node].tolist() if self.image else None
        degree = int((self.data.edge_index[1] == node).sum())
        label = int(self.data.y[node])
        return {
            "node": node,
            "degree": degree,
            "label": label,
            "picture": picture,
            **answer,
            "alone": alone,
        }

    @torch.no_grad()
    def _calibrated(self) -> tuple[float, float]:
        """From which probability the student's answer stands, and how often that is so."""
        z_s, z_t = self.student(self.data.x), teacher_logits(self.gnn, self.data)
        judged = self.data.val_mask
        threshold = calibrate(z_s[judged], z_t[judged], 0.1)
        return threshold, float((z_s.softmax(1).amax(1) >= threshold).float().mean())

    def features(self, body: bytes) -> dict[str, Any]:
        """What the student says about nodes that are in no graph."""
        asked = read_json(body)
        if not isinstance(asked, dict) or "x" not in asked:
            raise Refused(400, 'the body must be {"x": [[...], ...]}, rows of features')
        try:
            x = torch.tensor(asked["x"], dtype=torch.float32)
        except (TypeError, ValueError, OverflowError, RuntimeError) as error:
            raise Refused(400, f"x must be rows of numbers: {error}") from error
        if not x.isfinite().all():
            raise Refused(400, "x must be finite in float32")
        return {"classes": self.student.predict(x).tolist()}

    @staticmethod
    def _timed(call: Callable[[], torch.Tensor]) -> dict[str, Any]:
        started = time.perf_counter()
        z = call()
        taken = time.perf_counter() - started
        p = z.softmax(1)[0]
        return {"ms": 1e3 * taken, "class": int(p.argmax()), "confidence": float(p.max())}


def routes(service: Service, work: Work) -> dict[str, Any]:
    """The four addresses; models compute one request at a time, so that times are clean."""
    front = Page(PAGE)

    async def page(request: Request) -> Page:
        return front

    async def about(request: Request) -> dict[str, str]:
        return {"text": service.text}

    async def node(request: Request) -> Any:
        wanted = request.query_params.get("id")
        try:
            number = None if wanted is None else int(wanted)
        except ValueError as error:
            raise Refused(400, f"id must be the number of a node, got {wanted[:20]!r}") from error
        return await work.answer(request, lambda piece: service.node(number))

    async def predict(request: Request) -> Any:
        body = await request.body()
        return await work.answer(request, lambda piece: service.features(body))

    return {"GET /": page, "GET /about": about, "GET /node": node, "POST /predict": predict}


def check(address: str, console: Console) -> None:
    """Ask for everything once, as a browser and a program would."""

    def get(path: str, data: bytes | None = None) -> Any:
        with urllib.request.urlopen(address + path, data, timeout=30) as answer:
            return json.load(answer)

    answers = [get("/node") for _ in range(50)]
    for name in ("gnn", "student"):
        times = sorted(answer[name]["ms"] for answer in answers)
        right = sum(answer[name]["class"] == answer["label"] for answer in answers)
        console.print(f"{name}: {times[25]:.3f} ms (median of 50), {right} of 50 correct")
    picture = answers[0]["picture"]
    if picture:
        body = json.dumps({"x": [picture]}).encode()
        assert get("/predict", body)["classes"] == [answers[0]["student"]["class"]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, then serve until interrupted."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--teacher", default="GCN", choices=("GCN", "SAGE", "GAT"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--host", default="127.0.0.1", help="name or address to be asked by")
    parser.add_argument("--port", type=int, default=8765, help="0 takes any free one")
    parser.add_argument("--check", action="store_true", help="answer a few requests, then end")
    options = parser.parse_args(arguments)
    console = Console()
    try:  # before the training: a port that is taken, a package that is missing
        server = Server(options.host, 0 if options.check else options.port, limit=LARGEST)
        service = Service(options.dataset, options.teacher, options.seed)
    except PotstillError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        return 130
    console.print(service.text)
    console.print(f"serving at {server.address}, Ctrl-C ends")
    work = Work()
    if options.check:
        with server.background(routes(service, work), work) as address:
            check(address, console)
    else:
        server.run(routes(service, work), work)
    return 0


if __name__ == "__main__":
    sys.exit(main())
