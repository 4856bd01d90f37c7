"""All demos for a GPU, or some: ``python -m apps.cuda --out runs/cuda nerf graph``."""

import argparse
from importlib import import_module
from pathlib import Path

DOMAINS = ("nerf", "graph", "mae", "sr", "acm", "flow", "condense")


def main() -> None:
    """Run the demos one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("domains", nargs="*", help=f"of {', '.join(DOMAINS)}; all by default")
    parser.add_argument("--out", type=Path, default=Path("runs/cuda"))
    parser.add_argument("--small", action="store_true", help="seconds on a CPU")
    options = parser.parse_args()
    for domain in options.domains or DOMAINS:
        small = ["--small"] if options.small else []
        import_module(f"apps.{domain}.cuda").main(["--out", str(options.out / domain), *small])


if __name__ == "__main__":
    main()
