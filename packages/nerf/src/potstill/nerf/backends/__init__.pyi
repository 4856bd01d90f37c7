from .registry import ENCODERS as ENCODERS
from .registry import MARCHERS as MARCHERS
