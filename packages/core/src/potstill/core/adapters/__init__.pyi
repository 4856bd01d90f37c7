from .output import TensorOutput as TensorOutput
from .output import tensor_of as tensor_of
from .pretrained import MissingModelError as MissingModelError
from .pretrained import Pretrained as Pretrained
from .renormalized import Renormalized as Renormalized
from .teachers import Loaded as Loaded
from .teachers import load_teacher as load_teacher
from .teachers import statistics_of as statistics_of
