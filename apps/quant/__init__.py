"""Students of several domains at 8, 4 and 2 bits: ``python -m apps.quant``."""
