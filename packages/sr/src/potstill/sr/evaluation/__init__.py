"""Evaluation on test sets, drawings of what networks change, and times of backends."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
