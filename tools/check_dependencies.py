"""Say which dependencies of the packages are undeclared or unused.

hatch run python tools/check_dependencies.py [package ...]

deptry compares what each package imports with its own pyproject.toml: a domain must list what it
imports even where the core brings it too.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from workspace import PACKAGES, ROOT

# Declared and never imported by name, with the reason.
UNSEEN = {
    "onnx": "imported through importlib, to say at once what is missing",
    "onnxscript": "likewise; torch.onnx imports it",
    "potstill-core": "imported as potstill.core, which no distribution is called",
    "tensorboard": "torch.utils.tensorboard imports it",
    "torchvision": "timm needs it and sets no bounds: torch and torchvision go in pairs",
}
# Imported and not declared, with the reason.
OPTIONAL = {
    "imageio_ffmpeg": "the video extra of potstill-nerf (imageio[ffmpeg])",
    "nerfacc": "an optional backend, loaded on request; it says how to get it",
    "tinycudann": "built from source, so no index has it; its backend says how to get it",
    "triton": "comes with torch where torch has kernels in it",
}


def problems(name: str) -> list[str]:
    """What deptry finds in the package, one line each."""
    optional = "|".join(OPTIONAL)
    ignored = f"DEP001={optional},DEP002={'|'.join(UNSEEN)},DEP003={optional}"
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "deptry.json")
        command = [
            *(sys.executable, "-m", "deptry", "src"),
            *("--config", "pyproject.toml"),
            *("--known-first-party", "potstill"),
            *("--package-module-name-map", "scikit-image=skimage"),  # where it is not installed
            *("--per-rule-ignores", ignored),
            *("--json-output", str(output), "--no-ansi"),
        ]
        done = subprocess.run(command, cwd=ROOT / "packages" / name, capture_output=True, text=True)
        if not output.exists():
            return [f"packages/{name}: deptry failed: {done.stderr.strip()}"]
        found = json.loads(output.read_text())
    return [
        f"packages/{name}/{row['location']['file']}:{row['location']['line'] or 1}: "
        f"{row['error']['code']} {row['error']['message']}"
        for row in found
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [*PACKAGES, []]  # argparse looks the default up too
    parser.add_argument("packages", nargs="*", choices=names, metavar="package")
    chosen = parser.parse_args().packages or PACKAGES
    lines = [line for name in chosen for line in problems(name)]
    print("\n".join(lines) or f"dependencies of {len(chosen)} packages: declared and used")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
