"""Several workers share the cores: each gets one thread, since pools that spin stop each other."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # before anything imports torch; processes inherit it
    os.environ.setdefault("OMP_NUM_THREADS", "1")
