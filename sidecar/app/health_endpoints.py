"""What the health port answers: to anybody who reaches it, hence little."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from prometheus_client.exposition import CONTENT_TYPE_LATEST

from sidecar.app.admin_endpoints import ALLOWED, Answer, problem, text
from sidecar.app.application_checks import ApplicationChecks, CheckFailed
from sidecar.app.data_plane import Health
from sidecar.basics.logger import get_logger

_APPLICATION: Final = "/app/"
log = get_logger("sidecar.health")


@dataclass(frozen=True, slots=True)
class HealthEndpoints:
    """One process's.

    Attributes:
        health: whether new requests can be served.
        metrics: the exposition text, or None where it is not for everybody.
        drained: waits until the gateway has drained, and says whether it has; None where nothing drains.
        checks: of the application beside the gateway.
    """

    health: Callable[[], Awaitable[Health]]
    metrics: Callable[[], Awaitable[bytes]] | None
    drained: Callable[[], Awaitable[bool]] | None
    checks: ApplicationChecks

    async def answer(self, method: str, path: str, query: str, authorization: str) -> Answer:
        """The answer to a request, whatever happens meanwhile. Arguments as of `AdminEndpoints.answer`."""
        if not self._has(path):
            return problem(404, "There is nothing here.")
        if method not in ALLOWED:
            return problem(405, "Use GET or HEAD.", (("Allow", ", ".join(ALLOWED)),))
        try:
            return await self._answer(path)
        except Exception:  # whatever it is, who watches needs an answer, and the next one too
            log.exception("a health request failed", path=path[:200])
            return problem(500, "The request failed. See the log.")

    def _has(self, path: str) -> bool:
        if path.startswith(_APPLICATION):
            return path.removeprefix(_APPLICATION) in self.checks
        optional = {"/metrics": self.metrics, "/drained": self.drained}
        return path in ("/livez", "/readyz") or optional.get(path) is not None

    async def _answer(self, path: str) -> Answer:
        if path == "/livez":
            return text(200, "ok")
        if path == "/readyz":
            health = await self.health()
            return text(200, health.why or "ok") if health.ready else text(503, health.why)
        if path == "/metrics" and self.metrics is not None:
            return Answer(200, await self.metrics(), CONTENT_TYPE_LATEST)
        if path == "/drained" and self.drained is not None:
            return text(200, "drained") if await self.drained() else text(503, "not drained")
        try:
            await self.checks.run(path.removeprefix(_APPLICATION))
        except CheckFailed as error:
            return text(503, str(error))
        return text(200, "ok")
