"""Triton's kernels compile for cards that are not here, fit them, and do what their speed needs.

Three launches a kernel, one for each card; `python tools/compile_kernels.py` goes through all.
"""

import re
import sys
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton", reason="triton is not installed")

sys.path.append(str(Path(__file__).parents[2] / "tools"))
import compile_kernels as tool  # noqa: E402
import triton.language as tl  # noqa: E402

MODULES = {
    module: names for package in tool.PACKAGES for module, names in tool.kernels(package).items()
}

pytestmark = pytest.mark.skipif(
    not hasattr(triton, "knobs"), reason="Triton before 3.4 names its tools elsewhere"
)


@pytest.fixture(autouse=True)
def cold(monkeypatch, tmp_path):
    """Nothing that was compiled before, and no warning about Triton's next version."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")


@pytest.mark.parametrize("module", MODULES)
def test_every_kernel_compiles_and_fits_the_card(module):
    launches = tool.launches(module)
    for launch, card in tool.sample(launches):
        assert tool.faults(tool.compiled(launch, card), card) == [], f"{launch} on sm_{card}"
    called = {launch.name for launch in launches}
    source = Path(sys.modules[module].__file__).read_text()
    inner = {name for name in MODULES[module] if re.search(rf"(?<!def )\b{name}\((?!\))", source)}
    assert MODULES[module] - called <= inner, "a kernel that launches() of its module forgets"


@pytest.mark.parametrize("features", [2, 4, 8])
def test_rows_of_the_hash_grid_are_read_and_added_as_vectors(features):
    found = {
        launch.name: launch
        for launch in tool.launches("potstill.nerf.backends.triton")
        if launch.options["F"] == features
    }
    vector, times = min(features, 4), 8 * features // min(features, 4)
    for name in ("_forward", "_backward_input"):
        ptx = tool.compiled(found[name], 80).asm["ptx"]
        assert ptx.count(f"ld.global.v{vector}.b32") >= times
    ptx = tool.compiled(found["_backward_table"], 90).asm["ptx"]
    assert ptx.count(f"red.global.gpu.relaxed.add.v{vector}.f32") == times


@triton.jit
def _careless(x, y, count, SIZE: tl.constexpr):
    at = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    tl.atomic_add(y + at, tl.load(x + at, mask=at < count), mask=at < count)


@triton.jit
def _large(x, y, SIZE: tl.constexpr):
    at = tl.arange(0, 64)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    square = tl.arange(0, 64)[:, None] * 64 + tl.arange(0, 64)[None, :]
    tl.store(y + square, tl.dot(tl.load(x + at), tl.trans(tl.load(x + at + 1))))


def test_what_is_wrong_with_a_kernel_is_found():
    x, y = torch.zeros(2, 256)
    launch = tool.Launch(_careless, (x, y, 200), {"SIZE": 4096, "maxnreg": 24})
    found = "; ".join(tool.faults(tool.compiled(launch, 80), 80))
    assert "atomics that order memory" in found
    assert "wrap beyond 2^31" in found
    assert "bytes of registers a thread" in found
    assert "shared memory" not in found
    made = tool.compiled(tool.Launch(_large, (x.half(), y), {"SIZE": 1024, "num_warps": 8}), 89)
    assert "KiB of shared memory, the card has 99" in "; ".join(tool.faults(made, 89))
