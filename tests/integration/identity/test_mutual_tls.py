"""The organisation identifier out of a real TLS handshake."""

from __future__ import annotations

import asyncio
import datetime as dt
import ssl
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from sidecar.identity.build import build_chain
from sidecar.identity.peers import TrustedPeers
from sidecar.identity.settings import MtlsSettings
from sidecar.identity.types import Identity, Outcome, Peer
from tests.unit.identity.kit import ORGANISATION_IDENTIFIER, reason_of, settled


@dataclass(frozen=True)
class Authority:
    """A certificate authority that writes certificates with their keys into a folder."""

    folder: Path
    key: ec.EllipticCurvePrivateKey
    cert: x509.Certificate

    @classmethod
    def create(cls, folder: Path) -> Authority:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")])
        cert = (
            cls.builder(name, name, key).add_extension(x509.BasicConstraints(True, 0), True).sign(key, hashes.SHA256())
        )
        (folder / "ca.pem").write_bytes(cert.public_bytes(Encoding.PEM))
        return cls(folder, key, cert)

    @staticmethod
    def builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(hours=1))
        )

    def issue(self, name: str, *identifiers: str) -> Path:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name(
            [x509.NameAttribute(ORGANISATION_IDENTIFIER, text) for text in identifiers]
            + [x509.NameAttribute(NameOID.COMMON_NAME, name)]
        )
        cert = (
            self.builder(subject, self.cert.subject, key)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), False)
            .sign(self.key, hashes.SHA256())
        )
        path = self.folder / f"{name}.pem"
        secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        path.write_bytes(cert.public_bytes(Encoding.PEM) + secret)
        return path


async def identified(folder: Path, server_pem: Path, client_pem: Path | None) -> Outcome:
    """Connect with TLS and tell who the server took the client for."""
    chain = build_chain([MtlsSettings(type="mtls")])
    peers = TrustedPeers()
    outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        address = writer.get_extra_info("peername")[0]
        der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        answer = await settled(chain.identify({}, Peer(address, peers.trusts(address), der)))
        assert answer is not None
        outcome.set_result(answer)
        writer.close()

    server_tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=folder / "ca.pem")
    server_tls.verify_mode = ssl.CERT_OPTIONAL
    server_tls.load_cert_chain(server_pem)
    client_tls = ssl.create_default_context(cafile=folder / "ca.pem")
    if client_pem is not None:
        client_tls.load_cert_chain(client_pem)
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server_tls)
    async with server:
        port = server.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client_tls, server_hostname="gateway")
        assert await reader.read() == b""
        writer.close()
        return await outcome


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.create(tmp_path_factory.mktemp("authority"))


async def test_a_client_is_the_organisation_of_its_certificate(authority: Authority) -> None:
    gateway, client = authority.issue("gateway"), authority.issue("tpp", "PSDGB-FCA-123456")
    assert await identified(authority.folder, gateway, client) == Identity("PSDGB-FCA-123456", "mtls")


async def test_a_client_whose_certificate_names_no_organisation_is_refused(authority: Authority) -> None:
    gateway, client = authority.issue("gateway"), authority.issue("nobody")
    assert "no organizationIdentifier" in reason_of(await identified(authority.folder, gateway, client))


async def test_a_client_without_certificate_has_shown_no_credential(authority: Authority) -> None:
    gateway = authority.issue("gateway")
    assert "the request has no credential" in reason_of(await identified(authority.folder, gateway, None))
