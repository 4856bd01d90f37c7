"""Models: GNN teachers and MLP students, and how features spread along edges."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
