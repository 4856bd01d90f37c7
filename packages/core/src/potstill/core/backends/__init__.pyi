from .native import native_library as native_library
from .registry import Backend as Backend
from .registry import Backends as Backends
