"""Delivers the webhooks of the Lago stand-in, on its own and off the request path.

Source: lago-api ``app/services/webhooks/base_service.rb``, ``send_http_service.rb``: a payload is made when the sending
job runs, and repeated as it is; anything but 200, 201, 202 and 204 is tried again. Lago keeps no order.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Coroutine
from dataclasses import dataclass, field

import aiohttp
import orjson

from sidecar.sandbox.lago.fields import Fields
from sidecar.sandbox.lago.lago_store import Notice, Store
from sidecar.sandbox.lago.lago_wire import Call, Json, invalid, iso, not_found
from sidecar.sandbox.lago.records import Endpoint
from sidecar.sandbox.lago.signatures import Signatures

ACCEPTED = frozenset((200, 201, 202, 204))
LOG_MAX = 20_000
DELAY_S_MAX = 3600.0
AT_ONCE_MAX = 16


@dataclass(frozen=True, slots=True)
class Delivery:
    """How webhooks travel. ``order``: ``fifo`` sends first attempts one by one for each endpoint, ``shuffle`` mixes up
    what is due together. ``duplicate`` and ``drop`` are probabilities; ``delay_s`` is drawn for each from a range.
    """

    order: str = "fifo"
    duplicate: float = 0.0
    drop: float = 0.0
    delay_s: tuple[float, float] = (0.0, 0.0)


@dataclass(slots=True)
class Webhook:
    """One webhook to one endpoint. ``id`` is its ``X-Lago-Unique-Key``, the same for each attempt."""

    id: str
    endpoint: Endpoint
    notice: Notice
    created_at: str
    status: str = "pending"
    attempts: int = 0
    http_status: int | None = None
    body: bytes = field(default=b"", repr=False)

    def as_json(self) -> Json:
        return {
            "lago_id": self.id,
            "webhook_type": self.notice.type,
            "object_type": self.notice.object_type,
            "endpoint": self.endpoint.url,
            "status": self.status,
            "attempts": self.attempts,
            "http_status": self.http_status,
            "created_at": self.created_at,
            "payload": orjson.loads(self.body) if self.body else None,
        }


class Webhooks:
    """Takes notices from the store while it runs: between :meth:`start` and :meth:`stop`."""

    def __init__(self, store: Store, signatures: Signatures) -> None:
        self.delivery = Delivery()
        self.log: deque[Webhook] = deque(maxlen=LOG_MAX)
        self._store = store
        self._signatures = signatures
        self._random = random.Random(store.config.seed)  # noqa: S311 - order and losses of a stand-in
        self._session: aiohttp.ClientSession | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._lines: dict[str, asyncio.Lock] = {}
        self._slots = asyncio.Semaphore(AT_ONCE_MAX)
        self._is_due = False

    def __repr__(self) -> str:
        return f"Webhooks({self.delivery}, {len(self.log)} made, {len(self._tasks)} under way)"

    async def start(self) -> None:
        timeout = aiohttp.ClientTimeout(total=self._store.config.webhook_timeout_s)
        self._session = aiohttp.ClientSession(timeout=timeout)
        self._lines, self._slots = {}, asyncio.Semaphore(AT_ONCE_MAX)
        self._store.on_notice, self._is_due = self._wake, False
        self._wake()

    async def stop(self) -> None:
        self._store.on_notice = None
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def drain(self) -> None:
        """Waits until every webhook has arrived or failed for good."""
        while self._is_due or self._tasks or self._store.notices:
            await asyncio.wait(self._tasks) if self._tasks else await asyncio.sleep(0)

    def _wake(self) -> None:
        """Once for all that is noticed in one turn of the loop: what is mixed up is mixed up together."""
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._send_all)

    def _send_all(self) -> None:
        self._is_due = False
        made: list[Webhook] = []
        while self._store.notices:
            notice = self._store.notices.popleft()
            for endpoint in self._store.endpoints.values():
                if endpoint.event_types is None or notice.type in endpoint.event_types:
                    made += self._made(endpoint, notice)
        if self.delivery.order == "shuffle":
            self._random.shuffle(made)
        for webhook in made:
            self._spawn(self._deliver(webhook))

    def _made(self, endpoint: Endpoint, notice: Notice) -> list[Webhook]:
        webhook = Webhook(self._store.new_id(), endpoint, notice, iso(self._store.now()))
        self.log.append(webhook)
        if self._random.random() < self.delivery.drop:
            webhook.status = "dropped"
            return []
        return [webhook] * (2 if self._random.random() < self.delivery.duplicate else 1)

    def _spawn(self, delivery: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(delivery)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _deliver(self, webhook: Webhook) -> None:
        if self.delivery.order == "fifo":
            line = self._lines.setdefault(webhook.endpoint.id, asyncio.Lock())
            async with line:
                delivered = await self._first_attempt(webhook)
        else:
            delivered = await self._first_attempt(webhook)
        waits_s = self._store.config.webhook_retry_waits_s
        for wait_s in waits_s:
            if delivered:
                return
            webhook.status = "retrying"
            await asyncio.sleep(wait_s)
            delivered = await self._attempt(webhook)
        if not delivered:
            webhook.status = "failed"

    async def _first_attempt(self, webhook: Webhook) -> bool:
        delay_s = self._random.uniform(*self.delivery.delay_s)
        if delay_s:
            await asyncio.sleep(delay_s)
        return await self._attempt(webhook)

    async def _attempt(self, webhook: Webhook) -> bool:
        if webhook.endpoint.id not in self._store.endpoints:
            webhook.status = "failed"
            return True
        if not webhook.body:
            webhook.body = self._payload(webhook.notice)
        async with self._slots:
            webhook.attempts += 1
            webhook.http_status = await self._post(webhook)
        if webhook.http_status in ACCEPTED:
            webhook.status = "succeeded"
            return True
        return False

    def _payload(self, notice: Notice) -> bytes:
        return orjson.dumps(
            {
                "webhook_type": notice.type,
                "object_type": notice.object_type,
                "organization_id": self._store.config.organization_id,
                notice.object_type: notice.view(),
            }
        )

    async def _post(self, webhook: Webhook) -> int | None:
        """The status of the answer; None if there was none."""
        assert self._session is not None, "webhooks are sent while the application is up"
        algorithm = webhook.endpoint.algorithm
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "Lago sandbox",
            "X-Lago-Signature": self._signatures.sign(algorithm, webhook.body),
            "X-Lago-Signature-Algorithm": algorithm,
            "X-Lago-Unique-Key": webhook.id,
        }
        try:
            async with self._session.post(
                webhook.endpoint.url, data=webhook.body, headers=headers, allow_redirects=False
            ) as answer:
                return answer.status
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            return None

    def show(self, call: Call) -> Json:
        """The log, oldest first; ``webhook_type`` and ``status`` filter it."""
        type_, status = call.one("webhook_type"), call.one("status")
        found = [item for item in self.log if type_ in (None, item.notice.type) and status in (None, item.status)]
        return {"delivery": self._as_json(), "webhooks": [item.as_json() for item in found]}

    def replace(self, call: Call) -> Json:
        """How webhooks travel from now on; what is left out goes back to its default."""
        fields = Fields(call.body if isinstance(call.body, dict) else {})
        unknown = fields.given.keys() - {"order", "duplicate", "drop", "delay_s"}
        if unknown or not isinstance(call.body, dict):
            raise invalid({str(min(unknown, default="body"))[:40]: ["value_is_invalid"]})
        order = fields.choice("order", ("fifo", "shuffle"), "fifo")
        duplicate, drop = _chance(fields, "duplicate"), _chance(fields, "drop")
        delay_s = _range(fields)
        fields.check()
        self.delivery = Delivery(order, duplicate, drop, delay_s)
        return {"delivery": self._as_json()}

    def retry(self, call: Call) -> Json:
        """Sends one again, as the button in Lago does."""
        webhook = next((item for item in self.log if item.id == call.path["lago_id"]), None)
        if webhook is None:
            raise not_found("webhook")
        self._spawn(self._deliver(webhook))
        return {"webhook": webhook.as_json()}

    def _as_json(self) -> Json:
        way = self.delivery
        return {"order": way.order, "duplicate": way.duplicate, "drop": way.drop, "delay_s": list(way.delay_s)}


def _chance(fields: Fields, name: str) -> float:
    value = fields.given.get(name, 0.0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        fields.error(name, "value_is_invalid")
        return 0.0
    return float(value)


def _range(fields: Fields) -> tuple[float, float]:
    value = fields.given.get("delay_s", [0, 0])
    numbers = isinstance(value, list) and len(value) == 2 and all(type(item) in (int, float) for item in value)
    if not isinstance(value, list) or not numbers or not 0 <= value[0] <= value[1] <= DELAY_S_MAX:
        fields.error("delay_s", "value_is_invalid")
        return 0.0, 0.0
    return float(value[0]), float(value[1])
