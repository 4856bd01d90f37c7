"""Networks made ready to run: PyTorch in stages or compiled, ONNX Runtime, OpenVINO."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
