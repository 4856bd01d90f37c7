"""A folder of images becomes a small one that trains nearly as well."""

from importlib import metadata as _metadata
from typing import Any as _Any

import lazy_loader as _lazy

_attribute, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)


def __getattr__(name: str) -> _Any:
    if name == "__version__":
        return _metadata.version("potstill-condense")
    return _attribute(name)
