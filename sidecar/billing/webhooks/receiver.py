"""``POST /webhooks/lago``: verify, request a reload, answer. The leading control plane handles the request later.

What comes first protects what comes after: a body is read only as far as it may go, the signature is checked before
anything in the body is looked at, and before the rate limit, so that forged webhooks take nothing away from genuine
ones, and 200 is said only when the reload requests are in Valkey. So a crash at any point either has not answered, and
Lago sends the webhook again, or has left its reload requests behind.

**Repeats.** Lago sends a webhook up to three times, under the same ``X-Lago-Unique-Key`` and with the same body. Only
the two together are a repeat. The key alone is not signed: whoever could send one could otherwise silence another
webhook that is to come under it. The body alone is not unique: it has neither an id nor a time, so a wallet that is
changed and changed back, or changed in something that its webhook does not show, gives the same bytes twice, and
silencing the second would keep the ledger wrong. A replayed body under an invented key therefore requests a reload;
what it causes is one more look at Lago, which shows what is true now.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web

from sidecar.basics.clock import Clock, SystemClock
from sidecar.basics.logger import get_logger
from sidecar.basics.token_bucket import TokenBucket
from sidecar.billing.reconcile.reload_requests import SWEEP, ReloadRequests
from sidecar.billing.settings import WebhookSettings
from sidecar.billing.webhooks.body import BodyReader
from sidecar.billing.webhooks.metrics import WebhookMetrics
from sidecar.billing.webhooks.payload import EnvelopeError, Webhook, WebhookDecision, WebhookResult, decide, parse
from sidecar.billing.webhooks.refusals import Refusal, Refused
from sidecar.billing.webhooks.signature import KeyUnavailable, SignatureRefused, Verifier, verifier_of
from sidecar.valkey.deadlines import with_deadline
from sidecar.valkey.topology import CLIENT_ERRORS

log = get_logger("sidecar.webhooks")

SIGNATURE, ALGORITHM, UNIQUE_KEY = "X-Lago-Signature", "X-Lago-Signature-Algorithm", "X-Lago-Unique-Key"
UNIQUE_KEY_CHARS_MAX: Final = 128
REQUEST_TIMEOUT_S: Final = 3.0
REQUESTS_IN_FLIGHT_MAX: Final = 16
"""Calls to Valkey at a time: its client has a limited number of connections, which others need too."""
SWEEP_PAUSE_S: Final = 60.0
"""Between two sweeps that webhooks ask for; a sooner one is postponed, not dropped."""
LOG_PAUSE_S: Final = 60.0
"""Between two lines about refusals of one kind: senders without a valid signature must not fill the log."""
FIELD_BYTES: Final = 8_190
REPEATED: Final = "repeated"


class WebhookReceiver:
    """``handle`` is the handler of ``POST /webhooks/lago``; ``metrics`` may be read at any time.

    ``lago_url`` is the issuer of JWTs where the settings name none; ``fetch_public_key`` answers PEM.

    Raises:
        WebhookSetupError: the settings name a file that cannot be used, or leave the issuer open.
    """

    def __init__(
        self,
        settings: WebhookSettings,
        reload_requests: ReloadRequests,
        *,
        fetch_public_key: Callable[[], Awaitable[bytes]],
        lago_url: str | None = None,
        clock: Clock | None = None,
        metrics: WebhookMetrics | None = None,
    ) -> None:
        self.metrics = metrics or WebhookMetrics()
        self._settings = settings
        self._reload_requests = reload_requests
        self._clock = clock or SystemClock()
        self._verifier: Verifier = verifier_of(settings, lago_url, fetch_public_key, self._clock)
        self._bodies = BodyReader(settings.body_bytes_max)
        rate = settings.requests_per_second_max
        self._rate = TokenBucket(rate, rate, self._clock.monotonic_s)
        self._slots = asyncio.Semaphore(REQUESTS_IN_FLIGHT_MAX)
        self._sweep_from_s = -math.inf
        self._log_from_s: dict[Refusal, float] = {}

    def __repr__(self) -> str:
        return f"WebhookReceiver({self._verifier!r}, {self._rate!r}, {self._bodies!r})"

    @property
    def is_configured(self) -> bool:
        """Whether any webhook can be verified; otherwise all are answered 404."""
        return self._verifier.is_configured

    @property
    def field_bytes_max(self) -> int:
        """How long a header field the server has to take: a JWT carries the body, escaped and in Base64, in one."""
        return FIELD_BYTES + 3 * self._settings.body_bytes_max if self._settings.jwt else FIELD_BYTES

    async def handle(self, request: web.Request) -> web.Response:
        """200 once the reload requests are in Valkey; anything else makes Lago send the webhook again."""
        started_s = self._clock.monotonic_s()
        try:
            await self._take(request)
            return web.Response()
        except Refused as refused:
            self._note_refusal(refused.refusal)
            return refused.response()
        finally:
            self.metrics.observe(self._clock.monotonic_s() - started_s)
            keys = self._verifier.public_key
            if keys is not None:
                self.metrics.key_fetches, self.metrics.key_failures = keys.fetches, keys.failures

    async def close(self) -> None:
        """End what is under way."""
        if self._verifier.public_key is not None:
            await self._verifier.public_key.close()

    async def _take(self, request: web.Request) -> None:
        if not self._verifier.is_configured:
            raise Refused(Refusal.NOT_CONFIGURED)
        signature, algorithm, unique_key = _headers(request)
        async with self._bodies.read(request) as body:
            try:
                await self._verifier.verify(algorithm, signature, body)
            except SignatureRefused as error:
                raise Refused(Refusal.SIGNATURE) from error
            except KeyUnavailable:
                raise Refused(Refusal.NO_KEY) from None
            wait_s = self._rate.take()
            if wait_s > 0:
                raise Refused(Refusal.TOO_MANY, retry_after_s=wait_s)
            try:
                webhook = parse(body)
            except EnvelopeError as error:
                raise Refused(Refusal.ENVELOPE, str(error)) from None
            result = await self._act(webhook, _idempotency_key(body, unique_key))
        self.metrics.taken[webhook.label, result] += 1

    async def _act(self, webhook: Webhook, idempotency_key: str) -> str:
        decision = decide(webhook)
        reloads = decision.reloads
        match decision.result:
            case WebhookResult.NOTE:
                log.warning("lago reports usage that it cannot bill", type=webhook.label, errors=list(decision.notes))
            case WebhookResult.MALFORMED:
                log.warning("a webhook names no customer, a sweep is requested", type=webhook.label)
                reloads = (SWEEP,)
            case WebhookResult.FOREIGN:
                log.info("a webhook names a customer whose id is not a valid account id", type=webhook.label)
        if not reloads:
            return decision.result.value
        try:
            return await with_deadline(REQUEST_TIMEOUT_S, self._request_reloads(decision, reloads, idempotency_key))
        except (TimeoutError, *CLIENT_ERRORS):
            raise Refused(Refusal.LEDGER) from None

    async def _request_reloads(self, decision: WebhookDecision, reloads: tuple[str, ...], idempotency_key: str) -> str:
        async with self._slots:
            return await self._request_reloads_now(decision, reloads, idempotency_key)

    async def _request_reloads_now(
        self, decision: WebhookDecision, reloads: tuple[str, ...], idempotency_key: str
    ) -> str:
        now_s = self._clock.monotonic_s()
        if SWEEP in reloads and now_s < self._sweep_from_s:
            await self._reload_requests.schedule(
                SWEEP, round((self._clock.now_s() + self._sweep_from_s - now_s) * 1000)
            )
            return decision.result.value
        if not idempotency_key:
            await self._reload_requests.add(reloads)
        elif await self._reload_requests.add_once(reloads, idempotency_key, self._settings.remember_s) is None:
            return REPEATED
        if SWEEP in reloads:
            self._sweep_from_s = now_s + SWEEP_PAUSE_S
        return decision.result.value

    def _note_refusal(self, refusal: Refusal) -> None:
        self.metrics.refused[refusal.value] += 1
        now_s = self._clock.monotonic_s()
        if now_s >= self._log_from_s.get(refusal, -math.inf):
            self._log_from_s[refusal] = now_s + LOG_PAUSE_S
            log.warning("webhook refused", reason=refusal.value, count=self.metrics.refused[refusal.value])


def _headers(request: web.Request) -> tuple[bytes, str, str]:
    """Signature, algorithm and unique key, the last '' if there is none. Raises ``Refused``."""
    values = []
    for name in (SIGNATURE, ALGORITHM, UNIQUE_KEY):
        given = request.headers.getall(name, [])
        if len(given) > 1:
            raise Refused(Refusal.HEADERS)
        values.append(given[0] if given else "")
    signature, algorithm, unique_key = values
    if not signature or not algorithm:
        raise Refused(Refusal.SIGNATURE)
    if len(unique_key) > UNIQUE_KEY_CHARS_MAX:
        raise Refused(Refusal.HEADERS)
    return signature.encode(errors="surrogateescape"), algorithm, unique_key


def _idempotency_key(body: bytes, unique_key: str) -> str:
    """Names a webhook by body and key together; '' without a key, when nothing tells a repeat from a new one."""
    if not unique_key:
        return ""
    name = unique_key.encode(errors="surrogateescape") + b"\0"  # no header holds a NUL
    return hashlib.blake2b(name + body, digest_size=20).hexdigest()
