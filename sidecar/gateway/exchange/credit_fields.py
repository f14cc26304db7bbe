"""What a decided hold looks like to the caller: credit and rate-limit fields, and refusals.

``RateLimit`` and ``RateLimit-Policy`` follow draft-ietf-httpapi-ratelimit-headers-10: structured lists of policies
by name, with ``q`` quota, ``w`` window in seconds, ``qu`` unit, and of what is left, with ``r`` and ``t`` seconds.
"""

from __future__ import annotations

import math
from functools import lru_cache

from sidecar.gateway import errors
from sidecar.gateway.errors import Refusal
from sidecar.ledger.client.outcomes import AccountView, Code, Hold

DAY_S = 86_400
COUNT_MAX = 999_999_999_999_999
"""Largest integer of a structured field (RFC 9651 section 3.3.1)."""
PRICES_MAX = 64
"""Prices of one view for which field lines are kept."""


_UNSEEN_REPEAT = b"X-Credits-Charged: 0\r\nX-Credits-Repeat: true\r\n"
"""Of a repeat while the ledger is away."""


@lru_cache(maxsize=10_000)
def _policies(view: AccountView) -> str:
    items = []
    if view.rate_per_second > 0:
        items.append(f'"rate";q={view.burst};w={_window_s(view)}')
    if view.day_limit > 0:
        items.append(f'"daily";q={view.day_limit};w={DAY_S}')
    return ", ".join(items)


def _window_s(view: AccountView) -> int:
    """Seconds in which the whole burst comes back, at least 1."""
    return max(1, math.ceil(view.burst / view.rate_per_second))


def _rate_fields(hold: Hold, view: AccountView, retry_s: int | None = None, policy: str = "") -> list[tuple[str, str]]:
    limits = []
    if hold.rate_left >= 0:
        wait = retry_s if policy == "rate" and retry_s is not None else (0 if hold.rate_left else 1)
        limits.append(f'"rate";r={hold.rate_left};t={wait}')
    if hold.day_left >= 0:
        limits.append(f'"daily";r={hold.day_left}' + (f";t={retry_s}" if policy == "daily" else ""))
    policies = _policies(view)
    if hold.code == Code.GRANTED and hold.available >= 0 and hold.price > 0 and view.constant_prices:
        # How many more such calls the credit pays for. It does not come back with time, so it has no window.
        calls = hold.available // hold.price
        limits.append(f'"credit";r={min(calls, COUNT_MAX)}')
        policies = ", ".join(filter(None, (policies, _credit_policy(view, hold.price))))
    if not limits:
        return []
    return [("RateLimit-Policy", policies), ("RateLimit", ", ".join(limits))]


def _credit_policy(view: AccountView, price: int) -> str:
    """The quota that the account's credit is at this price."""
    return f'"credit";q={min(max(1, view.ceiling // price), COUNT_MAX)}'


def _usual_lines(view: AccountView, price: int) -> str:
    """The lines after the credit that is left, when credit is the only limit; the same until the price changes. With
    constant prices the count of calls follows them.
    """
    lines = f"X-Credits-Charged: {view.money(price)}\r\nX-Credits-Currency: {view.currency}\r\n"
    if view.constant_prices:
        lines += f'RateLimit-Policy: {_credit_policy(view, price)}\r\nRateLimit: "credit";r='
    if len(view.lines) < PRICES_MAX:
        view.lines[price] = lines
    return lines


def uncharged(hold: Hold) -> Hold:
    """A granted hold as it looks once it is released: nothing is charged, and what it held is there again."""
    other = Hold(hold.account, hold.metric, hold.units, None, lambda _: None)
    other.code, other.view, other.rate_left, other.day_left = hold.code, hold.view, hold.rate_left, hold.day_left
    other.available = hold.available + hold.price if hold.available >= 0 else hold.available
    return other


def granted_fields(hold: Hold, *, credits: bool = True, rate_limit: bool = True) -> bytes:
    """Field lines for the response to a charged request, each with its CRLF."""
    view = hold.view
    if view is None:
        return _UNSEEN_REPEAT if credits and hold.code == Code.REPEAT else b""
    available, price, digits = hold.available, hold.price, view.digits
    if credits and rate_limit and price > 0 and available >= 0 and digits and hold.rate_left < 0 and hold.day_left < 0:
        # The same as below, but for what formats of numbers cost.
        lines = view.lines.get(price) or _usual_lines(view, price)
        scaled = str(available)
        point = len(scaled) - digits
        if point <= 0:
            scaled = scaled.zfill(digits + 1)
            point = 1
        if not view.constant_prices:
            return f"X-Credits-Remaining: {scaled[:point]}.{scaled[point:]}\r\n{lines}".encode()
        calls = available // price
        count = str(calls if calls < COUNT_MAX else COUNT_MAX)
        return f"X-Credits-Remaining: {scaled[:point]}.{scaled[point:]}\r\n{lines}{count}\r\n".encode()
    text = ""
    if credits:
        remaining = "unlimited" if hold.available < 0 else view.money(hold.available)
        text = (
            f"X-Credits-Remaining: {remaining}\r\nX-Credits-Charged: {view.money(hold.price)}\r\n"
            f"X-Credits-Currency: {view.currency}\r\n"
        )
        if hold.code == Code.REPEAT:
            text += "X-Credits-Repeat: true\r\n"
    if rate_limit:
        for name, value in _rate_fields(hold, view):
            text += f"{name}: {value}\r\n"
    return text.encode()


def refusal_of(hold: Hold) -> Refusal:
    """The refusal that a hold's outcome means. Not for GRANTED and REPEAT."""
    view = hold.view
    code = hold.code
    if code == Code.CREDIT:
        if view is None:
            return Refusal(errors.OUT_OF_CREDIT, "The account is out of credit.")
        available, need = view.money(hold.available), view.money(hold.price)
        return Refusal(
            errors.OUT_OF_CREDIT,
            f"The call costs {need} {view.currency}; {available} {view.currency} is available.",
            extra={
                "account": hold.account, "balance": available, "needed": need, "missing": view.money(max(0, hold.price -
                hold.available)), "currency": view.currency, "metric": hold.metric, "units": hold.units,
            },
            headers=(("X-Credits-Remaining", available), ("X-Credits-Currency", view.currency)),
        )  # fmt: skip
    if code in (Code.RATE, Code.DAILY):
        retry_s = max(1, -(-hold.retry_us // 1_000_000))
        policy = "rate" if code == Code.RATE else "daily"
        fields = [("Retry-After", str(retry_s))]
        if view is not None:
            fields += _rate_fields(hold, view, retry_s, policy)
        return Refusal(
            errors.TOO_FAST,
            f"The {'request rate' if policy == 'rate' else 'daily number of requests'} of this account is used up; "
            f"try again in {retry_s} s.",
            extra={"account": hold.account, "policy": policy, "retry_after": retry_s},
            headers=tuple(fields),
        )
    if code == Code.UNPAID:
        retry_s = max(1, -(-hold.retry_us // 1_000_000))
        return Refusal(
            errors.TOO_FAST,
            f"Too many calls of this account were answered and not charged; try again in {retry_s} s.",
            extra={"account": hold.account, "policy": "unpaid", "retry_after": retry_s},
            headers=(("Retry-After", str(retry_s)),),
        )
    if code == Code.MISMATCH:
        return Refusal(errors.KEY_REUSED, "The idempotency key was used for a call with another body.")
    if code == Code.UNDER_WAY:
        return Refusal(
            errors.CALL_UNDER_WAY,
            "The first call under this idempotency key is under way; try again when it is over.",
            headers=(("Retry-After", "1"),),
        )
    if code == Code.SUSPENDED:
        return Refusal(errors.SUSPENDED, extra={"account": hold.account})
    if code == Code.CLOSED:
        return Refusal(errors.CLOSED, "No subscription of the account is active.", extra={"account": hold.account})
    if code == Code.UNPRICED:
        return Refusal(
            errors.NOT_SUBSCRIBED,
            f"The account's plan has no price for {hold.metric}.",
            extra={"account": hold.account},
        )
    if code == Code.UNKNOWN:
        return Refusal(errors.UNIDENTIFIED, "The caller has no account.")
    return Refusal(errors.LEDGER_UNAVAILABLE, headers=(("Retry-After", "1"),))
