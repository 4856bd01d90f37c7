from .config import Config as Config
from .job import NetToNet as NetToNet
from .job import Train as Train
from .models import Network as Network
