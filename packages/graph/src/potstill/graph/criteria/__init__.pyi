from .frequency import HighFrequency as HighFrequency
from .frequency import LowFrequency as LowFrequency
from .frequency import MatchValues as MatchValues
from .frequency import SoftLabel as SoftLabel
from .peers import HGMD as HGMD
from .peers import KRD as KRD
from .peers import reliability as reliability
