"""Pages and filters of the transaction list.

Source: Open Banking Read-Write API Specification v3.1, "Pagination" and "Filtering".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime

from aiohttp import web

from sidecar.sandbox.bank.accounts_api import BankTransaction, instant, transaction_json
from sidecar.sandbox.bank.bank_wire import bad_request, base_url, json_answer

# The zone's "+" may have become a space: many clients forget to escape it in a query.
_DATE_TIME = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2}(?:T[0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]{1,6})?)?)?)"
    r"(?:Z|[-+ ][0-9]{2}:?[0-9]{2})?"
)


def booking_time(request: web.Request, name: str) -> datetime | None:
    """The bound in query parameter ``name``, inclusive; None without it. A date alone is its midnight.

    A time zone in it is ignored, as the standard asks. Raises ``ObieError`` 400 for anything else.
    """
    text = request.query.get(name)
    if text is None:
        return None
    match = _DATE_TIME.fullmatch(text)
    try:
        return datetime.fromisoformat(match.group(1) if match else "").replace(tzinfo=UTC)
    except ValueError:
        message = f"{name} is not a date and time such as 2025-06-01T00:00:00"
        raise bad_request("UK.OBIE.Field.InvalidDate", message, name) from None


def page(request: web.Request, found: Sequence[BankTransaction], size: int) -> web.Response:
    """The page that the query asks for, with links to its neighbours and both ends; 400 beyond the last."""
    last = max(1, -(-len(found) // size))
    text = request.query.get("page", "1")
    number = int(text) if text.isascii() and text.isdigit() and len(text) <= 9 else 0
    if not 1 <= number <= last:
        raise bad_request("UK.OBIE.Field.Invalid", f"page is not a number from 1 to {last}", "page")

    def link(to: int) -> str:
        return f"{base_url(request)}{request.rel_url.update_query(page=str(to))}"

    links = {"Self": link(number), "First": link(1), "Last": link(last)}
    if number > 1:
        links["Prev"] = link(number - 1)
    if number < last:
        links["Next"] = link(number + 1)
    meta: dict[str, object] = {"TotalPages": last}
    if found:
        meta["FirstAvailableDateTime"] = instant(found[-1].booked)
        meta["LastAvailableDateTime"] = instant(found[0].booked)
    shown = found[(number - 1) * size : number * size]
    data = {"Transaction": [transaction_json(transaction) for transaction in shown]}
    return json_answer({"Data": data, "Links": links, "Meta": meta})
