"""Takes somebody's deployment as the target: whose keys these are, and whether the calls get through."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

from loadtests.scenarios.options import Options
from loadtests.scenarios.plan import Call, Caller
from loadtests.scenarios.result_counter import End, Reply, ResultCounter
from loadtests.scenarios.sources import account_of_key, valkey
from loadtests.scenarios.target import CannotRun, Target
from loadtests.scenarios.web import place
from loadtests.scenarios.wire import Line

NO_RIGHT = {
    401: "the key is not known there",
    402: "the account has no credit left",
    403: "the account is suspended, closed, or its plan has no such call",
    404: "there is no such route or resource",
    429: "the account's rate or daily limit is used up",
}


def adopt(options: Options) -> Target:
    """Raises CannotRun: it is not told, and Valkey does not know, whose key this is."""
    callers = []
    for number, (account, key) in enumerate(options.keys, 1):
        if not account and options.valkey.value:
            with valkey(options.valkey) as client:
                account = account_of_key(client, hashlib.sha256(key.value.encode()).hexdigest()) or ""
            if not account:
                raise CannotRun(f"the ledger does not know key {number}; --account says whose it is")
        if not account and (options.admin or options.openmeter):
            raise CannotRun(f"whose is key {number}? --account, a --keys file with accounts, or --valkey would tell")
        callers.append(Caller(account or f"key {number}", key.value))
    return Target(
        urls=options.urls,
        callers=tuple(callers),
        calls=tuple(Call(path, units=options.units) for path in options.paths),
        admin=options.admin,
        admin_token=options.admin_token,
        valkey=options.valkey,
        openmeter=options.openmeter,
        openmeter_token=options.openmeter_token,
        meters=options.meters,
        lago=options.lago,
        lago_key=options.lago_key,
        pids=options.pids,
        echo=options.echo,
        blob=options.blob,
        about=("a deployment that was running already",),
    )


@dataclass(frozen=True, slots=True)
class First:
    """What the first answer said: the price of a call, and how many more are paid for."""

    price: Decimal | None
    left: int | None


def probe(target: Target, results: ResultCounter) -> First:
    """One call by each caller and through each gateway, which count like all others.

    Raises:
        CannotRun: one does not get through, or is not charged.
    """
    first: Reply | None = None
    turns = [(target.urls[0], caller) for caller in target.callers]
    turns += [(url, target.callers[0]) for url in target.urls[1:]]
    for url, caller in turns:
        line = Line(url, timeout_s=10)
        call = target.calls[0]
        reply = line.call(call.method, call.path, {"X-API-Key": caller.key})
        line.close()
        results.record(reply, account=caller.account, units=call.units, at_s=0, took_ms=0)
        problem = problem_of(reply)
        if problem:
            raise CannotRun(f"{place(url)}{call.path}, for {caller.account}: {problem}")
        first = first or reply
    fields = (first.fields if first else None) or {}
    return First(_price(fields), calls_left(fields.get("ratelimit", "")))


def problem_of(reply: Reply) -> str:
    """What is wrong with the first answer, "" if nothing."""
    if reply.end is not End.ANSWERED:
        return f"cannot be reached: {reply.why}" if reply.end is End.REFUSED else reply.end.value
    if not 200 <= reply.status < 300:
        return f"{reply.status}, {NO_RIGHT.get(reply.status, 'so there is nothing to measure')}"
    if not reply.is_charged:
        return "the answer does not say that it was charged (a free route, or credit_headers.credits is off)"
    return ""


def calls_left(field: str) -> int | None:
    """``r`` of the policy "credit" in a ``RateLimit`` field; None if it is not there."""
    for item in field.split(","):
        name, *parameters = (part.strip() for part in item.split(";"))
        if name == '"credit"':
            for parameter in parameters:
                key, _, value = parameter.partition("=")
                if key == "r" and value.isdigit():
                    return int(value)
    return None


def _price(fields: Mapping[str, str]) -> Decimal | None:
    try:
        return Decimal(fields.get("x-credits-charged", ""))
    except InvalidOperation:
        return None
