"""Names of methods, and what metrics, events and logs call them."""

from __future__ import annotations

from typing import Final

METHODS: Final = (
    "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "QUERY", "ACL", "BASELINE-CONTROL",
    "BIND", "CHECKIN", "CHECKOUT", "COPY", "LABEL", "LINK", "LOCK", "MERGE", "MKACTIVITY", "MKCALENDAR", "MKCOL",
    "MKREDIRECTREF", "MKWORKSPACE", "MOVE", "ORDERPATCH", "PROPFIND", "PROPPATCH", "REBIND", "REPORT", "SEARCH",
    "UNBIND", "UNCHECKOUT", "UNLINK", "UNLOCK", "UPDATE", "UPDATEREDIRECTREF", "VERSION-CONTROL",
)  # fmt: skip
"""IANA's registry of HTTP methods, the usual ones first."""
USUAL_METHODS: Final = 7
OTHER_METHOD: Final = "other"
_LABELS: Final[dict[bytes, str]] = {method.encode(): method for method in METHODS}


def method_label(method: bytes) -> str:
    """A registered method's own name; ``other`` for what callers make up."""
    return _LABELS.get(method) or OTHER_METHOD
