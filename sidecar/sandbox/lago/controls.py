"""The controls of the Lago stand-in under ``/sandbox``, which Lago has not. They want no key.

* ``GET|POST /sandbox/clock``: ``{"now": UNIX_SECONDS}``, forward only; jobs that fall due run.
* ``GET|POST /sandbox/payments``: ``{"mode": "succeed" | "fail" | "hold"}`` for payments of invoices and top-ups.
* ``POST /sandbox/invoices/{id}/pay``: ``{"succeed": true}``, for a payment that was held or had failed.
* ``POST /sandbox/invoices/{id}/regenerate``: a new invoice for a voided one.
* ``GET|POST|DELETE /sandbox/faults``: see ``lago_faults``.
* ``GET|POST /sandbox/webhooks``: the log, and how they travel; ``POST /sandbox/webhooks/{id}/retry``.
* ``GET /sandbox/stats``: requests by endpoint.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import datetime
from typing import Protocol

from sidecar.sandbox.lago.clock import Clock, ClockError
from sidecar.sandbox.lago.config import LagoConfig
from sidecar.sandbox.lago.invoices import InvoicesApi
from sidecar.sandbox.lago.lago_faults import FaultError, LagoFaults
from sidecar.sandbox.lago.lago_store import Store
from sidecar.sandbox.lago.lago_wire import Call, Json, bad_request
from sidecar.sandbox.lago.payments import Payments
from sidecar.sandbox.lago.webhooks import Webhooks

#: What lies between is worked through job by job, which takes time.
MOVE_S_MAX = 800 * 86_400
MARKS_MAX = 2_000_000
MODES = ("succeed", "fail", "hold")


class Controlled(Protocol):
    """What the controls show and change of a stand-in."""

    config: LagoConfig
    clock: Clock
    store: Store
    faults: LagoFaults
    requests: Counter[str]
    webhooks: Webhooks
    payments: Payments

    def advance_to(self, when: datetime | float) -> None: ...


class Controls:
    def __init__(self, lago: Controlled, invoices: InvoicesApi) -> None:
        self._lago = lago
        self._invoices = invoices

    def routes(self) -> list[tuple[str, str, Callable[[Call], object]]]:
        return [
            ("GET", "/clock", self._show_clock),
            ("POST", "/clock", self._move_clock),
            ("GET", "/payments", self._show_payments),
            ("POST", "/payments", self._switch_payments),
            ("POST", "/invoices/{lago_id}/pay", self._invoices.pay),
            ("POST", "/invoices/{lago_id}/regenerate", self._invoices.regenerate),
            ("GET", "/faults", self._show_faults),
            ("POST", "/faults", self._replace_faults),
            ("DELETE", "/faults", self._clear_faults),
            ("GET", "/webhooks", self._lago.webhooks.show),
            ("POST", "/webhooks", self._lago.webhooks.replace),
            ("POST", "/webhooks/{lago_id}/retry", self._lago.webhooks.retry),
            ("GET", "/stats", self._stats),
        ]

    def _show_clock(self, call: Call) -> Json:
        return {"now": self._lago.clock.unix_s()}

    def _move_clock(self, call: Call) -> Json:
        now = call.body.get("now") if isinstance(call.body, dict) else None
        if isinstance(now, bool) or not isinstance(now, int | float):
            raise bad_request("now must be a number of Unix seconds")
        move_s = now - self._lago.clock.unix_s()
        period_s = self._lago.config.period_s
        if move_s > MOVE_S_MAX or (period_s is not None and move_s / period_s > MARKS_MAX):
            raise bad_request("now is too far ahead")
        try:
            self._lago.advance_to(now)
        except ClockError as error:
            raise bad_request(str(error)) from None
        return self._show_clock(call)

    def _show_payments(self, call: Call) -> Json:
        return {"mode": self._lago.payments.mode}

    def _switch_payments(self, call: Call) -> Json:
        mode = call.body.get("mode") if isinstance(call.body, dict) else None
        if mode not in MODES:
            raise bad_request(f"mode must be one of {', '.join(MODES)}")
        self._lago.payments.mode = mode
        return self._show_payments(call)

    def _show_faults(self, call: Call) -> Json:
        return self._lago.faults.as_json()

    def _replace_faults(self, call: Call) -> Json:
        try:
            self._lago.faults.replace(call.body)
        except FaultError as error:
            raise bad_request(str(error)) from None
        return self._lago.faults.as_json()

    def _clear_faults(self, call: Call) -> Json:
        self._lago.faults.clear()
        return self._lago.faults.as_json()

    def _stats(self, call: Call) -> Json:
        store = self._lago.store
        return {
            "requests": dict(sorted(self._lago.requests.items())),
            "events": len(store.events),
            "invoices": len(store.invoices),
            "webhooks": len(self._lago.webhooks.log),
            "faults_struck": self._lago.faults.struck,
        }
