"""Images: reading and writing every kind, MATLAB's bicubic, and how close two of them are."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
