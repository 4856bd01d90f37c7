"""``python -m potstill.core``, also for ``torchrun -m potstill.core <domain> <verb>``."""

import sys

from potstill.core.command.cli import main

if __name__ == "__main__":
    sys.exit(main())
