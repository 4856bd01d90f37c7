"""The main job on embedded data: a graph neural network becomes a network without a graph."""

import sys

from potstill.core.cli import main

if __name__ == "__main__":
    sys.exit(main(["graph", "distill", *sys.argv[1:]]))
