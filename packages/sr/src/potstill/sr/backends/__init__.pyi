from .export import export_onnx as export_onnx
from .precisions import fast_bf16 as fast_bf16
from .runners import BACKENDS as BACKENDS
from .runners import Precision as Precision
from .runners import Runner as Runner
from .runners import make_runner as make_runner
