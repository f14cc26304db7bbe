"""What is refused, how, and what a refusal looks like."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from sidecar.gateway.http1.limits import Limits
from sidecar.gateway.routes import Route
from sidecar.ledger.accounts.account_spec import RateLimits, Status
from sidecar.ledger.pricing.price_tables import MAX_INT, Graduated, Package, PriceTable, Standard, Tier, Volume
from tests.integration.gateway.api import echo
from tests.integration.gateway.rig import HOST, KEY, Rig, account, chunked, get, post, route
from tests.integration.gateway.wire import Message

CHUNKED = b"Transfer-Encoding: chunked\r\n"
HEAD = b"POST /p HTTP/1.1\r\n" + HOST + KEY

MALFORMED: dict[str, tuple[bytes, int]] = {
    "length and chunked": (HEAD + b"Content-Length: 3\r\n" + CHUNKED + b"\r\n0\r\n\r\n", 400),
    "two lengths": (HEAD + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc", 400),
    "a signed length": (HEAD + b"Content-Length: +3\r\n\r\nabc", 400),
    "a hexadecimal length": (HEAD + b"Content-Length: 0x3\r\n\r\nabc", 400),
    "a coding that hides": (HEAD + b"Transfer-Encoding: xchunked\r\n\r\n", 501),
    "chunked twice": (HEAD + b"Transfer-Encoding: chunked, chunked\r\n\r\n", 400),
    "chunked in HTTP/1.0": (HEAD.replace(b"1.1", b"1.0") + CHUNKED + b"\r\n0\r\n\r\n", 400),
    "space before the colon": (HEAD + b"Content-Length : 3\r\n\r\nabc", 400),
    "a folded line": (HEAD + b"X-A: b\r\n c\r\n\r\n", 400),
    "bare line feeds": (b"GET /p HTTP/1.1\n" + HOST + b"\n", 400),
    "a bare carriage return": (HEAD + b"X-A: b\rc\r\n\r\n", 400),
    "a NUL": (HEAD + b"X-A: b\0c\r\n\r\n", 400),
    "no host": (b"GET /p HTTP/1.1\r\n\r\n", 400),
    "two hosts": (b"GET /p HTTP/1.1\r\n" + HOST + HOST + b"\r\n", 400),
    "another host in the target": (b"GET http://other/p HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "dot segments": (b"GET /a/../p HTTP/1.1\r\n" + HOST + KEY + b"\r\n", 400),
    "an encoded slash": (b"GET /a%2fp HTTP/1.1\r\n" + HOST + KEY + b"\r\n", 400),
    "CONNECT": (b"CONNECT api:443 HTTP/1.1\r\nHost: api:443\r\n\r\n", 501),
    "TRACE": (b"TRACE / HTTP/1.1\r\n" + HOST + b"\r\n", 501),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "a TLS handshake": (b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03\r\n\r\n", 400),
    "an unknown expectation": (HEAD + b"Expect: 200-ok\r\n\r\n", 417),
    "an identity with an underscore": (HEAD + b"X_API_Key: stolen\r\n\r\n", 400),
    "a connection option that hides a field": (HEAD + b"Connection: x-api-key\r\n\r\n", 400),
    "a long target": (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", 414),
    "a long method": (b"M" * 40 + b" / HTTP/1.1\r\n" + HOST + b"\r\n", 501),
    "a large head": (HEAD + b"X-A: " + b"a" * 40_000 + b"\r\n\r\n", 431),
    "many fields": (HEAD + b"".join(b"X-%d: a\r\n" % i for i in range(101)) + b"\r\n", 431),
    "a bad chunk size": (HEAD + CHUNKED + b"\r\nxyz\r\n", 400),
    "a chunk without its end": (HEAD + CHUNKED + b"\r\n3\r\nabcd\r\n0\r\n\r\n", 400),
    "a length beyond the limit": (HEAD + b"Content-Length: 1001\r\n\r\n", 413),
    "chunks beyond the limit": (HEAD + CHUNKED + b"\r\n" + chunked(bytes(600), bytes(600)), 413),
}
LIMITS = Limits(body_bytes_max=1000)


@pytest.mark.parametrize(("sent", "status"), MALFORMED.values(), ids=MALFORMED.keys())
async def test_what_two_parsers_could_read_differently_is_refused_and_ends_the_connection(
    gateway: Any, sent: bytes, status: int
) -> None:
    async with gateway(echo, limits=LIMITS) as rig:
        wire = await rig.connect()
        await wire.send(sent + get(b"/smuggled"))
        answer = await wire.response(b"GET")
        assert (answer.status, answer.get(b"Connection")) == (status, b"close")
        assert json.loads(answer.body)["status"] == status
        assert await wire.ended() == b""
        assert rig.api.requests == []
        assert await rig.charged() == []


async def test_a_body_of_just_the_limit_passes(gateway: Any) -> None:
    async with gateway(echo, limits=LIMITS) as rig:
        assert (await rig.ask(post(bytes(1000)))).status == 200
        assert (await rig.ask(HEAD + CHUNKED + b"\r\n" + chunked(bytes(400), bytes(600)))).status == 200


async def test_a_refusal_is_not_lost_on_a_client_that_is_still_sending(gateway: Any) -> None:
    async with gateway(echo) as rig:
        wire = await rig.connect()
        await wire.send(get(b"/p", b"Content-Length: 8000000", key=b"", method=b"POST"))
        for _ in range(8):
            await wire.send(bytes(1_000_000))
        assert (await wire.response()).status == 401
        assert await wire.ended() == b""


# Dialects


async def refusals(rig: Rig) -> list[tuple[int, Message]]:
    """One of each kind, with the status that it should have."""
    wanted = [
        (401, get(key=b"")), (402, get(key=b"X-API-Key: this-is-the-key-of-poor\r\n")), (404, get(b"/secret")),
        (403, get(key=b"X-API-Key: this-is-the-key-of-closed\r\n")),
        (403, get(key=b"X-API-Key: this-is-the-key-of-suspended\r\n")),
        (429, get(key=b"X-API-Key: this-is-the-key-of-daily\r\n")),
    ]  # fmt: skip
    return [(status, await rig.ask(request.replace(KEY, b""))) for status, request in wanted]


ACCOUNTS = [
    account("poor", "prepaid"),
    account("closed", status=Status.CLOSED),
    account("suspended", status=Status.SUSPENDED),
    account("daily", limits=RateLimits(per_day=1)),
]
ROUTES: dict[str, Any] = {
    "accounts": ACCOUNTS,
    "routes": [route("/accounts")],
    "default": Route("(other)", deny=True),
}


async def test_problem_details_say_what_is_wrong_and_how_much_is_missing(gateway: Any) -> None:
    async with gateway(echo, **ROUTES) as rig:
        await rig.ask(get(key=b"X-API-Key: this-is-the-key-of-daily\r\n"))
        kinds = []
        for status, answer in await refusals(rig):
            problem = json.loads(answer.body)
            assert (answer.status, problem["status"]) == (status, status)
            assert answer.get(b"Content-Type") == b"application/problem+json"
            assert answer.get(b"Cache-Control") == b"no-store"
            assert problem["title"]
            assert re.fullmatch(r"[A-Z].*\.", problem["detail"]), problem["detail"]
            if problem["type"].endswith("account-closed"):
                assert problem["detail"] == "No subscription of the account is active."
            kinds.append(problem["type"].removeprefix("urn:quota-sidecar:"))
            if status == 402:
                assert (problem["account"], problem["balance"], problem["needed"]) == ("poor", "0.00", "0.10")
                assert (problem["missing"], problem["currency"], problem["units"]) == ("0.10", "GBP", 1)
        assert kinds == [
            "unidentified", "out-of-credit", "no-route", "account-closed", "account-suspended", "too-many-requests"
        ]  # fmt: skip


async def test_open_bankings_dialect_has_code_id_message_and_errors(gateway: Any) -> None:
    async with gateway(echo, error_format="obie", **ROUTES) as rig:
        await rig.ask(get(key=b"X-API-Key: this-is-the-key-of-daily\r\n"))
        for status, answer in await refusals(rig):
            document = json.loads(answer.body)
            assert answer.status == status
            assert document["Code"].startswith(f"{status} ")
            assert document["Message"]
            [error] = document["Errors"]
            assert error["ErrorCode"].startswith("UK.OBIE.")
            assert error["Message"]


async def test_the_berlin_groups_dialect_has_tpp_messages(gateway: Any) -> None:
    async with gateway(echo, error_format="berlin_group", **ROUTES) as rig:
        await rig.ask(get(key=b"X-API-Key: this-is-the-key-of-daily\r\n"))
        for status, answer in await refusals(rig):
            [message] = json.loads(answer.body)["tppMessages"]
            assert answer.status == status
            assert (message["category"], set(message)) == ("ERROR", {"category", "code", "text"})


@pytest.mark.parametrize("dialect", ["problem", "obie", "berlin_group"])
async def test_an_interaction_id_comes_back_with_a_refusal(gateway: Any, dialect: str) -> None:
    async with gateway(echo, error_format=dialect) as rig:
        answer = await rig.ask(get(b"/a", b"x-fapi-interaction-id: 93bac548", key=b""))
        assert answer.get(b"x-fapi-interaction-id") == b"93bac548"
        if dialect == "obie":
            assert json.loads(answer.body)["Id"] == "93bac548"


async def test_a_401_names_the_credentials_that_are_asked_for(gateway: Any) -> None:
    async with gateway(echo) as rig:
        for key in (b"", b"X-API-Key: not-the-key-of-anyone-here\r\n"):
            answer = await rig.ask(get(key=key))
            assert (answer.status, b"realm=" in (answer.get(b"WWW-Authenticate") or b"")) == (401, True)
            assert b"not-the-key" not in answer.body
        assert b"not-the-key" not in json.dumps(rig.log).encode()


async def test_a_refusal_of_head_has_no_body(gateway: Any) -> None:
    async with gateway(echo) as rig:
        wire = await rig.connect()
        await wire.send(get(key=b"", method=b"HEAD"))
        answer = await wire.response(b"HEAD")
        assert (answer.status, int(answer.get(b"Content-Length") or 0) > 0) == (401, True)
        await wire.send(get())
        assert (await wire.response()).status == 200


# Rates and credit in fields

# RFC 9651 section 3: a list of strings with parameters whose values are integers or strings.
_PARAMETER = r';[a-z*][a-z0-9_\-.*]*=(?:-?[0-9]{1,15}|"[ -!#-\[\]-~]*")'
_MEMBER = rf'"[ -!#-\[\]-~]*"(?:{_PARAMETER})*'
STRUCTURED_LIST = re.compile(rf"{_MEMBER}(?:, {_MEMBER})*")


def members(value: bytes | None) -> dict[str, dict[str, str]]:
    """A structured list of named policies, by name."""
    assert value is not None
    text = value.decode()
    assert STRUCTURED_LIST.fullmatch(text), text
    found = {}
    for member in text.split(", "):
        name, *parameters = member.split(";")
        found[name.strip('"')] = dict(p.split("=") for p in parameters)
    return found


async def test_fields_say_what_is_left_of_rate_day_and_credit(gateway: Any) -> None:
    limits = RateLimits(Decimal(5), 10, 1000)
    async with gateway(echo, accounts=[account("tpp", "prepaid", funds=Decimal(1), limits=limits)]) as rig:
        answer = await rig.ask(get())
        left, policies = members(answer.get(b"RateLimit")), members(answer.get(b"RateLimit-Policy"))
        assert {name: int(each["r"]) for name, each in left.items()} == {"rate": 9, "daily": 999, "credit": 9}
        assert policies == {
            "rate": {"q": "10", "w": "2"}, "daily": {"q": "1000", "w": "86400"}, "credit": {"q": "10"}
        }  # fmt: skip
        assert answer.get(b"X-Credits-Charged") == b"0.10"
        assert answer.get(b"X-Credits-Currency") == b"GBP"


async def test_the_largest_credit_still_makes_valid_fields(gateway: Any) -> None:
    rich = account("tpp", "prepaid", funds=Decimal(MAX_INT), prices={"api_calls": Standard(Decimal(1))}, currency="JPY")
    async with gateway(echo, accounts=[rich]) as rig:
        answer = await rig.ask(get())
        assert set(members(answer.get(b"RateLimit"))) == {"credit"}, answer.lines
        assert set(members(answer.get(b"RateLimit-Policy"))) == {"credit"}


CHANGING: dict[str, PriceTable] = {
    "graduated": Graduated((Tier(5, Decimal("0.10")), Tier(None, Decimal("0.01")))),
    "volume": Volume((Tier(5, Decimal("0.10")), Tier(None, Decimal("0.01")))),
    "package": Package(Decimal("0.50"), 10, 0),
}


@pytest.mark.parametrize("price", CHANGING.values(), ids=CHANGING)
@pytest.mark.parametrize("per_day", [0, 1000])
async def test_calls_that_the_credit_pays_for_are_not_counted_where_the_next_one_costs_something_else(
    gateway: Any, price: PriceTable, per_day: int
) -> None:
    limits = RateLimits(per_day=per_day)
    tiered = account("tpp", "prepaid", funds=Decimal(1), prices={"api_calls": price}, limits=limits)
    async with gateway(echo, accounts=[tiered]) as rig:
        answer = await rig.ask(get())
        assert answer.get(b"X-Credits-Charged") in (b"0.10", b"0.50")
        assert answer.get(b"RateLimit") == (b'"daily";r=999' if per_day else None)
        assert b"credit" not in (answer.get(b"RateLimit-Policy") or b"")


async def test_too_many_in_a_second_is_a_429_with_the_time_to_wait(gateway: Any) -> None:
    slow = account("tpp", limits=RateLimits(Decimal("0.1"), 2))
    async with gateway(echo, accounts=[slow]) as rig:
        answers = [await rig.ask(get()) for _ in range(3)]
        assert [a.status for a in answers] == [200, 200, 429]
        wait_s = int(answers[2].get(b"Retry-After") or 0)
        assert 1 <= wait_s <= 10
        assert members(answers[2].get(b"RateLimit")) == {"rate": {"r": "0", "t": str(wait_s)}}
        assert json.loads(answers[2].body)["retry_after"] == wait_s
        assert await rig.charged() == [200, 200]


async def test_too_many_in_a_day_is_a_429_until_midnight(gateway: Any) -> None:
    async with gateway(echo, accounts=[account("tpp", limits=RateLimits(per_day=1))]) as rig:
        before = datetime.now(UTC)
        answers = [await rig.ask(get()) for _ in range(2)]
        if datetime.now(UTC).date() != before.date():
            answers = [await rig.ask(get()) for _ in range(2)]  # the day ended between the two
        assert [a.status for a in answers] == [200, 429]
        midnight = (before + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
        until_midnight_s = (midnight - before).total_seconds()
        assert abs(int(answers[1].get(b"Retry-After") or 0) - until_midnight_s) <= 60


@pytest.mark.parametrize(("credits", "rate"), [(True, False), (False, True), (False, False)])
async def test_each_group_of_fields_can_be_turned_off(gateway: Any, credits: bool, rate: bool) -> None:
    limited = account("tpp", "prepaid", funds=Decimal(1), limits=RateLimits(Decimal(5)))
    async with gateway(echo, accounts=[limited], credit_headers=credits, rate_limit_headers=rate) as rig:
        answer = await rig.ask(get())
        assert (answer.get(b"X-Credits-Remaining") is not None, answer.get(b"RateLimit") is not None) == (credits, rate)
