from .frequency import HighFrequency as HighFrequency
from .frequency import LowFrequency as LowFrequency
from .frequency import SoftLabel as SoftLabel
from .frequency import match_rows as match_rows
from .peers import HGMD as HGMD
from .peers import KRD as KRD
from .peers import entropy as entropy
from .peers import reliability as reliability
