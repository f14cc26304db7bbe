"""The few things that an injector asks of the Kubernetes API, as the pod's service account."""

from __future__ import annotations

import asyncio
import base64
import binascii
import os
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx

from sidecar.basics.fault_reasons import reason_of
from sidecar.kubernetes.certificates import Bundle, trusts

ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TIMEOUT_S: Final = 10.0
ATTEMPTS_MAX: Final = 5
_FIELDS: Final = ("ca.crt", "ca.key", "tls.crt", "tls.key")
_TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/=-]{1,65536}")


class ClusterError(Exception):
    """The API cannot be reached or refuses; the message names what was asked for, and no secret."""


class Conflict(ClusterError):
    """Somebody else was faster; what is there now has to be read again."""


@dataclass(frozen=True, slots=True)
class StoredBundle:
    """A bundle, and the Secret that it was read from; None where there is none."""

    bundle: Bundle | None
    document: dict[str, Any] | None

    def __repr__(self) -> str:
        return "<StoredBundle>"  # keys do not get into logs


class Cluster:
    """``account``: directory with ``token`` and ``ca.crt``. Both are read for every request, since they rotate."""

    def __init__(self, url: str, account: Path = ACCOUNT, *, timeout_s: float = TIMEOUT_S) -> None:
        self._url, self._account, self._timeout_s = url, account, timeout_s

    def __repr__(self) -> str:
        return f"Cluster({self._url})"

    @classmethod
    def of_pod(cls, environment: Mapping[str, str] = os.environ, account: Path = ACCOUNT) -> Cluster:
        """The cluster that this pod runs in.

        Raises:
            ClusterError: it runs in none.
        """
        host, port = environment.get("KUBERNETES_SERVICE_HOST"), environment.get("KUBERNETES_SERVICE_PORT")
        if not host or not port:
            raise ClusterError(
                "this process does not run in a pod: KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set"
            )
        return cls(f"https://{f'[{host}]' if ':' in host else host}:{port}", account)

    async def version(self) -> tuple[int, int]:
        """Major and minor, like ``(1, 29)``. Raises `ClusterError`."""
        document = await self._ask("GET", "/version")
        found = [re.match("[0-9]{1,4}", str(document.get(part))) for part in ("major", "minor")]  # "29+" at some clouds
        if found[0] is None or found[1] is None:
            raise ClusterError("GET /version answered without a version")
        return int(found[0][0]), int(found[1][0])

    async def bundle(self, namespace: str, name: str) -> StoredBundle:
        """What the Secret holds.

        Raises:
            ClusterError: it cannot be read, or holds something else, which is not overwritten.
        """
        document = await self._ask("GET", _secrets(namespace, name), absent_ok=True)
        if document is None:
            return StoredBundle(None, None)
        data = document.get("data") or {}
        if not data:
            return StoredBundle(None, document)
        if not set(_FIELDS) <= set(data):
            raise ClusterError(
                f"the Secret {namespace}/{name} has other contents: give the injector a Secret of its own"
            )
        try:
            return StoredBundle(Bundle(*(base64.b64decode(data[field], validate=True) for field in _FIELDS)), document)
        except (binascii.Error, TypeError):
            return StoredBundle(None, document)

    async def keep_bundle(self, namespace: str, name: str, bundle: Bundle, stored: StoredBundle) -> None:
        """Writes the Secret, unless somebody else did since ``stored`` was read.

        Raises:
            Conflict: somebody did.
            ClusterError: it cannot be written.
        """
        values = (bundle.ca_crt, bundle.ca_key, bundle.tls_crt, bundle.tls_key)
        data = {field: base64.b64encode(value).decode() for field, value in zip(_FIELDS, values, strict=True)}
        if stored.document is not None:  # with the resourceVersion, labels and annotations that it had
            await self._ask("PUT", _secrets(namespace, name), {**stored.document, "data": data})
            return
        document = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": namespace}}
        await self._ask("POST", _secrets(namespace), {**document, "type": "Opaque", "data": data})

    async def trust(self, configuration: str, ca_crt: bytes, *, service: str, namespace: str) -> bool:
        """Writes the authorities into the webhooks of a MutatingWebhookConfiguration that call the service.

        Those that trust them already are left alone: another replica may have added a newer one.

        Returns:
            Whether there was something to write.

        Raises:
            ClusterError: no such configuration or webhook, or it changes faster than it can be written.
        """
        path = f"/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/{configuration}"
        fault = ""
        for _ in range(ATTEMPTS_MAX):
            document = await self._ask("GET", path)
            clients = [each.get("clientConfig") or {} for each in document.get("webhooks") or []]
            ours = [at for at, each in enumerate(clients) if _calls(each, service, namespace)]
            if not ours:
                raise ClusterError(f"{path}: has no webhook that calls the service {namespace}/{service}")
            stale = [at for at in ours if not trusts(_decoded(clients[at].get("caBundle")), ca_crt)]
            if not stale:
                return False
            version = (document.get("metadata") or {}).get("resourceVersion")
            patch: list[dict[str, Any]] = [{"op": "test", "path": "/metadata/resourceVersion", "value": version}]
            value = base64.b64encode(ca_crt).decode()
            patch += [{"op": "add", "path": f"/webhooks/{at}/clientConfig/caBundle", "value": value} for at in stale]
            try:
                await self._ask("PATCH", path, patch)
            except Conflict as error:
                fault = str(error)
                continue
            return True
        raise ClusterError(f"{fault}, {ATTEMPTS_MAX} times")

    async def _ask(self, method: str, path: str, body: Any = None, *, absent_ok: bool = False) -> Any:
        what = f"{method} {path}"
        kind = "application/json-patch+json" if method == "PATCH" else "application/json"
        headers = {"Authorization": f"Bearer {self._token()}", "Content-Type": kind}
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                httpx.AsyncClient(verify=self._context(), timeout=self._timeout_s, trust_env=False) as client,
            ):
                answer = await client.request(method, self._url + path, json=body, headers=headers)
        except TimeoutError:
            raise ClusterError(f"{what}: no answer within {self._timeout_s:g} s") from None
        except (OSError, ValueError, httpx.HTTPError, httpx.InvalidURL) as error:
            raise ClusterError(f"{what}: {reason_of(error)}") from None
        if answer.status_code == 404 and absent_ok:
            return None
        try:
            document = answer.json()
        except ValueError:
            document = None
        if answer.is_success and isinstance(document, dict):
            return document
        said = str(document.get("message", "")) if isinstance(document, dict) else "that is no object"
        if method in ("POST", "PUT") and answer.status_code != 403:
            said = ""  # it might quote the key that it was sent
        fault = f"{what} answered {answer.status_code}{f': {said[:300]}' if said else ''}"
        # What was created meanwhile, and an old resourceVersion, are 409; a failed test of a patch is 422.
        if answer.status_code == 409 or (method == "PATCH" and answer.status_code == 422):
            raise Conflict(fault)
        raise ClusterError(fault)

    def _token(self) -> str:
        path = self._account / "token"
        try:
            token = path.read_text("ascii").strip()
        except OSError as error:
            raise ClusterError(f"{path}: {error.strerror}") from None
        except ValueError:
            token = ""
        if _TOKEN.fullmatch(token) is None:  # else the error of the HTTP client would show it
            raise ClusterError(f"{path}: holds no token")
        return token

    def _context(self) -> ssl.SSLContext:
        path = self._account / "ca.crt"
        try:
            return ssl.create_default_context(cafile=path)
        except OSError as error:
            raise ClusterError(f"{path}: {error.strerror or error}") from None


def _secrets(namespace: str, name: str = "") -> str:
    return f"/api/v1/namespaces/{namespace}/secrets{name and f'/{name}'}"


def _calls(client: dict[str, Any], service: str, namespace: str) -> bool:
    called = client.get("service") or {}
    return (called.get("name"), called.get("namespace")) == (service, namespace)


def _decoded(text: Any) -> bytes:
    try:
        return base64.b64decode(text or "", validate=True)
    except (binascii.Error, TypeError, ValueError):
        return b""
