"""Methods of HTTP: their names, what metrics, events and logs call them, and the fields in which a client can name
another method or path than its request line."""

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
METHOD_LABELS: Final[dict[bytes, str]] = {method.encode(): method for method in METHODS}
"""What metrics, events and logs call a method; `OTHER_METHOD` where it is missing."""
NEVER_FORWARDED: Final = ("TRACE", "CONNECT")
"""The parser answers these with 501."""

METHOD_OVERRIDES: Final = (b"x-http-method-override", b"x-method-override", b"x-http-method")
"""Frameworks (Rack, Express's method-override, ASP.NET) take the method from these instead of the request line."""
PATH_OVERRIDES: Final = (b"x-original-url", b"x-rewrite-url")
"""Frameworks (Symfony, Zend, IIS's URL Rewrite) take the path from these. They are never forwarded."""
PREFLIGHT: Final = (b"origin", b"access-control-request-method")
"""Fields of a CORS preflight (Fetch standard, "CORS-preflight request")."""
