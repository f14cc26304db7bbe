"""What the admin side answers: health, metrics, status, accounts. Its servers: `admin_server`, `admin_web`."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import parse_qs, unquote

import orjson
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from sidecar.app.data_plane import Health
from sidecar.app.settings import AdminSettings
from sidecar.basics.logger import get_logger
from sidecar.ledger.accounts.loader import LedgerUnavailable

ACCOUNTS_PAGE_MAX = 500
QUERY_FIELDS_MAX = 16
_ACCOUNTS = "/v1/accounts"
_OPEN = frozenset({"/livez", "/readyz"})
ALLOWED = ("GET", "HEAD")
"""Methods of everything but webhooks."""
log = get_logger("sidecar.admin")


class Accounts(Protocol):
    """What is shown of accounts."""

    async def page(self, after: str, limit: int) -> list[str]: ...

    async def detail(self, account: str) -> dict[str, Any] | None: ...


@dataclass(frozen=True, slots=True)
class Answer:
    """``headers`` are those besides Content-Type and Content-Length."""

    status: int
    body: bytes
    content_type: str
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class AdminEndpoints:
    """One process's, or several processes' through the functions that it is given.

    Attributes:
        health: whether new requests can be served.
        metrics: the exposition text.
        status: what ``/v1/status`` shows.
        process: what ``/v1/process`` shows: what is known of the process without asking Valkey.
        accounts: None where there is no ledger to ask.
        token: the bearer token that all but health wants, or None.
    """

    health: Callable[[], Awaitable[Health]]
    metrics: Callable[[], Awaitable[bytes]]
    status: Callable[[], Awaitable[Mapping[str, Any]]]
    process: Callable[[], Awaitable[Mapping[str, Any]]]
    accounts: Accounts | None
    token: str | None

    async def answer(self, method: str, path: str, query: str, authorization: str) -> Answer:
        """The answer to a request, whatever happens meanwhile.

        Args:
            path: as received, still percent-encoded.
            query: without the question mark.
            authorization: value of the field Authorization, "" without one.
        """
        if self.token is not None and path not in _OPEN and not _shows(self.token, authorization):
            return problem(401, "Send the bearer token.", (("WWW-Authenticate", 'Bearer realm="sidecar admin"'),))
        try:
            found = await self._find(path, query, only_look=method not in ALLOWED)
        except LedgerUnavailable as error:
            message = str(error)
            return problem(503, f"{message[0].upper()}{message[1:]}.")
        except Exception:  # whatever it is, who watches needs an answer, and the next one too
            log.exception("an admin request failed", path=path[:200])
            return problem(500, "The request failed. See the log.")
        if found is None:
            return problem(404, "There is nothing here.")
        if method not in ALLOWED:
            return problem(405, "Use GET or HEAD.", (("Allow", ", ".join(ALLOWED)),))
        return found

    async def _find(self, path: str, query: str, *, only_look: bool) -> Answer | None:
        """None: there is no such resource. ``only_look``: whether there is one is all that is asked."""
        account = path.removeprefix(_ACCOUNTS + "/") if path.startswith(_ACCOUNTS + "/") else ""
        here = path in ("/livez", "/readyz", "/metrics", "/v1/status", "/v1/process") or (
            self.accounts is not None and (path == _ACCOUNTS or (account != "" and "/" not in account))
        )
        if only_look or not here:
            return _NOTHING if here else None
        if path == "/livez":
            return text(200, "ok")
        if path == "/readyz":
            health = await self.health()
            return text(200, health.why or "ok") if health.ready else text(503, health.why)
        if path == "/metrics":
            return Answer(200, await self.metrics(), CONTENT_TYPE_LATEST)
        if path == "/v1/status":
            return _json(await self.status())
        if path == "/v1/process":
            return _json(await self.process())
        assert self.accounts is not None
        if path == _ACCOUNTS:
            return await _page(self.accounts, query)
        name = unquote(account)
        detail = await self.accounts.detail(name)
        return problem(404, f"There is no account {name[:128]!r}.") if detail is None else _json(detail)


async def _page(accounts: Accounts, query: str) -> Answer:
    try:
        fields = parse_qs(query, keep_blank_values=True, max_num_fields=QUERY_FIELDS_MAX)
    except ValueError:
        return problem(400, f"The query has more than {QUERY_FIELDS_MAX} fields.")
    limit = fields.get("limit", ["100"])[0]
    if not (limit.isascii() and limit.isdecimal() and len(limit) < 10 and 1 <= int(limit) <= ACCOUNTS_PAGE_MAX):
        return problem(400, f"limit: {limit[:20]!r} is not between 1 and {ACCOUNTS_PAGE_MAX}.")
    ids = await accounts.page(fields.get("after", [""])[0], int(limit))
    return _json({"accounts": ids, "next_after": ids[-1] if len(ids) == int(limit) else None})


def _shows(token: str, authorization: str) -> bool:
    scheme, _, shown = authorization.partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(shown.strip().encode(), token.encode())


def admin_token(settings: AdminSettings, socket_path: str | None) -> str | None:
    """The bearer token to ask for. A worker's socket needs none: it lies in a directory that only its parent can enter,
    and the parent asks for the token."""
    wanted = settings.token if socket_path is None else None
    return wanted.get_secret_value() if wanted is not None else None


def text(status: int, line: str) -> Answer:
    """One line, for people and for what looks at health."""
    return Answer(status, f"{line}\n".encode(), "text/plain; charset=utf-8")


def problem(status: int, detail: str, headers: tuple[tuple[str, str], ...] = ()) -> Answer:
    """An error (RFC 9457)."""
    body = orjson.dumps({"type": "about:blank", "status": status, "detail": detail})
    return Answer(status, body, "application/problem+json", headers)


def _json(document: Mapping[str, Any]) -> Answer:
    body = orjson.dumps(document, default=str, option=orjson.OPT_NON_STR_KEYS)
    return Answer(200, body, "application/json")


_NOTHING = Answer(204, b"", "")
