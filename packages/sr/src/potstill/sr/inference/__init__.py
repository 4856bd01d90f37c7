"""Enlarging images of any kind and size: whole, or in tiles that share their statistics."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
