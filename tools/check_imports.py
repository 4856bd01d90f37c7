"""Check the direction of imports: domains -> core, never sideways, commands and options light.

hatch run lint                      is what runs this
python tools/check_imports.py       the contracts of all packages, by import-linter
"""

import sys
import tempfile
from pathlib import Path

from importlinter.cli import lint_imports
from workspace import DOMAINS, PACKAGES

HEAVY = ("torch", "torchvision", "torch_geometric", "timm", "accelerate")


def contracts() -> str:
    """A configuration of import-linter for the packages that there are."""

    def names(words: list[str]) -> str:
        return "".join(f"\n    {word}" for word in words)

    domains = names([f"potstill.{name}" for name in DOMAINS])
    return f"""[importlinter]
root_packages ={names([f"potstill.{name}" for name in PACKAGES])}
include_external_packages = True

[importlinter:contract:domains]
name = Domains do not know each other
type = independence
modules ={domains}

[importlinter:contract:core]
name = The core knows no domain
type = forbidden
source_modules = potstill.core
forbidden_modules ={domains}

[importlinter:contract:light]
name = Commands and configurations import nothing heavy
type = forbidden
source_modules =
    potstill.*.cli
    potstill.*.config
forbidden_modules ={names([*HEAVY])}
allow_indirect_imports = True
"""


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "contracts.ini")
        path.write_text(contracts(), encoding="utf-8")
        return lint_imports(config_filename=str(path), no_cache=True, no_logo=True)


if __name__ == "__main__":
    sys.exit(main())
