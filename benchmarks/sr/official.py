"""The authors' own IMDN, from a checkout of yours: `potstill bench sr --official PATH`.

PATH is a clone of https://github.com/Zheng222/IMDN. Only its two model files are imported, and
nothing of them is kept here: the repository has no licence. Both sides get the same random weights
and must give the same image before anything is timed.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

from torch import nn

from benchmarks.sr.speed import SCALE, THREADS, agree, infer, networks, race
from potstill.core.measure.bench import Pair, Skip, benchmark

PACKAGE = "official_imdn"


def architecture(checkout: Path) -> ModuleType:
    """Its module of networks, imported under a name of ours, which is forgotten again."""
    folder = checkout / "model"
    if not all((folder / name).is_file() for name in ("architecture.py", "block.py")):
        raise Skip(
            f"{checkout.name} is no checkout of Zheng222/IMDN: model/architecture.py or "
            "model/block.py is missing"
        )
    package = ModuleType(PACKAGE)
    package.__path__ = [str(folder)]
    sys.modules[PACKAGE] = package
    try:
        return importlib.import_module(f"{PACKAGE}.architecture")
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
            del sys.modules[name]


def official_network(checkout: Path) -> nn.Module:
    """Its IMDN x4 with the weights of the other networks."""
    network: nn.Module = architecture(checkout).IMDN(upscale=SCALE).eval()
    network.load_state_dict(networks()[0].state_dict())
    return network


@benchmark(threads=THREADS)
def official_naive(official: Path) -> Pair:
    """Our naive baseline against the authors' network: about 1, if it is fair."""
    naive, _, x = networks()
    theirs = official_network(official)

    return Pair(ours=lambda: infer(naive, x), baseline=lambda: infer(theirs, x), check=agree(1e-5))


@benchmark(threads=THREADS)
def official_torch_fp32(official: Path) -> Pair:
    """IMDN x4 in stages, float32, not compiled, against the authors' network."""
    return race("torch", "fp32", baseline=official_network(official))


@benchmark(threads=THREADS, budget=180)
def official_torch_bf16_compiled(official: Path) -> Pair:
    """Mixed bf16 compiled by torch, against the authors' network in float32."""
    return race("torch", "bf16", compiled=True, baseline=official_network(official))


@benchmark(threads=THREADS)
def official_openvino_bf16(official: Path) -> Pair:
    """OpenVINO in bf16, against the authors' network in float32."""
    return race("openvino", "bf16", baseline=official_network(official))
