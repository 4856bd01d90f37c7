"""What a page is answered with: pages, events and refusals; and strict JSON."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, NoReturn

from potstill.core.errors import PotstillError

__all__ = ["SEALED", "Events", "Page", "Refused", "read_json"]

SEALED = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
"""Content security policy of everything that is no page."""


class Refused(PotstillError):
    """A request that is answered with an error.

    Args:
        status: Status of HTTP, 400 to 599.
        message: Problem and remedy; the page shows it.
        retry: Seconds after which the same request may succeed, for status 503.
    """

    def __init__(self, status: int, message: str, retry: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry = retry


class Page:
    """A page of one file, with a policy under which only its own scripts and styles run.

    Args:
        html: The whole page. Scripts and styles are elements without attributes; handlers in
            attributes (``onclick=``) do not run.
    """

    def __init__(self, html: str) -> None:
        self.body = html.encode()
        self.policy = "; ".join(
            [
                SEALED,
                "connect-src 'self'",
                "img-src 'self'",
                f"script-src {_hashes(html, 'script')}",
                f"style-src {_hashes(html, 'style')}",
            ]
        )


@dataclass(frozen=True)
class Events:
    """A stream of server-sent events; closed when the client goes.

    Args:
        values: Values to send, each as JSON.
    """

    values: AsyncIterator[Any]


def read_json(body: bytes) -> Any:
    """Decode JSON that holds neither NaN nor infinity.

    Raises:
        Refused: Not JSON, too deep, or a number that is not finite (status 400).
    """
    try:
        return json.loads(body, parse_constant=_not_finite)
    except RecursionError as error:
        raise Refused(400, "the body must be JSON of some levels, got too many") from error
    except ValueError as error:
        raise Refused(400, f"the body must be JSON: {error}") from error


def _not_finite(name: str) -> NoReturn:
    raise ValueError(f"numbers must be finite, got {name}")


def _hashes(html: str, tag: str) -> str:
    """Sources of a policy: the hash of each inline element, or none."""
    found = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in found]
    return " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
