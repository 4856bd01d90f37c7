"""Every Python block of the READMEs on a GPU, and again on the CPU: the same names, near values.

Random numbers are drawn alike. What a block leaves behind under a name, numbers and tensors of at
most a million elements, agrees to 5 % of its largest value, since these blocks train for a while;
a block that fails on the GPU fails here.
"""

import re
from contextlib import chdir
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.cuda import place
from potstill.core.measure.bench import Figure, at_most, benchmark

ROOT = Path(__file__).parents[2]
READMES = {path.parent.name: path for path in sorted(ROOT.glob("packages/*/README.md"))}
READMES["all"] = ROOT / "README.md"
SOURCE = "issue 17: every README block on CUDA against the CPU"


def blocks(path: Path) -> list[Any]:
    """The blocks, compiled."""
    text = path.read_text(encoding="utf-8")
    found = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [compile(block, f"{path.name}, block {n}", "exec") for n, block in enumerate(found, 1)]


def values(path: Path, device: str) -> dict[str, torch.Tensor]:
    """Numbers and tensors that the blocks leave behind under a name."""
    names: dict[str, Any] = {"__name__": "__main__"}
    here = (place.engines(device), place.DrawnOnTheCPU())
    with TemporaryDirectory() as folder, chdir(folder), here[0], here[1]:
        torch.manual_seed(0)
        for block in blocks(path):
            exec(block, names)
    return {
        name: torch.as_tensor(value).detach().cpu().double()
        for name, value in names.items()
        if isinstance(value, float | torch.Tensor)
        and torch.as_tensor(value).numel() <= 1_000_000
        and torch.as_tensor(value).is_floating_point()
    }


def readme(name: str, quick: bool) -> dict[str, Figure]:
    """The blocks of a README, on the GPU against the CPU."""
    if quick:  # they run in the tests of the documentation
        return {"gap": Figure(0.0 * len(blocks(READMES[name])), "relative")}
    found, expected = (values(READMES[name], device) for device in (place.DEVICE, "cpu"))
    assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
    figures = {"gap": Figure(0.0, "relative")}
    for key, value in found.items():
        scale = expected[key].abs().max().clamp_min(1e-6) if value.numel() else 1.0
        apart = float((value - expected[key]).abs().max() / scale) if value.numel() else 0.0
        figures[key] = Figure(apart, "relative")
    worst = max(figure.value for figure in figures.values())
    return {**figures, "gap": Figure(worst, "relative")}


for _name in READMES:
    _function = partial(readme, _name)
    _function.__doc__ = f"{readme.__doc__} ({_name})"  # type: ignore[attr-defined]
    benchmark(domain="cuda", name=f"readme-{_name}", device="cuda",
              targets={"gap": at_most(0.05, SOURCE)})(_function)  # fmt: skip
