"""Every way to reach a Valkey: by password, as an ACL user, another database, a Unix socket, TLS, Sentinels."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from sidecar.ledger.client.outcomes import Code
from sidecar.valkey.resp import LedgerConnectionError, RespConnection, ServerAddress
from sidecar.valkey.topology import Topology, connected
from sidecar.valkey.url import Address, Credentials, Sentinel, Standalone, Tls, parse_valkey_url
from tests.integration.ledger_client.kit import KEYS, ask, calls, client_of, load, until
from tests.support.ledger_totals import read_totals
from tests.support.valkey_process import ValkeyProcess, free_port, valkey_process

PASSWORD = "correct-horse-battery"
USER_PASSWORD = "a p@ss/word:ü"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyProcess]:
    """Asks for a password, and knows a user who may do no more than a gateway has to."""
    directory = tmp_path_factory.mktemp("guarded")
    settings = {"requirepass": PASSWORD, "unixsocket": str(directory / "valkey.sock")}
    server = ValkeyProcess(directory, settings)
    server.start()
    with server_client(server) as admin:
        admin.acl_setuser(
            "gateway", enabled=True, passwords=[f"+{USER_PASSWORD}"], keys=["qs:*"], reset=True,
            categories=["+@all", "-@dangerous", "-@admin"],
        )  # fmt: skip
    try:
        yield server
    finally:
        server.stop()


def server_client(server: ValkeyProcess) -> redis.Redis:
    return redis.Redis(port=server.port, password=PASSWORD)


async def _works(topology: Topology) -> None:
    async with connected(topology) as control:
        await control.flushdb()
        await load(control, {"tpp": 3})
        async with client_of(topology) as client:
            assert await calls(client, "tpp", 4) == [*[Code.GRANTED] * 3, Code.CREDIT]
        totals = await read_totals(control, KEYS, ["tpp"])
        totals.check()
        assert totals.settled == {"tpp": 3}


@pytest.mark.parametrize("url", [
    "valkey://:{password}@127.0.0.1:{port}",
    "valkey://:{password}@127.0.0.1:{port}/5",
    "valkey://default:{password}@localhost:{port}",
    "valkey+unix://:{password}@{socket}?db=3",
])  # fmt: skip
async def test_it_works(guarded: ValkeyProcess, url: str) -> None:
    text = url.format(password=PASSWORD, port=guarded.port, socket=guarded.directory / "valkey.sock")
    await _works(parse_valkey_url(text))


async def test_it_works_as_a_user_who_may_touch_nothing_but_the_ledger(guarded: ValkeyProcess) -> None:
    with server_client(guarded) as admin:
        admin.flushall()
    who = Standalone(Address("127.0.0.1", guarded.port), Credentials("gateway", USER_PASSWORD))
    async with connected(Standalone(Address("127.0.0.1", guarded.port), Credentials(None, PASSWORD))) as control:
        await load(control, {"tpp": 3})
        async with client_of(who) as client:
            assert await calls(client, "tpp", 4) == [*[Code.GRANTED] * 3, Code.CREDIT]
        (await read_totals(control, KEYS, ["tpp"])).check()


@pytest.mark.parametrize(("username", "password", "why"), [
    (None, "wrong-horse", "refused AUTH"), ("nobody", PASSWORD, "refused AUTH"), (None, None, "NOAUTH"),
])  # fmt: skip
async def test_without_the_right_password_it_is_down_and_says_why_without_the_password(
    guarded: ValkeyProcess, capfd: pytest.CaptureFixture[str], username: str | None, password: str | None, why: str
) -> None:
    topology = Standalone(Address("127.0.0.1", guarded.port), Credentials(username, password))
    async with client_of(topology, ready=False) as client:
        await until(lambda: client._links[0]._overdue, client)
        assert not client.is_up
        assert (await ask(client, "tpp")).code == Code.UNAVAILABLE
    out, err = capfd.readouterr()
    assert why in out + err
    assert password is None or password not in out + err
    assert password is None or password not in repr(topology)


async def test_a_host_that_cannot_be_is_an_error_that_names_it_and_no_end_of_trying() -> None:
    with pytest.raises(LedgerConnectionError, match=r"Valkey at .*:6379"):
        await RespConnection.open(ServerAddress(host="x" * 70 + ".example"), timeout_s=2)


async def test_a_server_that_sends_without_end_is_not_read_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidecar.valkey.resp.REPLY_BYTES_MAX", 100_000)

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"quota-sidecar\r\n")
        writer.write(b"+OK\r\n$500000000\r\n")
        while not writer.is_closing():
            writer.write(b"x" * 10_000)
            await writer.drain()

    server = await asyncio.start_server(flood, "127.0.0.1", 0)
    async with server:
        connection = await RespConnection.open(ServerAddress(port=server.sockets[0].getsockname()[1]), timeout_s=5)
        with pytest.raises(LedgerConnectionError):
            await asyncio.wait_for(connection.call(b"PING"), 10)


# TLS: the bundled server has none, so a relay in front of it ends the TLS.


@dataclass(frozen=True)
class Authority:
    """A certificate authority for one test, and what it issued: files in PEM."""

    directory: Path
    name: str

    @property
    def ca_file(self) -> Path:
        return self.directory / f"{self.name}-ca.pem"

    def issue(self, host: str) -> ssl.SSLContext:
        """A server's context for ``host``."""
        ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
        ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{self.name} test authority")])
        ca = self._build(ca_name, ca_name, ca_key.public_key(), ca_key, None)
        try:
            alternative: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
        except ValueError:
            alternative = x509.DNSName(host)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
        certificate = self._build(subject, ca_name, key.public_key(), ca_key, alternative)
        self.ca_file.write_bytes(ca.public_bytes(serialization.Encoding.PEM))
        chain = self.directory / f"{self.name}-{host}.pem"
        chain.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + certificate.public_bytes(serialization.Encoding.PEM)
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(chain)
        return context

    @staticmethod
    def _build(
        subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, signer: ec.EllipticCurvePrivateKey,
        alternative: x509.GeneralName | None,
    ) -> x509.Certificate:  # fmt: skip
        now = datetime.datetime.now(datetime.UTC)
        builder = x509.CertificateBuilder(
            issuer, subject, public, x509.random_serial_number(), now - datetime.timedelta(hours=1),
            now + datetime.timedelta(hours=1),
        )  # fmt: skip
        builder = builder.add_extension(x509.BasicConstraints(alternative is None, None), critical=True)
        if alternative is not None:
            builder = builder.add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
        return builder.sign(signer, hashes.SHA256())


@asynccontextmanager
async def tls_before(port: int, context: ssl.SSLContext) -> AsyncIterator[int]:
    """Ends TLS before a server; yields the port."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pump(reader, server_writer), pump(server_reader, writer))

    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def test_it_works_over_tls(guarded: ValkeyProcess, tmp_path: Path) -> None:
    authority = Authority(tmp_path, "good")
    async with tls_before(guarded.port, authority.issue("127.0.0.1")) as port:
        who = Credentials(None, PASSWORD)
        await _works(Standalone(Address("127.0.0.1", port), who, tls=Tls(ca_file=authority.ca_file)))


@pytest.mark.parametrize(("ca", "host", "why"), [
    ("other", "127.0.0.1", "unable to get local issuer certificate"), ("good", "valkey.example", "ip address mismatch"),
])  # fmt: skip
async def test_a_server_with_a_certificate_that_is_not_its_own_is_given_no_password(
    guarded: ValkeyProcess, tmp_path: Path, capfd: pytest.CaptureFixture[str], ca: str, host: str, why: str
) -> None:
    good, other = Authority(tmp_path, "good"), Authority(tmp_path, "other")
    other.issue("127.0.0.1")
    believed = good if ca == "good" else other
    async with tls_before(guarded.port, good.issue(host)) as port:
        tls = Tls(ca_file=believed.ca_file)
        topology = Standalone(Address("127.0.0.1", port), Credentials(None, PASSWORD), tls=tls)
        async with client_of(topology, ready=False) as client:
            await until(lambda: client._links[0]._overdue, client)
            assert not client.is_up
    out, err = capfd.readouterr()
    assert why in (out + err).lower()
    assert PASSWORD not in out + err


async def test_sentinels_tell_where_the_primary_is(tmp_path: Path) -> None:
    with valkey_process(tmp_path / "primary") as primary:
        ports = [free_port() for _ in range(3)]
        sentinels = [ValkeyProcess(tmp_path / f"sentinel-{port}", {}, ("--sentinel",), port) for port in ports]
        try:
            for sentinel in sentinels:
                sentinel.settings = {"sentinel": f"monitor ledger 127.0.0.1 {primary.port} 2"}
                sentinel.start()
            nobody = free_port()
            hosts = tuple(Address("127.0.0.1", port) for port in (nobody, *ports))
            await _works(Sentinel(hosts, "ledger"))
            unknown = Sentinel(hosts, "another")
            async with client_of(unknown, ready=False) as client:
                await until(lambda: client._links[0]._overdue, client)
                assert not client.is_up
        finally:
            for sentinel in sentinels:
                sentinel.stop()
