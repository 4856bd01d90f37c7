"""What the core itself costs: taps around a forward, and the start of a process."""

import copy
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from potstill.core import Distiller, Losses, Objective, fit, tap
from potstill.core.measure.bench import Figure, Pair, Skip, at_most, benchmark, close


@benchmark(threads=1, clock="cpu")
def tap_overhead() -> Pair:
    """Forward of a 12-block MLP with every block tapped, against keeping the outputs by hand.

    The baseline keeps them too: on a CPU, memory that is kept is memory that the next block cannot
    reuse, and that costs more than the hooks.
    """
    model = nn.Sequential(*[nn.Sequential(nn.Linear(256, 256), nn.GELU()) for _ in range(12)])
    x = torch.randn(256, 256)
    names = [str(index) for index in range(12)]

    @torch.no_grad()
    def tapped() -> list[torch.Tensor]:
        with tap(model, *names) as readings:
            model(x)
        return [readings[name].output for name in names]

    @torch.no_grad()
    def by_hand() -> list[torch.Tensor]:
        outputs = [x]
        for block in model:
            outputs.append(block(outputs[-1]))
        return outputs[1:]

    return Pair(ours=tapped, baseline=by_hand, check=close(rtol=0, atol=0), work=256, unit="rows/s")


class Regress(Distiller):
    """A term, and nothing that would hide what `fit` itself takes."""

    def forward(self, batch: tuple[torch.Tensor, torch.Tensor], step: int) -> Losses:
        inputs, targets = batch
        return self.objective(step, task=(self.student(inputs), targets))


@benchmark(
    name="fit-overhead",
    threads=1,
    clock="cpu",
    targets={"over a bare loop": at_most(0.5, "issue 15: declared target, any CPU")},
)
def fit_overhead(quick: bool) -> dict[str, Figure]:
    """What a step of `fit` takes beyond a bare loop: a tiny MLP, plain Adam, the same batches.

    Two lengths of the same run are timed and subtracted, so that start and end do not count.
    """
    short, long = (20, 60) if quick else (200, 1200)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))
    batch = (torch.randn(16, 8), torch.randn(16, 1))

    def ours(steps: int) -> nn.Module:
        student = copy.deepcopy(network)
        distiller = Regress(student, Objective(task=(1.0, F.mse_loss)))
        fit(distiller, [batch], steps=steps, lr=1e-3, progress=False)
        return student

    def bare(steps: int) -> nn.Module:
        student = copy.deepcopy(network)
        adam = torch.optim.Adam(student.parameters(), lr=1e-3)
        for inputs, targets in [batch] * steps:
            adam.zero_grad()
            F.mse_loss(student(inputs), targets).backward()
            adam.step()
        return student

    def step(run: Callable[[int], nn.Module]) -> float:
        taken = []
        for steps in (short, long):
            start = time.process_time()
            run(steps)
            taken.append(time.process_time() - start)
        return 1e3 * (taken[1] - taken[0]) / (long - short)

    for mine, theirs in zip(ours(30).parameters(), bare(30).parameters(), strict=True):
        assert torch.equal(mine, theirs), "fit and the bare loop train different weights"
    pairs = [(step(ours), step(bare)) for _ in range(1 if quick else 9)]
    return {
        "over a bare loop": Figure([a - b for a, b in pairs], "ms", timed=True),
        "bare loop": Figure([b for _, b in pairs], "ms", timed=True),
    }


def seconds(*command: str, repeats: int) -> list[float]:
    """Wall time of whole processes, the first of them (cold caches) left out."""
    taken = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        taken.append(time.perf_counter() - start)
    return taken[1:]


@benchmark(targets={"help": at_most(0.3, "issue 2: `--help` under 0.3 s")})
def start(quick: bool) -> dict[str, Figure]:
    """Start of a process: `potstill --help`, and `import potstill.core`."""
    program = Path(sys.executable).with_name("potstill")
    if not program.exists():
        raise Skip("the potstill command is not beside this python")
    repeats = 1 if quick else 9
    return {
        "help": Figure(seconds(str(program), "--help", repeats=repeats), "s", timed=True),
        "import": Figure(
            seconds(sys.executable, "-c", "import potstill.core", repeats=repeats), "s", timed=True
        ),
    }
