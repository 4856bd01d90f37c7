from .reply import Events as Events
from .reply import Page as Page
from .reply import Refused as Refused
from .reply import read_json as read_json
from .server import Server as Server
from .work import Cancelled as Cancelled
from .work import Piece as Piece
from .work import Work as Work
