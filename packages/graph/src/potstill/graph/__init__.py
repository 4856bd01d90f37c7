"""GNN-to-MLP distillation (FF-G2M) and graph-set distillation (Mirage) on PyTorch Geometric."""

import warnings as _warnings
from importlib import metadata as _metadata
from typing import Any as _Any

import lazy_loader as _lazy

# PyG scripts functions when it is imported, and current torch warns of that: nothing to do for us
# or for whoever runs us.
_warnings.filterwarnings("ignore", ".torch.jit.script. is deprecated", FutureWarning)

_attribute, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)


def __getattr__(name: str) -> _Any:
    if name == "__version__":
        return _metadata.version("potstill-graph")
    return _attribute(name)
