"""Images: read from folders and zip files, held in memory, and drawn as batches."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
