"""Video: the buffer that streams frames, and the motion that consistency is asked of.

The algorithms, proved on small clips; no text-to-video product.
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
