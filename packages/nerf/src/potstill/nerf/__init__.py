"""Radiance fields of any kind, trained anywhere: hash-grid backends for CPU and CUDA.

Everything is imported on first use, so that ``import potstill.nerf`` costs next to nothing.
"""

from importlib import metadata as _metadata
from typing import Any as _Any

import lazy_loader as _lazy

_attribute, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)


def __getattr__(name: str) -> _Any:
    if name == "__version__":
        return _metadata.version("potstill-nerf")
    return _attribute(name)
