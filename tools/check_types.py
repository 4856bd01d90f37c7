"""Check types with mypy, which must be told where each package begins.

hatch run types                     all packages; what else mypy takes goes after it
"""

import os
import sys

from mypy.main import main
from workspace import ROOT, SOURCES

if __name__ == "__main__":
    os.chdir(ROOT)
    os.environ["MYPYPATH"] = os.pathsep.join(SOURCES)
    main(args=sys.argv[1:], clean_exit=True)
