"""A stand-in for the API server, for the few objects that an injector reads and writes: over TLS, with tokens, and with
the real one's rules about conflicts."""

from __future__ import annotations

import asyncio
import base64
import copy
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonpatch
from aiohttp import web

from sidecar.kubernetes.certificate_sources import load
from sidecar.kubernetes.certificates import renewed

SECRETS = "/api/v1/namespaces/quota/secrets"
SECRET = f"{SECRETS}/injector-tls"
CONFIGURATION = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/injector"


def configuration(*services: str) -> dict[str, Any]:
    """A MutatingWebhookConfiguration with a webhook for each service."""
    webhooks = [
        {
            "name": f"{number}.inject.quota.openova.io",
            "clientConfig": {"service": {"name": name, "namespace": "quota", "path": "/mutate", "port": 443}},
            "admissionReviewVersions": ["v1"],
            "sideEffects": "None",
        }
        for number, name in enumerate(services)
    ]
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": "injector"},
        "webhooks": webhooks,
    }


@dataclass
class ApiServer:
    """``objects`` by path. ``requests`` are those that came, as ``METHOD path``.

    Attributes:
        meeting: the first so many readers of the Secret wait for each other, so that all see the same.
        answers: what is answered instead, by ``METHOD path``: a status and a document, each once.
        delay_s: before each answer.
    """

    account: Path
    token: str = "token-1"
    minor: str = "31"
    objects: dict[str, dict[str, Any]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    meeting: asyncio.Barrier | None = None
    answers: dict[str, list[tuple[int, Any]]] = field(default_factory=dict)
    delay_s: float = 0.0
    url: str = ""
    _version: int = 100

    def give_token(self, token: str) -> None:
        self.token = token
        (self.account / "token").write_text(f"{token}\n")

    def put(self, path: str, document: dict[str, Any]) -> None:
        self._version += 1
        made = copy.deepcopy(document)
        made["metadata"] = {**made.get("metadata", {}), "resourceVersion": str(self._version)}
        self.objects[path] = made

    def secret(self) -> dict[str, bytes]:
        return {name: base64.b64decode(value) for name, value in self.objects[SECRET]["data"].items()}

    def ca_bundles(self) -> list[bytes]:
        clients = [each["clientConfig"] for each in self.objects[CONFIGURATION]["webhooks"]]
        return [base64.b64decode(client.get("caBundle", "")) for client in clients]

    async def answer(self, request: web.Request) -> web.Response:
        what = f"{request.method} {request.path}"
        self.requests.append(what)
        await asyncio.sleep(self.delay_s)
        if request.headers.get("Authorization") != f"Bearer {self.token}":
            return _failure(401, "Unauthorized")
        if self.answers.get(what):
            status, document = self.answers[what].pop(0)
            return web.json_response(document, status=status)
        if what == f"GET {SECRET}" and self.meeting is not None:
            seen = self.objects.get(SECRET)  # what is there now, before others go on
            meeting = self.meeting
            if await meeting.wait() == 0:
                self.meeting = None
            return web.json_response(seen) if seen else _failure(404, "not found")
        if request.path == "/version":
            return web.json_response({"major": "1", "minor": self.minor, "gitVersion": f"v1.{self.minor}.0"})
        return self._object(request, await request.json() if request.can_read_body else None)

    def _object(self, request: web.Request, body: Any) -> web.Response:
        path = request.path
        if request.method == "POST":
            path = f"{path}/{body['metadata']['name']}"
            if path in self.objects:
                return _failure(409, "already exists", "AlreadyExists")
            self.put(path, body)
            return web.json_response(self.objects[path], status=201)
        found = self.objects.get(path)
        if found is None:
            return _failure(404, "not found", "NotFound")
        if request.method == "PUT":
            if body["metadata"].get("resourceVersion") not in (None, found["metadata"]["resourceVersion"]):
                return _failure(409, "the object has been modified; please apply your changes", "Conflict")
            if body.get("type") != found.get("type"):
                return _failure(422, f"type: Invalid value: {body}: field is immutable", "Invalid")
            self.put(path, body)
        elif request.method == "PATCH":
            if request.content_type != "application/json-patch+json":
                return _failure(415, "the body of the request was in an unknown format")
            try:
                self.put(path, jsonpatch.apply_patch(found, body))
            except jsonpatch.JsonPatchException:
                return _failure(422, "the server rejected our request due to an error in our request", "Invalid")
        return web.json_response(self.objects[path])


def _failure(status: int, message: str, reason: str = "") -> web.Response:
    document = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "reason": reason}
    return web.json_response({**document, "code": status}, status=status)


@asynccontextmanager
async def api_server(account: Path, host: str = "127.0.0.1") -> AsyncIterator[ApiServer]:
    """A running one; the files of a service account that may use it are in ``account``."""
    names = ["kubernetes.default.svc", "localhost"]
    bundle = renewed(None, names, datetime.now(UTC))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    load(context, bundle.tls_crt, bundle.tls_key)
    made = ApiServer(account)
    made.give_token("token-1")
    (account / "ca.crt").write_bytes(bundle.ca_crt)
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", made.answer)
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
    await runner.setup()
    site = web.TCPSite(runner, host, 0, ssl_context=context)
    await site.start()
    made.url = f"https://localhost:{runner.addresses[0][1]}"
    try:
        yield made
    finally:
        await runner.cleanup()
