"""What the webhook shows of itself: certificates from files, or its own; new ones are taken without a restart."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Protocol

from sidecar.basics.fault_reasons import reason_of
from sidecar.basics.logger import get_logger
from sidecar.kubernetes.certificates import expires, renewed, service_names
from sidecar.kubernetes.cluster import ATTEMPTS_MAX, Cluster, ClusterError, Conflict

FILE_BYTES_MAX: Final = 1_048_576
SPREAD_S: Final = 5.0
"""For API servers to hear of a new authority, before what it signed is shown in the place of a good certificate."""
log = get_logger("sidecar.injector")


class CertificateFault(Exception):
    """There is no certificate that could be shown. The message says why, and holds no key."""


class Certificates(Protocol):
    """Where certificates come from."""

    every_s: float
    """How often there may be news."""

    async def refresh(self, context: ssl.SSLContext) -> float | None:
        """Loads what is new into ``context``; when it expires (Unix time), None if nothing is new.

        Raises:
            CertificateFault: there is nothing to load, or it cannot be used; what was loaded before stays.
        """


def load(context: ssl.SSLContext, certificate: bytes, key: bytes) -> float:
    """Puts a pair into the context; handshakes from now on show it. Returns when it expires.

    OpenSSL reads files only, and a container's file system may be read-only: these two never touch one.

    Raises:
        CertificateFault: they are none, or do not belong together.
    """
    with ExitStack() as stack:
        certificate_path, key_path = (_in_memory(content, stack) for content in (certificate, key))
        try:
            ends = expires(certificate).timestamp()
            # A trial first: a pair that does not fit would leave the context with one half of it.
            for each in (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), context):
                each.load_cert_chain(certificate_path, key_path, password=_no_password)
        except (OSError, ValueError) as error:
            raise CertificateFault(f"certificate and key cannot be used: {reason_of(error)}") from None
    return ends


class FromFiles:
    """As cert-manager and others write them into a volume. Compared by content: a volume swaps links, not times."""

    def __init__(self, certificate: Path, key: Path, *, every_s: float = 5.0) -> None:
        self.every_s = every_s
        self._certificate, self._key = certificate, key
        self._seen: tuple[bytes, bytes] | None = None

    async def refresh(self, context: ssl.SSLContext) -> float | None:
        try:
            pair = _content(self._certificate), _content(self._key)
        except OSError as error:
            raise CertificateFault(f"{error.filename}: {error.strerror}") from None
        if pair == self._seen:
            return None
        try:
            ends = load(context, *pair)
        except CertificateFault as error:
            raise CertificateFault(f"{self._certificate}, {self._key}: {error}") from None
        self._seen = pair
        return ends


class SelfSigned:
    """Its own authority, in a Secret that all replicas share, and in the webhook's configuration for the API server.

    Args:
        clock: an aware time.
    """

    def __init__(
        self,
        cluster: Cluster,
        *,
        service: str,
        namespace: str,
        secret: str,
        configuration: str,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        every_s: float = 60.0,
        spread_s: float = SPREAD_S,
    ) -> None:
        self.every_s = every_s
        self._cluster = cluster
        self._service, self._namespace, self._secret, self._configuration = service, namespace, secret, configuration
        self._clock, self._spread_s = clock, spread_s
        self._seen: tuple[bytes, bytes] | None = None

    async def refresh(self, context: ssl.SSLContext) -> float | None:
        names = service_names(self._service, self._namespace)
        try:
            for _ in range(ATTEMPTS_MAX):
                stored = await self._cluster.bundle(self._namespace, self._secret)
                bundle = renewed(stored.bundle, names, self._clock())
                if bundle is not stored.bundle:
                    try:
                        await self._cluster.keep_bundle(self._namespace, self._secret, bundle, stored)
                    except Conflict:
                        continue  # another replica has made one: that is everybody's now
                    is_kept = stored.bundle is not None and stored.bundle.ca_crt == bundle.ca_crt
                    log.info("certificate made", secret=self._secret, authority="kept" if is_kept else "new")
                is_new = await self._cluster.trust(
                    self._configuration, bundle.ca_crt, service=self._service, namespace=self._namespace
                )
                pair = bundle.tls_crt, bundle.tls_key
                if pair == self._seen:
                    return None
                if is_new and self._seen is not None:
                    await asyncio.sleep(self._spread_s)
                ends = load(context, *pair)
                self._seen = pair
                return ends
        except ClusterError as error:
            raise CertificateFault(str(error)) from None
        raise CertificateFault(f"the Secret {self._secret} changed {ATTEMPTS_MAX} times while it was to be written")


def _content(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(FILE_BYTES_MAX)


def _in_memory(content: bytes, stack: ExitStack) -> str:
    descriptor = os.memfd_create("pem")
    stack.callback(os.close, descriptor)
    with open(descriptor, "wb", closefd=False) as file:
        file.write(content)
    return f"/proc/self/fd/{descriptor}"


def _no_password() -> str:
    raise ValueError("the key is encrypted")  # else OpenSSL would ask the terminal
