"""Training: the FF-G2M protocol, its recipes, and graphs too large for a full batch."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
