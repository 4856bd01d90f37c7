"""The adaptive module: its gate, what it costs, and surgery that puts it into a model."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
