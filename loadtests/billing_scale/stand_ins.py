"""Lago and OpenMeter for any number of accounts, in a process of their own: answers are made from numbers, and nothing
is stored. ``python -m loadtests.billing_scale.stand_ins`` prints its port; ``/bench/moment`` says what they answer,
``/bench/counts`` what they were asked.
"""

from __future__ import annotations

import argparse
import asyncio
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import parse_qs, unquote

import orjson

from loadtests.billing_scale.answers import Answers, recorded
from loadtests.billing_scale.bank import (
    CUSTOMER,
    HOUR_S,
    INVOICE,
    SUBSCRIPTION,
    WALLET,
    Bank,
    Moment,
    account_of,
    lago_id,
    number_of,
)

KEPT_MAX: Final = 64
"""Answers to OpenMeter's queries of all accounts that are kept."""
CENTS, RAISED_CENTS = 10_000_000, 100
BILLED_S: Final = 600
"""Lago bills ten minutes after a period."""
NEXT_S: Final = 30 * 24 * HOUR_S


class StandIns:
    """Answers as bytes; ``counts`` by what was asked, and bytes."""

    def __init__(self, bank: Bank, answers: Answers, moment: Moment) -> None:
        self.bank = bank
        self.moment = moment
        self.counts: Counter[str] = Counter()
        self._answers = answers
        self._kept: dict[tuple[str, ...], bytes] = {}

    def set_moment(self, moment: Moment) -> None:
        self.moment = moment
        self._kept.clear()

    def answer(self, method: str, target: str, body: bytes) -> tuple[int, bytes]:
        """Status and body."""
        path, _, query_text = target.partition("?")
        parts = [unquote(part) for part in path.strip("/").split("/")]
        query = parse_qs(query_text)
        if parts[0] == "bench":
            if parts[1] == "moment":
                values = orjson.loads(body)
                self.set_moment(Moment(**{**values, "hours": tuple(values["hours"])}))
            return 200, orjson.dumps(self.counts)
        who = "openmeter" if parts[2] == "meters" else "lago"
        status, answer = (
            self._openmeter(parts[3:], query) if who == "openmeter" else self._lago(method, parts, query, body)
        )
        self.counts[f"{who} requests"] += 1
        self.counts[f"{who} bytes in"] += len(answer)
        self.counts[f"{who} bytes out"] += len(body)
        return status, answer

    # Lago

    def _lago(self, method: str, parts: list[str], query: dict[str, list[str]], body: bytes) -> tuple[int, bytes]:
        answers, (kind, *rest) = self._answers, parts[2:]
        customer = query.get("external_customer_id", [""])[0]
        if kind == "events" and method == "POST":
            return 200, orjson.dumps({"events": orjson.loads(body)["events"]})
        if kind == "taxes":
            return 200, self._page("taxes", [], 0, query)
        if kind == "billable_metrics":
            return 200, answers.metric[rest[0]] if rest else answers.metrics
        if kind == "customers" and rest:
            return 200, self._filled(answers.usage if rest[1:] else answers.customer, number_of(rest[0]))
        if kind == "subscriptions" and rest:
            if rest[1:]:
                return 200, self._page("fixed_charges", [], 0, query)
            return 200, self._filled(answers.subscription, number_of(rest[0]))
        if kind == "invoices":
            if rest:
                return 200, self._filled(answers.invoice, int(rest[0].partition("-")[0], 16), fees=True)
            numbers = [number_of(customer)] if self.moment.is_over else []
            rows = [self._filled(answers.invoice_row, number, fees=True) for number in numbers]
            return 200, self._page(kind, rows, len(numbers), query)
        row = {
            "customers": answers.customer_row,
            "subscriptions": answers.subscription_row,
            "wallets": answers.wallet_row,
        }
        if kind not in row:
            return 404, b'{"status":404,"error":"Not Found","code":"resource_not_found"}'
        if customer:
            return 200, self._page(kind, [self._filled(row[kind], number_of(customer))], 1, query)
        page, size = (int(query.get(name, [other])[0]) for name, other in (("page", "1"), ("per_page", "100")))
        listed = self.moment.listed or self.bank.accounts
        numbers = list(range((page - 1) * size, min(page * size, listed)))
        return 200, self._page(kind, [self._filled(row[kind], number) for number in numbers], listed, query)

    def _page(self, kind: str, rows: Iterable[bytes], total: int, query: dict[str, list[str]]) -> bytes:
        page, size = (int(query.get(name, [other])[0]) for name, other in (("page", "1"), ("per_page", "100")))
        pages = -(-total // size)
        meta = {
            "current_page": page if total else 0,
            "next_page": page + 1 if page < pages else None,
            "prev_page": page - 1 if total and page > 1 else None,
            "total_pages": pages,
            "total_count": total,
        }
        return b'{"%s":[%s],"meta":%s}' % (kind.encode(), b",".join(rows), orjson.dumps(meta))

    def _filled(self, template: bytes, number: int, *, fees: bool = False) -> bytes:
        bank, moment = self.bank, self.moment
        first, last = _iso(bank.from_s), _iso(moment.until_s - 1)
        current = (_iso(moment.until_s), _iso(moment.until_s + NEXT_S - 1)) if moment.is_over else (first, last)
        is_raised = moment.raised_each and number % moment.raised_each == 0
        cents = CENTS + (RAISED_CENTS if is_raised else 0)
        marks = {
            b"@ACCOUNT@": account_of(number),
            b"@CUSTOMER@": lago_id(number, CUSTOMER),
            b"@SUBSCRIPTION@": lago_id(number, SUBSCRIPTION),
            b"@WALLET@": lago_id(number, WALLET),
            b"@INVOICE@": lago_id(number, INVOICE),
            b"@FROM@": current[0],
            b"@TO@": current[1],
            b"@FIRST@": first,
            b"@LAST@": last,
            b'"@CENTS@"': str(cents),
            b"@CREDITS@": f"{cents / 100:.1f}",
        }
        if fees:
            units = [moment.total(bank, number, metric) for metric in range(bank.metrics)]
            marks |= {b'"@U%d@"' % metric: str(total) for metric, total in enumerate(units)}
            marks |= {b'"@FEES@"': str(sum(units)), b"@BILLED@": _iso(moment.until_s + BILLED_S)}
        for mark, text in marks.items():
            template = template.replace(mark, text.encode())
        return template

    # OpenMeter

    def _openmeter(self, parts: list[str], query: dict[str, list[str]]) -> tuple[int, bytes]:
        metric = parts[0]
        if len(parts) == 1:
            meter = {"slug": metric, "aggregation": "SUM", "valueProperty": "$.units", "eventType": "api.call",
                     "groupBy": {"metric": "$.metric"}}  # fmt: skip
            return 200, orjson.dumps(meter)
        if query["filterGroupBy[metric]"] != [metric]:
            return 200, b'{"data":[]}'  # no watermarks
        from_s, to_s = (int(datetime.fromisoformat(query[name][0]).timestamp()) for name in ("from", "to"))
        window = query.get("windowSize", [""])[0]
        subjects = query.get("subject")
        key = (metric, str(from_s), str(to_s), window)
        if subjects is not None:
            return 200, self._rows(metric, from_s, to_s, window, [number_of(each) for each in subjects])
        if key not in self._kept:
            if len(self._kept) >= KEPT_MAX:
                self._kept.clear()
            self._kept[key] = self._rows(metric, from_s, to_s, window, range(self.bank.accounts))
        return 200, self._kept[key]

    def _rows(self, metric: str, from_s: int, to_s: int, window: str, numbers: Iterable[int]) -> bytes:
        """An hour's usage lies at its beginning."""
        bank, moment, number_of_metric = self.bank, self.moment, self.bank.metric_number(metric)
        hours = [hour for hour in range(*moment.hours) if from_s <= hour * HOUR_S < to_s]
        step_s = {"HOUR": HOUR_S, "MINUTE": 60}.get(window, 0)
        rows: list[str] = []
        for number in numbers:
            if hours and bank.uses(number, number_of_metric):
                found = [(hour, moment.times * bank.units(number, number_of_metric, hour)) for hour in hours]
                if not step_s:
                    found = [(0, sum(units for _, units in found))]
                for hour, units in found:
                    start, end = (hour * HOUR_S, hour * HOUR_S + step_s) if step_s else (from_s, to_s)
                    rows.append(
                        f'{{"value":{units},"windowStart":"{_iso(start)}","windowEnd":"{_iso(end)}",'
                        f'"subject":"{account_of(number)}","groupBy":{{"metric":"{metric}"}}}}'
                    )
        return b'{"from":"%s","to":"%s","data":[%s]}' % (
            _iso(from_s).encode(), _iso(to_s).encode(), ",".join(rows).encode()
        )  # fmt: skip


_ISO: dict[int, str] = {}


def _iso(instant_s: int) -> str:
    found = _ISO.get(instant_s)
    if found is None:
        found = _ISO[instant_s] = f"{datetime.fromtimestamp(instant_s, UTC):%Y-%m-%dT%H:%M:%SZ}"
    return found


class _Connection(asyncio.Protocol):
    """As much of HTTP/1.1 as the control plane's clients speak: one request after another, bodies with a length."""

    def __init__(self, stand_ins: StandIns) -> None:
        self._stand_ins = stand_ins
        self._got = bytearray()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._got += data
        while (end := self._got.find(b"\r\n\r\n")) >= 0:
            head = bytes(self._got[:end])
            length = 0
            for line in head.split(b"\r\n")[1:]:
                name, _, value = line.partition(b":")
                if name.lower() == b"content-length":
                    length = int(value)
            if len(self._got) < end + 4 + length:
                return
            body = bytes(self._got[end + 4 : end + 4 + length])
            del self._got[: end + 4 + length]
            method, target, _ = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
            status, answer = self._stand_ins.answer(method, target, body)
            assert self._transport is not None
            self._transport.write(
                b"HTTP/1.1 %d OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
                % (status, len(answer), answer)
            )


async def _serve(bank: Bank, until_s: int) -> None:
    stand_ins = StandIns(bank, await recorded(bank), Moment(until_s))
    server = await asyncio.get_running_loop().create_server(lambda: _Connection(stand_ins), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("accounts", "metrics", "used-max", "from-s", "until-s"):
        parser.add_argument(f"--{name}", type=int, required=True)
    given = parser.parse_args()
    asyncio.run(_serve(Bank(given.accounts, given.metrics, given.used_max, given.from_s), given.until_s))


if __name__ == "__main__":
    main()
