"""Adaptive models on disk: folders, their dense teachers, and exported programs."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
