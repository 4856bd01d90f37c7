"""``python -m benchmarks <domain|all> [name...] [--check] [--quick] [--list]``, from the root."""

import sys
from pathlib import Path

from potstill.core.bench import main

if __name__ == "__main__":
    sys.exit(main(Path(__file__).parent))
