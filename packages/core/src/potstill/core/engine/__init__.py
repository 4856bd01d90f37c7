"""The engine: `fit`, the only training loop of potstill, and what it is made of."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
