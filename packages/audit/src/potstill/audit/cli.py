"""``potstill audit inspect | backdoor | privacy``."""

from cyclopts import App

from potstill.audit.config import BackdoorConfig, InspectConfig, PrivacyConfig
from potstill.core.command import verb

__all__ = ["app"]

app = App(
    name="audit",
    help="Find out what a teacher passes on, and what a student gives away.",
)
verb(app, "inspect", "potstill.audit.jobs:Inspect", InspectConfig)
verb(app, "backdoor", "potstill.audit.jobs:Backdoor", BackdoorConfig)
verb(app, "privacy", "potstill.audit.jobs:Privacy", PrivacyConfig)
