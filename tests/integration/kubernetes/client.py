"""What an API server does with a webhook: it trusts the caBundle, asks for the Service's name, and posts reviews."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
from dataclasses import dataclass
from typing import Any

import jsonpatch
from cryptography import x509

from sidecar.kubernetes.certificates import service_names

NAME = service_names("injector", "quota")[0]


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def patched(self, obj: dict[str, Any]) -> dict[str, Any]:
        response = json.loads(self.body)["response"]
        made: dict[str, Any] = jsonpatch.apply_patch(obj, json.loads(base64.b64decode(response["patch"])))
        return made


class Connection:
    """One connection, on which requests follow each other."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(
        cls, port: int, ca_bundle: bytes, version: ssl.TLSVersion = ssl.TLSVersion.MAXIMUM_SUPPORTED
    ) -> Connection:
        context = ssl.create_default_context(cadata=ca_bundle.decode())
        context.maximum_version = version
        return cls(*await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=NAME))

    def certificate(self) -> x509.Certificate:
        """What the other side showed."""
        return x509.load_der_x509_certificate(self.writer.get_extra_info("ssl_object").getpeercert(binary_form=True))

    def send(self, body: bytes, length: int | None = None, kind: str = "application/json", extra: str = "") -> None:
        head = f"POST /mutate?timeout=5s HTTP/1.1\r\nHost: {NAME}:443\r\nContent-Type: {kind}\r\n{extra}"
        size = "" if "chunked" in extra else f"Content-Length: {len(body) if length is None else length}\r\n"
        self.writer.write(f"{head}{size}\r\n".encode() + body)

    async def answer(self) -> Answer:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        first, *fields = head.rstrip().split("\r\n")
        headers = {name.lower(): value for name, value in (each.split(": ", 1) for each in fields)}
        return Answer(int(first.split()[1]), headers, await self.reader.readexactly(int(headers["content-length"])))

    async def post(self, document: Any, **how: Any) -> Answer:
        self.send(document if isinstance(document, bytes) else json.dumps(document).encode(), **how)
        return await self.answer()

    async def is_closed(self, within_s: float = 5.0) -> bool:
        async with asyncio.timeout(within_s):
            try:
                return await self.reader.read() == b""
            except OSError:
                return True

    def close(self) -> None:
        self.writer.transport.abort()
