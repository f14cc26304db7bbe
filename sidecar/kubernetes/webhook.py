"""The admission webhook as a server: HTTPS for reviews, a health port beside it."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Final

import aiohttp
from aiohttp import hdrs, web
from aiohttp.http import HttpProcessingError
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from sidecar.basics.logger import get_logger
from sidecar.kubernetes.admission import BODY_BYTES_MAX, Answer, MalformedReview, review
from sidecar.kubernetes.certificate_sources import CertificateFault, Certificates
from sidecar.kubernetes.cluster import ClusterError
from sidecar.kubernetes.injection import InjectionSettings
from sidecar.kubernetes.serving import listening
from sidecar.kubernetes.versions import Version, settings_for

READ_TIMEOUT_S: Final = 10.0
"""For a review to arrive; the API server waits at most 30 s for the whole of it."""
BUFFERED_BYTES_MAX: Final = 32 * 1024 * 1024
"""Of all reviews that are in memory at a time."""
LARGE_BYTES: Final = 128 * 1024
"""A review from this size on is answered beside the event loop, one at a time; others take less than the change."""
RETRY_S: Final = 5.0
VERSION_EVERY_S: Final = 3600.0
RESULTS: Final = ("injected", "unchanged", "refused", "malformed", "error")
log = get_logger("sidecar.injector")


@dataclass(frozen=True, slots=True)
class ListenAddresses:
    """``host`` is for both ports; 0 takes a free one."""

    host: str
    port: int
    health_port: int


class _ReviewRefused(Exception):
    def __init__(self, status: int, why: str, result: str = "malformed") -> None:
        super().__init__(why)
        self.status, self.result = status, result


class Injector:
    """Answers reviews. Ready while it has a certificate that can be shown, knows what sidecars are to be like, and is
    not told to end.

    Args:
        ask_version: of the cluster, by which sidecars are native or not; it is asked again every hour, for clusters
            get upgraded. Without it ``settings`` say so.
    """

    def __init__(
        self,
        settings: InjectionSettings,
        certificates: Certificates,
        ask_version: Callable[[], Awaitable[Version]] | None = None,
        *,
        read_timeout_s: float = READ_TIMEOUT_S,
    ) -> None:
        self._settings = settings
        self._certificates = certificates
        self._ask = ask_version
        self._read_timeout_s = read_timeout_s
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._context.set_alpn_protocols(["http/1.1"])
        self._lacking = {"certificate": "there is no certificate yet"}
        if ask_version is not None:
            self._lacking["version"] = "the cluster's version is not known yet"
        self._ending = False
        self._buffered_bytes = 0
        self._large = asyncio.Semaphore(1)
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._reviews = Counter(
            "sidecar_injector_requests", "Admission reviews by result.", ["result"], registry=self.registry
        )
        for result in RESULTS:
            self._reviews.labels(result)
        self._duration = Histogram(
            "sidecar_injector_request_duration_seconds",
            "Time from the last byte of a review to the first byte of its answer.",
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5), registry=self.registry,
        )  # fmt: skip
        self._expiry = Gauge(
            "sidecar_injector_certificate_expiry_timestamp_seconds", "Expiry of the certificate in use.",
            registry=self.registry,
        )  # fmt: skip

    def __repr__(self) -> str:
        state = "ending" if self._ending else "; ".join(self._lacking.values()) or "ready"
        return f"Injector({state}, {self._buffered_bytes} bytes buffered)"

    @asynccontextmanager
    async def serving(self, addresses: ListenAddresses) -> AsyncIterator[tuple[int, int]]:
        """Serves until the block ends, which waits for reviews under way; yields both ports.

        Raises:
            InjectorFault: a port cannot be bound.
        """
        reviews, health = web.Application(), web.Application()
        reviews.router.add_post("/mutate", self._mutate)
        health.router.add_get("/livez", self._livez)
        health.router.add_get("/readyz", self._readyz)
        health.router.add_get("/metrics", self._metrics)
        async with AsyncExitStack() as stack:
            # What is entered last ends first: readiness and metrics are there to the end.
            health_port = await stack.enter_async_context(listening(health, addresses.host, addresses.health_port))
            port = await stack.enter_async_context(listening(reviews, addresses.host, addresses.port, self._context))
            stack.enter_context(_task(self._repeat("certificate", self._refresh, self._certificates.every_s)))
            if self._ask is not None:
                stack.enter_context(_task(self._repeat("version", self._ask_version, VERSION_EVERY_S)))
            try:
                yield port, health_port
            finally:
                self.begin_shutdown()

    def begin_shutdown(self) -> None:
        """Readiness fails from now on; reviews are still answered, each as the last one of its connection."""
        self._ending = True

    async def _repeat(self, what: str, step: Callable[[], Awaitable[None]], every_s: float) -> None:
        logged = ""
        while True:
            wait_s = min(every_s, RETRY_S)
            try:
                await step()
                self._lacking.pop(what, None)
                logged, wait_s = "", every_s
            except (CertificateFault, ClusterError) as error:
                if str(error) != logged:
                    log.error(f"cannot get the {what}", error=str(error))
                logged = str(error)
                if what in self._lacking:
                    self._lacking[what] = logged
            except Exception:  # whatever it is, the next try may succeed, and reviews go on meanwhile
                log.exception(f"getting the {what} failed")
            await asyncio.sleep(wait_s)

    async def _refresh(self) -> None:
        ends = await self._certificates.refresh(self._context)
        if ends is not None:
            self._expiry.set(ends)
            log.info("certificate loaded", expires=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(ends)))

    async def _ask_version(self) -> None:
        assert self._ask is not None
        version = await self._ask()
        settings = settings_for(self._settings, version)
        if settings != self._settings or "version" in self._lacking:
            log.info("version of the cluster", kubernetes=".".join(map(str, version)), native=settings.native)
        self._settings = settings

    async def _mutate(self, request: web.Request) -> web.Response:
        try:
            async with self._body(request) as body:
                began = time.perf_counter()
                answer = await self._answered(body)
                self._duration.observe(time.perf_counter() - began)
        except _ReviewRefused as error:
            self._reviews.labels(error.result).inc()
            log.warning("review request not handled", result=error.result, status=error.status, why=str(error))
            response = web.Response(status=error.status, text=f"{error}\n")
        else:
            self._reviews.labels(answer.result).inc()
            _log(answer)
            response = web.Response(body=answer.body, content_type="application/json")
        if self._ending:
            response.force_close()  # an API server would go on to use its connection, whatever the Service says
        return response

    async def _answered(self, body: bytes) -> Answer:
        if "version" in self._lacking:
            raise _ReviewRefused(503, self._lacking["version"], "error")
        try:
            if len(body) < LARGE_BYTES:
                return review(body, self._settings)
            async with self._large:
                return await asyncio.to_thread(review, body, self._settings)
        except MalformedReview as error:
            raise _ReviewRefused(400, str(error)) from None
        except Exception:  # a defect must not take the webhook down, and is for the API server's failurePolicy
            log.exception("a review failed")
            raise _ReviewRefused(500, "the review failed; the injector's log has the reason", "error") from None

    @asynccontextmanager
    async def _body(self, request: web.Request) -> AsyncIterator[bytes]:
        """The body, which counts as buffered until the block ends."""
        if request.content_type != "application/json":
            raise _ReviewRefused(415, f"the content type should be application/json, not {request.content_type[:60]!r}")
        if request.headers.get(hdrs.CONTENT_ENCODING, "identity").lower() != "identity":
            raise _ReviewRefused(415, "the review should not be encoded")
        too_large = _ReviewRefused(413, f"the review has more than {BODY_BYTES_MAX} bytes")
        if (request.content_length or 0) > BODY_BYTES_MAX:
            raise too_large
        body = bytearray()
        try:
            try:
                async with asyncio.timeout(self._read_timeout_s):
                    async for chunk in request.content.iter_any():
                        body += chunk
                        self._buffered_bytes += len(chunk)
                        if len(body) > BODY_BYTES_MAX:
                            raise too_large
                        if self._buffered_bytes > BUFFERED_BYTES_MAX:
                            raise _ReviewRefused(503, "too many reviews at a time", "error")
            except TimeoutError:
                raise _ReviewRefused(408, f"the review did not arrive within {self._read_timeout_s:g} s") from None
            except (aiohttp.ClientError, HttpProcessingError, OSError):
                raise _ReviewRefused(400, "the connection ended before the end of the review") from None
            yield bytes(body)
        finally:
            self._buffered_bytes -= len(body)

    async def _livez(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _: web.Request) -> web.Response:
        why = "the injector is stopping" if self._ending else "; ".join(self._lacking.values())
        return web.Response(status=503, text=f"{why}\n") if why else web.Response(text="ok\n")

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


def _log(answer: Answer) -> None:
    if answer.result == "unchanged":
        return
    about = {"pod": answer.about, **({"dry_run": True} if answer.dry_run else {})}
    if answer.result == "refused":
        log.warning("pod refused", why=answer.refusal, **about)
    else:
        log.info("gateway injected into the pod", **({"warnings": answer.warnings} if answer.warnings else {}), **about)


@contextmanager
def _task(work: Coroutine[None, None, None]) -> Iterator[None]:
    task = asyncio.get_running_loop().create_task(work)
    try:
        yield
    finally:
        task.cancel()
