"""What the core itself costs: taps around a forward, and the start of a process."""

import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import nn

from potstill.core import tap
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
