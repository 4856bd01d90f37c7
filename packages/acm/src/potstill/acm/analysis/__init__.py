"""What an adaptive model does: figures, plots, timings, and other budgets."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
