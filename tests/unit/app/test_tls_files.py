"""What is said of certificates and keys that cannot be used: which setting, which file, what to do."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from sidecar.app.assemble import listen_tls, upstream_target
from sidecar.app.configuration import load_config
from sidecar.basics.errors import SetupError

PASSWORD = "correct-horse"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A directory with a certificate, its key, the key under a password, the key of another, and what is no PEM."""
    key, other = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "gateway")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    pem = serialization.Encoding.PEM
    plain = serialization.PrivateFormat.PKCS8
    locked = serialization.BestAvailableEncryption(PASSWORD.encode())
    (tmp_path / "tls.crt").write_bytes(certificate.public_bytes(pem))
    (tmp_path / "tls.key").write_bytes(key.private_bytes(pem, plain, serialization.NoEncryption()))
    (tmp_path / "locked.key").write_bytes(key.private_bytes(pem, plain, locked))
    (tmp_path / "other.key").write_bytes(other.private_bytes(pem, plain, serialization.NoEncryption()))
    (tmp_path / "junk").write_text("junk\n")
    return tmp_path


def said(files: Path, section: str, **names: str) -> str:
    """The message for these settings of a TLS section, "" if they can be used; the directory is left out of it."""
    tls = {name: str(files / value) if name.endswith("_file") else value for name, value in names.items()}
    settings = {f"SIDECAR_{section}__TLS__{name.upper()}": value for name, value in tls.items()}
    config = load_config(None, {"SIDECAR_VALKEY": "valkey://h", "SIDECAR_UPSTREAM__URL": "https://api", **settings})
    try:
        listen_tls(config)
        upstream_target(config)
    except SetupError as error:
        return str(error).replace(f"{files}/", "")
    return ""


PAIRS = {
    "a pair": (("tls.crt", "tls.key"), ""),
    "no certificate there": (("none", "tls.key"), "certificate_file: none cannot be read: no such file or directory"),
    "no key there": (("tls.crt", "none"), "key_file: none cannot be read: no such file or directory"),
    "a certificate that is none": (("junk", "tls.key"), "certificate_file: junk holds no certificate in PEM"),
    "a key that is none": (("tls.crt", "junk"), "key_file: junk holds no private key in PEM"),
    "files in each other's place": (("tls.key", "tls.crt"), "certificate_file: tls.key holds no certificate in PEM"),
    "another's key": (
        ("tls.crt", "other.key"),
        "key_file: the key in other.key does not belong to the certificate in tls.crt",
    ),
}


@pytest.mark.parametrize("section", ["LISTEN", "UPSTREAM"])
@pytest.mark.parametrize(("names", "message"), PAIRS.values(), ids=PAIRS)
def test_a_pair_that_cannot_be_used_is_told_by_setting_and_file(
    section: str, names: tuple[str, str], message: str, files: Path
) -> None:
    expected = f"{section.lower()}.tls.{message}" if message else ""
    assert said(files, section, certificate_file=names[0], key_file=names[1]) == expected


@pytest.mark.parametrize(
    ("password", "message"),
    [
        (PASSWORD, ""),
        ("wrong", "listen.tls.key_password: is wrong: locked.key is encrypted"),
        ("", "listen.tls.key_password: is needed (or key_password_file): locked.key is encrypted"),
    ],
)
def test_an_encrypted_key_needs_its_password_and_asks_nobody_at_the_terminal(
    password: str, message: str, files: Path
) -> None:
    given = {"key_password": password} if password else {}
    assert said(files, "LISTEN", certificate_file="tls.crt", key_file="locked.key", **given) == message


def test_an_encrypted_key_towards_the_api_is_told_as_that(files: Path) -> None:
    assert said(files, "UPSTREAM", certificate_file="tls.crt", key_file="locked.key") == (
        "upstream.tls.key_file: locked.key is encrypted; give the key without a password"
    )


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ("tls.crt", ""),
        ("junk", "junk holds no certificate in PEM"),
        ("none", "none cannot be read: no such file or directory"),
    ],
)
def test_authorities_that_cannot_be_used_are_told_by_setting_and_file(file: str, reason: str, files: Path) -> None:
    expected = f": {reason}" if reason else ""
    assert said(files, "UPSTREAM", ca_file=file) == (f"upstream.tls.ca_file{expected}" if reason else "")
    clients = {"client_ca_file": file, "client_certificates": "optional"}
    found = said(files, "LISTEN", certificate_file="tls.crt", key_file="tls.key", **clients)
    assert found == (f"listen.tls.client_ca_file{expected}" if reason else "")
