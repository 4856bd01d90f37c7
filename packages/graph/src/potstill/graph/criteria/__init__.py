"""Criteria on nodes and edges: FF-G2M, and its peers."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
