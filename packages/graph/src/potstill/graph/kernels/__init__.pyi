from .edges import CONTRASTS as CONTRASTS
from .product import PRODUCTS as PRODUCTS
from .product import product as product
