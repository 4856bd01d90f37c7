"""Write the golden curves anew, or say which differ.

hatch run golden           write tests/golden/*.txt; review the difference with git
hatch run golden --check   write nothing; print the first difference of each curve, exit 1
"""

import argparse
import runpy
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "tests" / "golden"


def lines(rows):
    return [" ".join(f"{name}={value:.12g}" for name, value in row.items()) for row in rows]


def first_difference(old, new):
    for before, now in zip(old, new, strict=False):
        if before != now:
            return f"\n  was {before}\n  now {now}"
    return "" if len(old) == len(new) else f"\n  was {len(old)} steps\n  now {len(new)} steps"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 if different")
    options = parser.parse_args()
    programs = runpy.run_path(str(FOLDER / "programs.py"))
    moved = 0
    for name in programs["PROGRAMS"]:
        path = FOLDER / f"{name}.txt"
        new = lines(programs["curve"](name))
        difference = first_difference(path.read_text().splitlines() if path.exists() else [], new)
        moved += bool(difference)
        print(f"{name}: {'differs' + difference if difference else 'as before'}")
        if not options.check:
            path.write_text("\n".join(new) + "\n")
    sys.exit(1 if moved and options.check else 0)


if __name__ == "__main__":
    main()
