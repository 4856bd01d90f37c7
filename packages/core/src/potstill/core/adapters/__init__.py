"""Models of other libraries as teachers: by name, with one tensor out, and inputs they know."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
