"""Training schemes: small compositions of teacher, student, objective and distiller.

None has a loop of its own: each is a distiller for `potstill.core.fit`, a teacher, a criterion, or
a function that prepares data or calls a training function that you pass.
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
