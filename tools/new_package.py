"""Make a package: a domain with a job, a command, tests, a tutorial, a reference and a benchmark.

hatch run new-package NAME          from tools/template; nothing else has to be edited
"""

import argparse
import keyword
import re
import shutil
import subprocess
import sys

from workspace import PACKAGES, ROOT, project

TEMPLATE = ROOT / "tools" / "template"
TAKEN = (*PACKAGES, "bench", "env", "apps", "house", "golden", "devices", "benchmarks")


def name_of(word: str) -> str:
    """A name for a package, a module, a command and a folder of tests."""
    if not re.fullmatch(r"[a-z][a-z0-9]*", word) or keyword.iskeyword(word):
        raise argparse.ArgumentTypeError(f"{word!r} must be lower-case letters and digits")
    if word in TAKEN:
        raise argparse.ArgumentTypeError(f"{word!r} is taken, like {', '.join(sorted(TAKEN))}")
    return word


def requirements() -> dict[str, str]:
    """Dependencies by name, with the bounds that the other packages have."""
    core = project("core")
    major, minor = map(int, core["version"].split(".")[:2])
    found = {re.split(r"[<>=]", each)[0]: each for each in core["dependencies"]}
    return {**found, "potstill-core": f"potstill-core>={major}.{minor},<{major}.{minor + 1}"}


def make(name: str) -> list[str]:
    """Write the files of the package, and give their paths in the repository."""
    written = []
    for source in sorted(path for path in TEMPLATE.rglob("*") if path.is_file()):
        text = source.read_text(encoding="utf-8").replace("NAME", name)
        if source.name == "pyproject.toml":
            for bare, bounded in requirements().items():
                text = text.replace(f'"{bare}",', f'"{bounded}",')
        path = source.relative_to(TEMPLATE).as_posix().replace("NAME", name)
        (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
        with (ROOT / path).open("x", encoding="utf-8") as file:
            file.write(text)
        written.append(path)
    shutil.copy(ROOT / "LICENSE", ROOT / "packages" / name)
    owners = ROOT / ".github" / "CODEOWNERS"
    first, *lines = owners.read_text(encoding="utf-8").split("/packages/")
    lines = sorted([*lines, f"{name}/ @potstill/maintainers\n"])
    owners.write_text("/packages/".join([first, *lines]), encoding="utf-8")
    return [*written, f"packages/{name}/LICENSE"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", type=name_of)
    name = parser.parse_args().name
    written = make(name)
    python = [path for path in written if path.endswith((".py", ".pyi"))]
    for words in (["check", "--select=I", "--fix"], ["format"]):  # a name decides order and length
        subprocess.run(
            [sys.executable, "-m", "ruff", *words, "--quiet", *python], cwd=ROOT, check=True
        )
    print("\n".join(written))
    print(f"\nnext: hatch env remove default && hatch run test tests/{name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
