"""Compile every Triton kernel for cards that are not here, and look at the machine code.

python tools/compile_kernels.py            every launch for every card; minutes
python tools/compile_kernels.py --quick    three launches a kernel, one for each card; as the tests
python tools/compile_kernels.py nerf acm   of these packages only

A module with kernels has ``launches()``: calls that reach each kernel in each dtype and tiling that
its code can choose. The calls are made with tensors of the CPU; a pretended card takes the place of
the driver, and what would be launched is compiled as that launch would be, alignment of the
arguments included. Exit code 1 if anything fails.
"""

import argparse
import ast
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, NamedTuple
from unittest import mock

from workspace import PACKAGES, ROOT

CARDS = {80: 163, 89: 99, 90: 227}
"""KiB of shared memory that one program may have: A100; RTX 4090 and L40; H100 and H200."""

PARKED = 16
"""Bytes a thread that ptxas may park in memory by choice, to run more programs at once."""

HASH = "_row"  # unsigned 32-bit products that wrap on purpose


class Launch(NamedTuple):
    """One call of a kernel.

    Attributes:
        kernel: The function of Triton.
        args: Its arguments.
        options: Meta-parameters and options of the launch.
    """

    kernel: Any
    args: tuple[Any, ...]
    options: dict[str, Any]

    @property
    def name(self) -> str:
        """Name of the kernel."""
        return str(self.kernel.__name__)

    def __str__(self) -> str:
        shapes = [
            f"{str(a.dtype).removeprefix('torch.')}{list(a.shape)}" if hasattr(a, "shape") else a
            for a in self.args
        ]
        options = ", ".join(f"{name}={value}" for name, value in self.options.items())
        return f"{self.name}({', '.join(map(str, shapes))}; {options})"


def kernels(package: str) -> dict[str, set[str]]:
    """By module of a package, the functions under ``@triton.jit``."""
    source, found = ROOT / "packages" / package / "src", {}
    for path in sorted(source.rglob("*.py")):
        names = {
            node.name
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.FunctionDef)
            and any(re.search(r"\.jit\b", ast.unparse(d)) for d in node.decorator_list)
        }
        if names:
            found[".".join(path.relative_to(source).with_suffix("").parts)] = names
    return found


def launches(module: str) -> list[Launch]:
    """What ``launches()`` of a module launches, each kind once; nothing is compiled."""
    from triton.runtime.jit import JITFunction

    found: dict[str, Launch] = {}

    def record(kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        launch = Launch(kernel, args, options)
        found.setdefault(str(launch), launch)

    with mock.patch.object(JITFunction, "run", record):
        for call in import_module(module).launches():
            call()
    return list(found.values())


@contextmanager
def card(capability: int) -> Iterator[None]:
    """Triton's driver of a card with that capability, which can compile and nothing else."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    class Card:
        def get_current_device(self) -> int:
            return capability  # kernels that are compiled are kept by device

        def get_current_stream(self, device: int) -> int:
            return 0

        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", capability, 32)

    before = driver._active
    driver.set_active(Card())
    try:
        yield
    finally:
        driver._active = before


def compiled(launch: Launch, capability: int) -> Any:
    """The kernel of a launch as it would be compiled on that card."""
    with card(capability):
        return launch.kernel.run(*launch.args, grid=(1,), warmup=True, **launch.options)


def faults(made: Any, capability: int) -> list[str]:
    """What is wrong with a compiled kernel; empty where nothing is."""
    found = []
    if made.metadata.shared > CARDS[capability] << 10:
        found.append(
            f"needs {made.metadata.shared >> 10} KiB of shared memory, the card has "
            f"{CARDS[capability]}"
        )
    if (stack := stack_bytes(made.asm["cubin"])) > PARKED:
        found.append(f"spills {stack} bytes of registers a thread")
    ptx = made.asm["ptx"]
    if ordered := re.findall(r"\b(?:atom|red|fence)\.\S*(?:acq_rel|sc)\.\S*|\bmembar\.\S+", ptx):
        found.append(f"{len(ordered)} atomics that order memory ({ordered[0]}); pass sem='relaxed'")
    if products := narrow_products(made.asm["source"]):
        found.append(f"offsets of 32 bits, which wrap beyond 2^31: {products[0].strip()}")
    return found


def stack_bytes(cubin: bytes) -> int:
    """Bytes of local memory a thread: registers that did not fit."""
    import triton

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return max(map(int, re.findall(r"STACK:(\d+)", done.stdout)))


def narrow_products(source: str) -> list[str]:
    """Products of 32-bit integers in Triton's first form, the hash of nerf's grid left out."""
    found, function = [], ""
    for line in source.splitlines():
        if match := re.search(r"tt\.func .*?@\"?([\w.]+)", line):
            function = match[1]
        narrow = re.search(r"arith\.muli .*: (tensor<\S*x)?i32>?", line)
        if narrow and not re.search(rf"\.{HASH}\b|\.{HASH}__", function):
            found.append(line)
    return found


def sample(found: list[Launch]) -> list[tuple[Launch, int]]:
    """For each kernel its first, middle and last launch, each for another card."""
    by_kernel = defaultdict(list)
    for launch in found:
        by_kernel[launch.name].append(launch)
    return [
        (rows[place], capability)
        for rows in by_kernel.values()
        for place, capability in zip((0, len(rows) // 2, -1), CARDS, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("packages", nargs="*", choices=[[], *PACKAGES], help="all by default")
    parser.add_argument("--quick", action="store_true", help="three launches a kernel")
    options = parser.parse_args()
    failed = 0
    for package in options.packages or PACKAGES:
        for module in kernels(package):
            every = launches(module)
            pairs = [(launch, capability) for launch in every for capability in CARDS]
            for launch, capability in sample(every) if options.quick else pairs:
                start = time.perf_counter()
                try:
                    wrong = faults(compiled(launch, capability), capability)
                except Exception as error:  # a kernel that does not compile is one row of many
                    wrong = [f"{type(error).__name__}: {error}"]
                failed += bool(wrong)
                took = f"{time.perf_counter() - start:.1f} s"
                print(f"sm_{capability} {took} {launch}: {'; '.join(wrong) or 'fits'}", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # Triton's own default until 3.10
    main()
