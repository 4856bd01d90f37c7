"""Backends of the hash grid and of marching, chosen by name or by device."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
