"""A sample UK Open Banking v3.1 API: what the demo and the tests put behind the gateway.

It is a stand-in with made-up data, not a bank: nothing is authorised and no money moves. Routes:

* ``/open-banking/v3.1/aisp``: accounts, balances, transactions (paged by ``page``, filtered by booking time)
* ``/open-banking/v3.1/pisp``: domestic payment consents and payments, idempotent by ``x-idempotency-key``
* ``/open-banking/health``: always 200
* ``/open-banking/echo[/…]``, ``/open-banking/blob?bytes=N``, ``/open-banking/ws``: for tests

Any request may ask for a fault of its own by header: ``scripted_answers``.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from uuid import uuid4

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from sidecar.sandbox.bank import diagnostics as diagnostics
from sidecar.sandbox.bank.accounts_api import (
    ACCOUNTS,
    Account,
    account_json,
    balance_json,
    transactions_of,
)
from sidecar.sandbox.bank.bank_wire import (
    Detail,
    ObieError,
    bad_request,
    envelope,
    error_answer,
    json_answer,
)
from sidecar.sandbox.bank.pages import booking_time, page
from sidecar.sandbox.bank.payments_api import PaymentsApi
from sidecar.sandbox.bank.scripted_answers import DELAY_MS_MAX, ScriptedAnswer, cut, status_answer

AISP = "/open-banking/v3.1/aisp"
PISP = "/open-banking/v3.1/pisp"
HEALTH = "/open-banking/health"
INTERACTION_ID = "x-fapi-interaction-id"
INTERACTION_ID_CHARS_MAX = 200


@dataclass(frozen=True, slots=True)
class SampleApiConfig:
    """How the sample API behaves. Raises ``ValueError``, naming the field, for a value out of range.

    ``latency_ms`` is waited before every answer, plus up to ``jitter_ms`` more, evenly spread.
    ``error_rates`` are pairs of status and probability; together at most 1. ``scripted_answers`` says whether
    ``x-sandbox-…`` headers are obeyed. Neither latency nor errors touch the health route. ``seed`` fixes
    the draws.
    """

    latency_ms: float = 0.0
    jitter_ms: float = 0.0
    error_rates: tuple[tuple[int, float], ...] = ()
    page_size: int = 10
    scripted_answers: bool = True
    seed: int = 1

    def __post_init__(self) -> None:
        for name, value in (("latency_ms", self.latency_ms), ("jitter_ms", self.jitter_ms)):
            if not 0 <= value <= DELAY_MS_MAX:
                raise ValueError(f"{name}: {value} is not between 0 and {DELAY_MS_MAX}")
        for status, rate in self.error_rates:
            if not 400 <= status <= 599 or not 0 <= rate <= 1:
                raise ValueError(f"error_rates: {status}: {rate} is not an error status with a probability")
        if sum(rate for _, rate in self.error_rates) > 1:
            raise ValueError("error_rates: the probabilities add up to more than 1")
        if not 1 <= self.page_size <= 1000:
            raise ValueError(f"page_size: {self.page_size} is not between 1 and 1000")


class SampleApi:
    """The sample API's state. ``app()`` makes an application of it, a new one for each start of a server.

    ``calls`` counts the requests that arrived, by ``"GET /open-banking/v3.1/aisp/accounts/{AccountId}"``.
    """

    def __init__(self, config: SampleApiConfig | None = None) -> None:
        self.config = config or SampleApiConfig()
        self.calls: Counter[str] = Counter()
        self.payments = PaymentsApi()
        self._random = random.Random(self.config.seed)  # noqa: S311 - draws errors, not keys

    def __repr__(self) -> str:
        return f"SampleApi(calls={self.calls.total()}, {self.payments!r})"

    def app(self) -> web.Application:
        app = web.Application(middlewares=[_middleware(self)])
        get, post = app.router.add_get, app.router.add_post
        get(HEALTH, self._health)
        get(f"{AISP}/accounts", self._accounts)
        get(f"{AISP}/accounts/{{AccountId}}", self._accounts)
        get(f"{AISP}/accounts/{{AccountId}}/balances", self._balances)
        get(f"{AISP}/accounts/{{AccountId}}/transactions", self._transactions)
        get(f"{AISP}/balances", self._balances)
        get(f"{AISP}/transactions", self._transactions)
        post(f"{PISP}/domestic-payment-consents", self.payments.post_consent)
        get(f"{PISP}/domestic-payment-consents/{{ConsentId}}", self.payments.get_consent)
        post(f"{PISP}/domestic-payments", self.payments.post_payment)
        get(f"{PISP}/domestic-payments/{{DomesticPaymentId}}", self.payments.get_payment)
        app.router.add_route("*", "/open-banking/echo", diagnostics.echo)
        app.router.add_route("*", "/open-banking/echo/{tail:.*}", diagnostics.echo)
        get("/open-banking/blob", self._blob)
        get("/open-banking/ws", diagnostics.websocket)
        return app

    async def answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Counts, waits, fails or answers, in that order. Every answer carries the interaction id."""
        resource = request.match_info.route.resource
        self.calls[f"{request.method} {resource.canonical if resource else '(no such route)'}"] += 1
        scripted_answers = ScriptedAnswer()
        try:
            if self.config.scripted_answers:
                scripted_answers = ScriptedAnswer.of(request)
            response = await self._answer(request, handler, scripted_answers)
        except ObieError as error:
            response = error_answer(error)
        except web.HTTPException as error:
            response = _http_error_answer(error)
        if response.prepared:
            return response  # a stream or a WebSocket, which has sent its own header fields
        response.headers[INTERACTION_ID] = _interaction_id(request)
        if scripted_answers.abort and isinstance(response, web.Response):
            return await cut(request, response, scripted_answers.abort)
        return response

    async def _answer(
        self, request: web.Request, handler: Handler, scripted_answers: ScriptedAnswer
    ) -> web.StreamResponse:
        configured = request.path != HEALTH
        delay_ms = float(scripted_answers.delay_ms)
        if configured:
            delay_ms += self.config.latency_ms + self._random.uniform(0, self.config.jitter_ms)
        if delay_ms > 0:
            await asyncio.sleep(delay_ms / 1000)
        status = scripted_answers.status or (self._drawn_error() if configured else 0)
        return status_answer(status) if status else await handler(request)

    def _drawn_error(self) -> int:
        if not self.config.error_rates:
            return 0
        draw = self._random.random()
        for status, rate in self.config.error_rates:
            draw -= rate
            if draw < 0:
                return status
        return 0

    async def _health(self, request: web.Request) -> web.Response:
        return json_answer({"status": "UP"})

    async def _accounts(self, request: web.Request) -> web.Response:
        return envelope(request, {"Account": [account_json(account) for account in _selected(request)]})

    async def _balances(self, request: web.Request) -> web.Response:
        return envelope(request, {"Balance": [balance_json(account) for account in _selected(request)]})

    async def _transactions(self, request: web.Request) -> web.Response:
        begin = booking_time(request, "fromBookingDateTime")
        end = booking_time(request, "toBookingDateTime")
        found = [
            transaction
            for account in _selected(request)
            for transaction in transactions_of(account)
            if (begin is None or begin <= transaction.booked) and (end is None or transaction.booked <= end)
        ]
        found.sort(key=lambda transaction: transaction.booked, reverse=True)
        return page(request, found, self.config.page_size)

    async def _blob(self, request: web.Request) -> web.StreamResponse:
        # A stream cannot be cut by answer(), which sees it when it is over.
        halved = self.config.scripted_answers and ScriptedAnswer.of(request).abort == "1"
        return await diagnostics.blob(request, halved=halved)


def _middleware(api: SampleApi) -> Middleware:
    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        return await api.answer(request, handler)

    return middleware


def _http_error_answer(error: web.HTTPException) -> web.Response:
    """aiohttp's own refusals (no such route, method not allowed, body too large) in the API's dialect."""
    if error.status < 400:
        raise error
    code = "UK.OBIE.Resource.NotFound" if error.status == 404 else "UK.OBIE.UnexpectedError"
    answer = error_answer(ObieError(error.status, Detail(code, error.reason)))
    if "Allow" in error.headers:
        answer.headers["Allow"] = error.headers["Allow"]
    return answer


def _selected(request: web.Request) -> Iterable[Account]:
    """The account in the path, or all without one.

    An unknown id is 400 and not 404: Read-Write API Specification, "400 (Bad Request) v/s 404 (Not Found)".
    """
    wanted = request.match_info.get("AccountId")
    if wanted is None:
        return ACCOUNTS.values()
    if wanted not in ACCOUNTS:
        raise bad_request("UK.OBIE.Resource.NotFound", "there is no such account", "AccountId")
    return (ACCOUNTS[wanted],)


def _interaction_id(request: web.Request) -> str:
    given = request.headers.get(INTERACTION_ID, "")
    fit = 0 < len(given) <= INTERACTION_ID_CHARS_MAX and given.isascii() and given.isprintable()
    return given if fit else str(uuid4())
