from .folders import convert as convert
from .pretrained import AdaptiveModel as AdaptiveModel
from .pretrained import create_model as create_model
from .pretrained import from_pretrained as from_pretrained
from .pretrained import load_into as load_into
from .pretrained import save_pretrained as save_pretrained
from .programs import export as export
