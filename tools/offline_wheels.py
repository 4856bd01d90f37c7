"""Fetch what a GPU machine without an index lacks: wheels for Python 3.12, ours included.

python tools/offline_wheels.py                  into wheels/, which git ignores
python tools/offline_wheels.py --there LIST     LIST: `pip list --format=freeze` of the machine

`tools/prove_cuda.py` unpacks them beside its results. Whatever depends on the build of CUDA (torch,
Triton, nerfacc, tiny-cuda-nn) is never fetched. Exit code 1 beyond 60 MiB.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

from check_wheels import find_uv
from workspace import PACKAGES, ROOT, project

PYTHON, PLATFORM, LIMIT = "3.12", "x86_64-manylinux_2_28", 60 << 20
TESTING = ("pytest>=9", "pytest-timeout")
THERE = """
accelerate attrs contourpy cycler filelock fonttools fsspec huggingface-hub jaxtyping jinja2
kiwisolver lazy-loader markdown-it-py markupsafe matplotlib mdurl mpmath networkx numpy packaging
pillow psutil pygments pyparsing python-dateutil pyyaml requests rich safetensors scikit-image
scikit-learn scipy setuptools six sympy timm torch torch-geometric torchvision tqdm triton
typing-extensions wadler-lindig xxhash aiohttp hf-xet iniconfig pluggy
"""
"""What comes with an image for torch, timm and PyG; a list of the machine's own is better."""
CUDA = re.compile(r"torch$|torchvision|triton|nvidia-|cuda-|pytorch-triton")


def name_of(requirement: str) -> str:
    """The normalised name at the beginning of a requirement."""
    found = re.match(r"[\w.-]+", requirement)
    return re.sub(r"[._-]+", "-", found[0]).lower() if found else ""


def needs(there: set[str]) -> list[str]:
    """What our packages and their tests need and the machine lacks, other than each other."""
    wanted = [need for name in PACKAGES for need in project(name)["dependencies"]]
    there = there | {f"potstill-{name}" for name in PACKAGES}
    return [need for need in (*wanted, *TESTING) if name_of(need) not in there]


def missing(pinned: str, there: set[str]) -> list[str]:
    """Of pinned requirements, with all that they need themselves, those that the machine lacks."""
    lines = [line.split(";")[0].strip() for line in pinned.splitlines() if "==" in line]
    return [line for line in lines if name_of(line) not in there and not CUDA.match(name_of(line))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "wheels", help="folder; emptied first")
    parser.add_argument("--there", type=Path, help="packages of the machine, one a line")
    options = parser.parse_args()
    there = set(map(name_of, (options.there.read_text() if options.there else THERE).split()))
    options.out.mkdir(parents=True, exist_ok=True)
    for old in options.out.glob("*.whl"):
        old.unlink()
    uv = find_uv()
    compiled = [uv, "pip", "compile", "--quiet", "--no-header", "--no-annotate", "-"]
    target = ["--python-version", PYTHON, "--python-platform", PLATFORM]
    pinned = subprocess.run(
        [*compiled, *target], input="\n".join(needs(there)), stdout=subprocess.PIPE, text=True,
        check=True,
    ).stdout  # fmt: skip
    wanted = missing(pinned, there)
    manylinux = [f"--platform={tag}_x86_64" for tag in ("manylinux_2_28", "manylinux2014")]
    download = ["download", "--quiet", "--no-deps", "--only-binary=:all:", *manylinux]
    folder = ["--dest", str(options.out)]
    python = [f"--python-version={PYTHON}", "--implementation=cp"]
    if wanted:
        subprocess.run([uv, "tool", "run", "pip", *download, *python, *folder, *wanted], check=True)
    for name in PACKAGES:
        build = [uv, "build", "--quiet", "--wheel", "--out-dir", str(options.out)]
        subprocess.run([*build, str(ROOT / "packages" / name)], check=True)
    found = sorted(options.out.glob("*.whl"))
    size = sum(path.stat().st_size for path in found)
    print(*(path.name for path in found), f"{size / 2**20:.1f} MiB in {options.out}", sep="\n")
    sys.exit(size > LIMIT)


if __name__ == "__main__":
    main()
