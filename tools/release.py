"""Check that a package is ready for release, and say which tag releases it.

python tools/release.py core                      check, build, prove, print the tag
python tools/release.py --tag potstill-core-v0.1.0    what the release workflow runs: package and
                                                      version come from the tag
python tools/release.py core --collect            changelog.d/*.md become lines of CHANGELOG.md

Checked: the tree is committed; the tag is new (or, with --tag, points at HEAD); the version is that
of the tag and the top of CHANGELOG.md, which is dated; the domains accept the core's version; the
wheel works alone, newest and oldest dependencies. The sdist and the wheel are left in dist/, the
section of the changelog is printed for the release's page. Nothing is pushed or uploaded here.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

from workspace import PACKAGES, ROOT, project


def git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def changelog(name: str) -> tuple[str, str, str]:
    """Version, date and text of the top entry."""
    text = (ROOT / "packages" / name / "CHANGELOG.md").read_text(encoding="utf-8")
    top = re.search(r"^## \[?(\d[^\s\]]*)\]? - (\S+)\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    return (top[1], top[2], top[3].strip()) if top else ("", "", "")


def fragments(name: str) -> list[Path]:
    """Files of ``changelog.d``: one line or list for each change, so that branches do not meet."""
    return sorted((ROOT / "packages" / name / "changelog.d").glob("*.md"))


def collect(name: str) -> int:
    """Put the fragments on top of the newest entry, remove their files, and count them."""
    path = ROOT / "packages" / name / "CHANGELOG.md"
    head, heading, rest = re.split(
        r"^(## .*\n)\n?", path.read_text(encoding="utf-8"), maxsplit=1, flags=re.M
    )
    files = fragments(name)
    texts = [file.read_text(encoding="utf-8").strip() for file in files]
    lines = [text if text.startswith("- ") else f"- {text}" for text in texts]
    path.write_text(f"{head}{heading}\n" + "".join(f"{line}\n" for line in lines) + rest, "utf-8")
    for file in files:
        file.unlink()
    return len(files)


def accepts(requirement: str, version: str) -> bool:
    """Whether ``potstill-core>=a.b,<c.d`` holds for ``version``."""

    def numbers(text: str) -> tuple[int, ...]:
        return tuple(map(int, re.findall(r"\d+", text)[:3]))

    low, high = re.search(r">=([\d.]+)", requirement), re.search(r"<([\d.]+)", requirement)
    return bool(low and high and numbers(low[1]) <= numbers(version) < numbers(high[1]))


def troubles(name: str, tag: str, given: bool) -> list[str]:
    """Why ``name`` cannot be released as ``tag``; empty when it can."""
    found = []
    version, (top, date, text) = project(name)["version"], changelog(name)
    if tag != f"potstill-{name}-v{version}":
        found.append(f"the tag is {tag}, the version of packages/{name} is {version}")
    if top != version:
        found.append(
            f"the top entry of CHANGELOG.md is {top or 'missing'}, the version is {version}"
        )
    if not re.fullmatch(r"\d{4}-\d\d-\d\d", date):
        found.append(f"the top entry of CHANGELOG.md must be dated (YYYY-MM-DD), got {date!r}")
    if fragments(name):
        found.append(f"changelog.d has fragments: python tools/release.py {name} --collect")
    if not text:
        found.append("the top entry of CHANGELOG.md is empty")
    if git("status", "--porcelain"):
        found.append("the tree has changes that are not committed")
    tags = git("tag", "--list", tag)
    if given and git("rev-parse", "HEAD") != git(
        "rev-parse", f"{tag}^{{commit}}" if tags else "HEAD"
    ):
        found.append(f"{tag} is not the commit that is checked out")
    if given and not tags:
        found.append(f"there is no tag {tag}")
    if not given and tags:
        found.append(
            f"{tag} exists already; bump the version: cd packages/{name}; hatch version minor"
        )
    core = project("core")["version"]
    found += [
        f"packages/{other} does not accept potstill-core {core}: {requirement}"
        for other in (PACKAGES if name == "core" else [name])
        for requirement in project(other)["dependencies"]
        if requirement.startswith("potstill-core") and not accepts(requirement, core)
    ]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("package", nargs="?", choices=PACKAGES)
    parser.add_argument("--tag", help="release what this tag names")
    parser.add_argument("--check", action="store_true", help="no build: the quick checks only")
    parser.add_argument("--collect", action="store_true", help="fragments into the changelog")
    options = parser.parse_args()
    if bool(options.package) == bool(options.tag):
        parser.error("give a package or --tag, one of them")
    name = options.package
    if options.tag:
        match = re.fullmatch(r"potstill-(\w+)-v(\d[\w.]*)", options.tag)
        if not match or match[1] not in PACKAGES:
            parser.error(f"a tag is potstill-<package>-v<version>, got {options.tag}")
        name = match[1]
    if options.collect:
        print(f"{collect(name)} fragments of packages/{name} are in its CHANGELOG.md")
        return 0
    tag = options.tag or f"potstill-{name}-v{project(name)['version']}"
    found = troubles(name, tag, given=bool(options.tag))
    if found:
        print("\n".join(f"release: {line}" for line in found))
        return 1
    if not options.check:
        for mode in ([], ["--lowest"]):
            subprocess.run(
                [sys.executable, "tools/check_wheels.py", name, "--tests", *mode],
                cwd=ROOT,
                check=True,
            )
        build = ["hatch", "build", "--clean", str(ROOT / "dist")]
        subprocess.run(build, cwd=ROOT / "packages" / name, check=True)
    print(changelog(name)[2])
    print(f"\nready: git tag {tag} && git push origin {tag}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
