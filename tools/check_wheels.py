"""Build every wheel, and prove that each works alone in an empty environment.

hatch run wheels                    all packages, newest dependencies
hatch run wheels graph --lowest     one package, the oldest dependencies that it declares
hatch run wheels core --tests       and run the package's tests against the wheel
hatch run release-check             half of them, one with its tests: other ones after each commit
hatch run wheels --beside           each beside older neighbours, in an environment of its own

For each package: the content of the wheel; a new environment that holds the wheel, the siblings it
declares and nothing else of ours; then, from a folder outside of the clone, every module is
imported, the README's Python is run, and the command shows its help. Two packages at a time. uv
does the work, from its cache where it can; UV_DEFAULT_INDEX, UV_TORCH_BACKEND and the like are
passed on.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

from workspace import PACKAGES, ROOT, project

TEST_TOOLS = ["beartype", "hypothesis", "pytest>=9", "pytest-timeout", "scikit-learn"]
OLD_TOOLS = ["pyparsing<3.3"]  # newer ones warn of how older matplotlib calls them

BESIDE = {  # what people have already, and a wheel must not replace
    "older neighbours": ["torch==2.11.*", "transformers==4.57.*", "matplotlib==3.10.0"],
    "newest transformers": ["transformers>=5", "matplotlib==3.10.0"],
}

PROBE = """
import importlib, pkgutil, sys, warnings
from pathlib import Path
import potstill

name, allowed, clone = sys.argv[1], set(sys.argv[2].split(",")), Path(sys.argv[3])
found = {module.name for module in pkgutil.iter_modules(potstill.__path__)}
assert found == allowed, f"namespace holds {found}, not {allowed}"
assert not any(Path(path).is_relative_to(clone / "packages") for path in potstill.__path__)
module = importlib.import_module(f"potstill.{name}")
assert "torch" not in sys.modules, f"import potstill.{name} imports torch"
for public in module.__all__:
    getattr(module, public)
left_out = []
for info in pkgutil.walk_packages(module.__path__, f"potstill.{name}."):
    try:
        importlib.import_module(info.name)
    except ModuleNotFoundError as missing:  # a backend or helper of an extra
        assert not (missing.name or "potstill").startswith("potstill"), missing
        left_out.append(f"{info.name} ({missing.name})")
print("not importable: " + ", ".join(left_out) if left_out else "")
"""


class Row(NamedTuple):
    """What came of one package."""

    package: str
    wheel_kib: float
    seconds: float
    trouble: str
    note: str


def find_uv() -> str:
    """uv from the environment of hatch, from PATH, or from beside hatch or this Python."""
    hatch = shutil.which("hatch")
    beside = [Path(sys.executable).parent, *([Path(hatch).resolve().parent] if hatch else [])]
    found = os.environ.get("HATCH_UV") or shutil.which("uv")
    found = found or next((w for b in beside if (w := shutil.which("uv", path=str(b)))), None)
    if found is None:
        sys.exit("check_wheels: uv must be installed, found none; pip install uv, or use hatch")
    return found


def run(*command: object, cwd: Path, env: dict[str, str] | None = None) -> str:
    """Standard output of ``command``; raises with the tail of what it said when it fails."""
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, env=env)
    if done.returncode:
        said = (done.stdout + done.stderr).strip().splitlines()[-25:]
        raise RuntimeError(
            f"{' '.join(words[:4])} ...: exit code {done.returncode}\n" + "\n".join(said)
        )
    return done.stdout.strip()


def check_content(wheel: Path, name: str, version: str) -> None:
    """A wheel holds ``potstill/<name>``, its type marker, stub and licence, and nothing large."""
    with zipfile.ZipFile(wheel) as archive:
        names = [each for each in archive.namelist() if not each.endswith("/")]
        large = [i.filename for i in archive.infolist() if i.file_size > 2**20]
        metadata = archive.read(f"potstill_{name}-{version}.dist-info/METADATA").decode()
    inside = {each for each in names if ".dist-info/" not in each}
    stray = {each for each in inside if not each.startswith(f"potstill/{name}/")}
    stray |= {
        each
        for each in inside
        if not re.search(r"\.(pyi?|typed|cu|cpp|h|toml|yaml|json|safetensors)$", each)
    }
    if large:
        raise RuntimeError(f"files above 1 MiB in the wheel: {', '.join(large)}")
    if stray:
        raise RuntimeError(f"the wheel holds {', '.join(sorted(stray)[:5])}")
    sources = ROOT / "packages" / name / "src"
    expected = {p.relative_to(sources).as_posix() for p in sources.rglob("*.py*") if p.is_file()}
    expected = {each for each in expected if "__pycache__" not in each}
    if expected - inside:
        raise RuntimeError(f"the wheel lacks {', '.join(sorted(expected - inside)[:5])}")
    if not any(each.endswith("LICENSE") for each in names):
        raise RuntimeError("the wheel lacks its LICENSE")
    for line in (
        f"Version: {version}",
        "License-Expression: Apache-2.0",
        "Requires-Python: >=3.11",
    ):
        if line not in metadata:
            raise RuntimeError(f"the metadata lacks {line!r}")


def readme(name: str) -> tuple[list[str], str]:
    """The extras that the package's README installs first, and its Python as one program."""
    text = (ROOT / "packages" / name / "README.md").read_text(encoding="utf-8")
    line = re.search(rf"^pip install '?potstill-{name}(?:\[([\w,]+)\])?", text, re.MULTILINE)
    if line is None:
        raise RuntimeError(f"the README lacks a line: pip install potstill-{name}")
    code = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return line[1].split(",") if line[1] else [], "\n".join(code)


def above_floor(uv: str, python: Path, declared: list[str]) -> str:
    """Which of the ``declared`` floors were not what got installed, because another forbids it."""
    listing = json.loads(run(uv, "pip", "list", "--python", python, "--format", "json", cwd=ROOT))
    installed = {each["name"].lower().replace("_", "-"): each["version"] for each in listing}
    above = []
    for requirement in declared:
        name, floor = re.match(r"([\w-]+)(?:\[.*\])?>=([\d.]+)", requirement).groups()
        version = installed[name.lower().replace("_", "-")]
        if not version.startswith(floor.removesuffix(".0")):
            above.append(f"{name} {version} (declared {floor})")
    return f"above the floor: {', '.join(above)}" if above else ""


def with_extras(name: str, wheels: Path, wanted: bool) -> str:
    """The wheel of ``name`` as a requirement, with all its extras if they are wanted."""
    [wheel] = wheels.glob(f"potstill_{name}-*.whl")
    extras = ",".join(project(name).get("optional-dependencies", {})) if wanted else ""
    return f"{wheel}[{extras}]" if extras else str(wheel)


def check(
    uv: str, name: str, wheels: Path, options: argparse.Namespace, tests: bool
) -> tuple[float, str]:
    """Check the wheel of ``name``; returns its size in KiB and what was left out."""
    about = project(name)
    [wheel] = wheels.glob(f"potstill_{name}-*.whl")
    siblings = {
        match[1] for each in about["dependencies"] if (match := re.match(r"potstill-(\w+)", each))
    }
    with tempfile.TemporaryDirectory(prefix=f"potstill-{name}-") as folder:
        home = Path(folder)
        run(uv, "venv", "--quiet", "--python", options.python, home / "venv", cwd=home)
        python = home / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
        install = [uv, "pip", "install", "--quiet", "--python", python, "--find-links", wheels]
        extras = about.get("optional-dependencies", {}) if tests else {}
        declared = [each for each in about["dependencies"] if not each.startswith("potstill-")]
        declared += [each for extra in extras.values() for each in extra]
        # As requirements of their own: what a wheel requires is not direct in the eyes of uv.
        lowest = ["--resolution", "lowest-direct", *declared] if options.lowest else []
        # Siblings come from the folder even when the index has the same version. Tests of a domain
        # may use what the extras of the core bring.
        ours = [with_extras(each, wheels, tests) for each in sorted(siblings | {name})]
        run(*install, *lowest, *ours, *options.neighbours.get(name, []), cwd=home)
        above = above_floor(uv, python, declared) if options.lowest else ""
        env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
        env |= {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
        allowed = ",".join(sorted(siblings | {name}))
        left_out = run(python, "-c", PROBE, name, allowed, ROOT, cwd=home, env=env)
        wanted, code = readme(name)
        if wanted and not tests:
            run(*install, f"{wheel}[{','.join(wanted)}]", cwd=home)
        (home / "readme.py").write_text(code)
        run(python, "readme.py", cwd=home, env=env)
        words = [] if name == "core" else [name]
        run(python.with_name("potstill"), *words, "--help", cwd=home, env=env)
        if tests:
            run(*install, *TEST_TOOLS, *(OLD_TOOLS if options.lowest else []), cwd=home)
            shutil.copytree(ROOT / "tests" / name, home / "tests" / name)
            shutil.copy(ROOT / "tests" / "conftest.py", home / "tests")
            shutil.copy(ROOT / "pytest.toml", home)
            run(python, "-m", "pytest", "-q", "-m", "not slow", "tests", cwd=home, env=env)
    return wheel.stat().st_size / 1024, "; ".join(filter(None, [left_out, above]))


def beside(uv: str, wheels: Path, python: str, names: list[str]) -> list[str]:
    """Which wheels do not resolve, with all their extras, beside each set of neighbours."""
    troubles = []
    for title, neighbours in BESIDE.items():
        for name in names:
            siblings = {"core"} if name != "core" else set()
            ours = [with_extras(each, wheels, each == name) for each in {name, *siblings}]
            requirements = "\n".join([*ours, *neighbours])
            command = [uv, "pip", "compile", "--quiet", "--python", python, "--find-links", wheels]
            done = subprocess.run(
                [*map(str, command), "-"], input=requirements, capture_output=True, text=True
            )
            if done.returncode:
                troubles.append(f"{name} beside {title}: {done.stderr.strip()[-600:]}")
    return troubles


def in_turn() -> list[tuple[str, bool]]:
    """Half of the packages, the first with its tests: other ones after each commit."""
    first = int(run("git", "rev-list", "--count", "HEAD", cwd=ROOT)) % len(PACKAGES)
    turned = [*PACKAGES[first:], *PACKAGES[:first]]
    return [(name, name == turned[0]) for name in turned[::2]]


def row(uv: str, wheels: Path, options: argparse.Namespace, chosen: tuple[str, bool]) -> Row:
    """What came of one package, with or without its tests."""
    (name, tests), start = chosen, time.monotonic()
    size, trouble, note = 0.0, "", "with tests" if tests else ""
    try:
        size, left = check(uv, name, wheels, options, tests)
        note = "; ".join(filter(None, [note, left]))
    except RuntimeError as error:
        trouble = str(error)
    print(f"{name}: {trouble or 'ok'}", flush=True)
    return Row(name, size, time.monotonic() - start, trouble, note)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [*PACKAGES, []]  # argparse looks the default up too
    parser.add_argument("packages", nargs="*", choices=names, metavar="package")
    parser.add_argument("--rotate", action="store_true", help="tests of one, in turn by the commit")
    parser.add_argument("--lowest", action="store_true", help="the oldest declared dependencies")
    parser.add_argument("--tests", action="store_true", help="run the package's tests too")
    parser.add_argument("--beside", action="store_true", help="with the older neighbours installed")
    parser.add_argument("--python", default=sys.executable, help="interpreter of the environments")
    options = parser.parse_args()
    # Modules are compiled when imported: to compile all of torch takes longer than to use it.
    os.environ["UV_COMPILE_BYTECODE"] = "0"
    tests = options.tests or (options.rotate and bool(options.packages))
    chosen = [(name, tests) for name in options.packages or PACKAGES]
    if options.rotate and not options.packages:
        chosen = in_turn()
    older = BESIDE["older neighbours"]
    options.neighbours = dict.fromkeys(names[:-1], older) if options.beside else {}
    if options.rotate:  # one, and without another torch, which is 3 GB
        options.neighbours = {chosen[-1][0]: older[1:]}
    with tempfile.TemporaryDirectory(prefix="potstill-wheels-") as folder:
        build = [uv := find_uv(), "build", "--quiet", "--wheel", "--out-dir", folder]
        for name in PACKAGES:  # siblings too: a domain needs the core's
            run(*build, ROOT / "packages" / name, cwd=ROOT)
            [wheel] = Path(folder).glob(f"potstill_{name}-*.whl")
            try:
                check_content(wheel, name, project(name)["version"])
            except RuntimeError as error:
                sys.exit(f"{name}: {error}")
        if troubles := beside(uv, Path(folder), options.python, [name for name, _ in chosen]):
            sys.exit("\n".join(troubles))
        print(f"all of them resolve beside {'; beside '.join(BESIDE)}", flush=True)
        with ThreadPoolExecutor(2) as pool:
            rows = list(pool.map(partial(row, uv, Path(folder), options), chosen))
    print(f"\n{'package':8} {'KiB':>6} {'seconds':>8}  result  notes")
    for name, size, taken, trouble, note in rows:
        result = "FAILED" if trouble else "ok"
        print(f"{name:8} {size:6.1f} {taken:8.1f}  {result:6}  {note or '-'}")
    return 1 if any(each.trouble for each in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
