"""Local pages over HTTP: limits, timeouts, a bounded queue of work and checks of the caller."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
