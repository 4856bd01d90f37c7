"""A wide network becomes a narrow one.

python docs/examples/NAME_train.py
"""

import tempfile
from pathlib import Path

from potstill.core import Training
from potstill.NAME import Config, Train

with tempfile.TemporaryDirectory() as folder:
    config = Config(out=Path(folder, "run"), training=Training(steps=20, lr=0.01))
    result = Train(config).run(progress=False)
    print(sorted(path.name for path in result.folder.iterdir()))
