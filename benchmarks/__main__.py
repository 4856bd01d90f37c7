"""``potstill bench [domain] [name...] [--check] [--quick] [--list] [--official PATH]``."""

import sys
from pathlib import Path

from potstill.core.measure.bench import main

if __name__ == "__main__":
    sys.exit(main(Path(__file__).parent))
