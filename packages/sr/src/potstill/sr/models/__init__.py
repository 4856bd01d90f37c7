"""The IMDN family."""

from potstill.sr.models.base import Upscaler
from potstill.sr.models.challenge import IMDN_RTC, IMDN_RTE
from potstill.sr.models.imdn import IMDN, IMDN_AS

__all__ = ["IMDN", "IMDN_AS", "IMDN_RTC", "IMDN_RTE", "Upscaler"]
