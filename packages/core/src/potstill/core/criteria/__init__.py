"""The criteria: every standard distillation loss, and those of the papers that potstill covers.

A criterion is a pure function ``(student, teacher, *context) -> scalar``; options are keywords, so
``functools.partial(kd, T=2.0)`` is a criterion too. What has state or parameters is a module.
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
