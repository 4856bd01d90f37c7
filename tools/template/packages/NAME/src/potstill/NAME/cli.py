"""``potstill NAME train``."""

from cyclopts import App

from potstill.core.command import verb
from potstill.NAME.config import Config

__all__ = ["app"]

app = App(name="NAME", help="Distil a wide network into a narrow one.")
verb(app, "train", "potstill.NAME.job:Train", Config)
