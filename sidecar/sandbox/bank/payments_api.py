"""Domestic payment consents and payments of the sample bank, with the idempotency that the standard asks for.

Source: Open Banking Payment Initiation API v3.1 (OBWriteDomesticConsent, OBWriteDomestic), "Idempotency".
There is no customer to ask, so a consent is authorised as soon as it has been created. A payment moves no
balance.
"""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

import orjson
from aiohttp import web

from sidecar.sandbox.bank.accounts_api import instant
from sidecar.sandbox.bank.bank_wire import (
    JSON_TYPE,
    Detail,
    ObieError,
    bad_request,
    base_url,
    json_answer,
)

IDEMPOTENCY_KEY = "x-idempotency-key"
#: Max40Text in the standard.
IDEMPOTENCY_KEY_CHARS_MAX = 40
#: Payments are small documents; the standard's largest fields add up to less than a tenth of this.
BODY_BYTES_MAX = 64 * 1024
#: How many consents, payments and remembered keys are kept; the oldest go first.
KEPT_MAX = 10_000

K = TypeVar("K")
V = TypeVar("V")

_AMOUNT = re.compile(r"[0-9]{1,13}\.[0-9]{1,5}")
_CURRENCY = re.compile(r"[A-Z]{3}")


@dataclass(slots=True)
class Consent:
    id: str
    created: datetime
    initiation: dict[str, object]
    risk: dict[str, object]
    status: str = "Authorised"


@dataclass(frozen=True, slots=True)
class Payment:
    id: str
    consent_id: str
    created: datetime
    initiation: dict[str, object]


@dataclass(frozen=True, slots=True)
class Remembered:
    """What an idempotency key was used for, and what was answered."""

    digest: bytes
    status: int
    body: bytes


class PaymentsApi:
    """The pisp resources. State lives in memory and belongs to this object, not to a running server."""

    def __init__(self, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._now = now
        self._consents: OrderedDict[str, Consent] = OrderedDict()
        self._payments: OrderedDict[str, Payment] = OrderedDict()
        self._remembered: OrderedDict[tuple[str, str], Remembered] = OrderedDict()
        self._created = 0

    def __repr__(self) -> str:
        return f"Payments(consents={len(self._consents)}, payments={len(self._payments)})"

    @property
    def payments(self) -> int:
        """How many payments have been made and are still remembered."""
        return len(self._payments)

    async def post_consent(self, request: web.Request) -> web.Response:
        return await self._once(request, self._create_consent)

    async def post_payment(self, request: web.Request) -> web.Response:
        return await self._once(request, self._create_payment)

    async def get_consent(self, request: web.Request) -> web.Response:
        return self._consent_answer(request, self._consent(request.match_info["ConsentId"]), status=200)

    async def get_payment(self, request: web.Request) -> web.Response:
        payment = self._payments.get(request.match_info["DomesticPaymentId"])
        if payment is None:
            raise bad_request("UK.OBIE.Resource.NotFound", "there is no such payment", "DomesticPaymentId")
        return self._payment_answer(request, payment, status=200)

    async def _once(
        self, request: web.Request, create: Callable[[web.Request, dict[str, object]], web.Response]
    ) -> web.Response:
        """Runs ``create`` for a new idempotency key; answers as before for a known key with the same body."""
        key = request.headers.get(IDEMPOTENCY_KEY, "")
        if len(key) > 2 and key[0] == key[-1] == '"':
            key = key[1:-1]  # as the gateway reads it
        if not key.strip():
            raise bad_request("UK.OBIE.Header.Missing", f"{IDEMPOTENCY_KEY} is required on POST", IDEMPOTENCY_KEY)
        if len(key) > IDEMPOTENCY_KEY_CHARS_MAX:
            message = f"{IDEMPOTENCY_KEY} is longer than {IDEMPOTENCY_KEY_CHARS_MAX} characters"
            raise bad_request("UK.OBIE.Header.Invalid", message, IDEMPOTENCY_KEY)
        raw = await _read(request)
        digest = hashlib.sha256(raw).digest()
        # Nothing awaits from here on, so two requests with one key cannot both be the first.
        known = self._remembered.get((request.path, key))
        if known is not None:
            if known.digest != digest:
                message = f"{IDEMPOTENCY_KEY} was used before with another body"
                raise bad_request("UK.OBIE.Header.Invalid", message, IDEMPOTENCY_KEY)
            return web.Response(body=known.body, status=known.status, headers={"Content-Type": JSON_TYPE})
        answer = create(request, _parse(raw))
        assert isinstance(answer.body, bytes)
        _keep(self._remembered, (request.path, key), Remembered(digest, answer.status, answer.body))
        return answer

    def _create_consent(self, request: web.Request, body: dict[str, object]) -> web.Response:
        initiation = _initiation(body)
        risk = body.get("Risk")
        if not isinstance(risk, dict):
            raise bad_request("UK.OBIE.Field.Missing", "Risk is missing or not an object", "Risk")
        self._created += 1
        consent = Consent(f"pdc-{self._created:06d}", self._now(), initiation, risk)
        answer = self._consent_answer(request, consent, status=201, shown="AwaitingAuthorisation")
        _keep(self._consents, consent.id, consent)
        return answer

    def _create_payment(self, request: web.Request, body: dict[str, object]) -> web.Response:
        initiation = _initiation(body)
        consent_id = _object(body, "Data").get("ConsentId")
        if not isinstance(consent_id, str):
            raise bad_request("UK.OBIE.Field.Missing", "Data.ConsentId is missing", "Data.ConsentId")
        consent = self._consent(consent_id)
        if consent.status != "Authorised":
            message = f"consent {consent.id} is {consent.status}"
            raise bad_request("UK.OBIE.Resource.InvalidConsentStatus", message, "Data.ConsentId")
        if consent.initiation != initiation:
            message = f"Initiation differs from that of consent {consent.id}"
            raise bad_request("UK.OBIE.Resource.ConsentMismatch", message, "Data.Initiation")
        self._created += 1
        payment = Payment(f"pd-{self._created:06d}", consent.id, self._now(), initiation)
        answer = self._payment_answer(request, payment, status=201)
        consent.status = "Consumed"
        _keep(self._payments, payment.id, payment)
        return answer

    def _consent(self, consent_id: str) -> Consent:
        consent = self._consents.get(consent_id)
        if consent is None:
            raise bad_request("UK.OBIE.Resource.NotFound", "there is no such consent", "ConsentId")
        return consent

    def _consent_answer(self, request: web.Request, consent: Consent, *, status: int, shown: str = "") -> web.Response:
        data = {
            "ConsentId": consent.id,
            "CreationDateTime": instant(consent.created),
            "Status": shown or consent.status,
            "StatusUpdateDateTime": instant(consent.created),
            "Initiation": consent.initiation,
        }
        path = f"{base_url(request)}/open-banking/v3.1/pisp/domestic-payment-consents/{consent.id}"
        body = {"Data": data, "Risk": consent.risk, "Links": {"Self": path}, "Meta": {"TotalPages": 1}}
        return json_answer(body, status)

    def _payment_answer(self, request: web.Request, payment: Payment, *, status: int) -> web.Response:
        data = {
            "DomesticPaymentId": payment.id,
            "ConsentId": payment.consent_id,
            "CreationDateTime": instant(payment.created),
            "Status": "AcceptedSettlementInProcess",
            "StatusUpdateDateTime": instant(payment.created),
            "Initiation": payment.initiation,
        }
        path = f"{base_url(request)}/open-banking/v3.1/pisp/domestic-payments/{payment.id}"
        return json_answer({"Data": data, "Links": {"Self": path}, "Meta": {"TotalPages": 1}}, status)


async def _read(request: web.Request) -> bytes:
    if request.content_type != "application/json":
        detail = Detail("UK.OBIE.Header.Invalid", "Content-Type must be application/json", "Content-Type")
        raise ObieError(415, detail)
    # The application's client_max_size is far above BODY_BYTES_MAX, so the limit is kept here.
    raw = bytearray()
    async for chunk in request.content.iter_any():
        raw += chunk
        if len(raw) > BODY_BYTES_MAX:
            detail = Detail("UK.OBIE.Field.Invalid", f"the body is larger than {BODY_BYTES_MAX} bytes")
            raise ObieError(413, detail)
    return bytes(raw)


def _parse(raw: bytes) -> dict[str, object]:
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        message = f"the body is not JSON: {error.msg} at byte {error.pos}"
        raise bad_request("UK.OBIE.Resource.InvalidFormat", message) from None
    if not isinstance(body, dict):
        raise bad_request("UK.OBIE.Resource.InvalidFormat", "the body is not a JSON object")
    return body


def _object(parent: dict[str, object], *path: str) -> dict[str, object]:
    value: object = parent
    for depth, name in enumerate(path):
        value = value.get(name) if isinstance(value, dict) else None
        if not isinstance(value, dict):
            where = ".".join(path[: depth + 1])
            raise bad_request("UK.OBIE.Field.Missing", f"{where} is missing or not an object", where)
    assert isinstance(value, dict)
    return value


def _initiation(body: dict[str, object]) -> dict[str, object]:
    """``Data.Initiation``, with the fields present that the standard makes mandatory."""
    initiation = _object(body, "Data", "Initiation")
    amount = _object(body, "Data", "Initiation", "InstructedAmount")
    creditor = _object(body, "Data", "Initiation", "CreditorAccount")
    where = "Data.Initiation"
    _text(initiation, "InstructionIdentification", where, chars_max=35)
    _text(initiation, "EndToEndIdentification", where, chars_max=35)
    _text(creditor, "SchemeName", f"{where}.CreditorAccount", chars_max=40)
    _text(creditor, "Identification", f"{where}.CreditorAccount", chars_max=256)
    _text(creditor, "Name", f"{where}.CreditorAccount", chars_max=350)
    value = _text(amount, "Amount", f"{where}.InstructedAmount", chars_max=19)
    currency = _text(amount, "Currency", f"{where}.InstructedAmount", chars_max=3)
    if not _AMOUNT.fullmatch(value):
        path = f"{where}.InstructedAmount.Amount"
        raise bad_request("UK.OBIE.Field.Invalid", f'{path} is not an amount such as "10.00"', path)
    if not _CURRENCY.fullmatch(currency):
        path = f"{where}.InstructedAmount.Currency"
        raise bad_request("UK.OBIE.Unsupported.Currency", f"{path} is not a currency code", path)
    return initiation


def _text(parent: dict[str, object], name: str, where: str, *, chars_max: int) -> str:
    value, path = parent.get(name), f"{where}.{name}"
    if value is None:
        raise bad_request("UK.OBIE.Field.Missing", f"{path} is missing", path)
    if not isinstance(value, str) or not 1 <= len(value) <= chars_max:
        message = f"{path} is not a text of 1 to {chars_max} characters"
        raise bad_request("UK.OBIE.Field.Invalid", message, path)
    return value


def _keep(kept: OrderedDict[K, V], key: K, value: V) -> None:
    kept[key] = value
    if len(kept) > KEPT_MAX:
        kept.popitem(last=False)
