from .drawings import seam_figure as seam_figure
from .drawings import strip as strip
from .scores import PUBLISHED as PUBLISHED
from .scores import Row as Row
from .scores import evaluate as evaluate
from .scores import find_pairs as find_pairs
from .scores import find_set as find_set
from .scores import mean as mean
