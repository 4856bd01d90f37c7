from .enlarge import Result as Result
from .enlarge import upscale as upscale
from .planning import Plan as Plan
from .planning import plan as plan
from .streaming import stream as stream
