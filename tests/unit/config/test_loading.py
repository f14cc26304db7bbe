"""A whole file becomes a configuration; secrets come from files and stay hidden."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sidecar.app.configuration import load_config
from sidecar.config.errors import ConfigError
from sidecar.valkey.url import Credentials, Sentinel, Standalone, Tls
from tests.unit.config.loads import FILE, SMALLEST, errors, load

TOKEN = "correct-horse-battery"

EVERYTHING = """\
listen:
  host: "::"
  port: 8443
  workers: 4
  backlog: 512
  reuse_port: true
  tls:
    certificate_file: /tls/tls.crt
    key_file: /tls/tls.key
    client_ca_file: /tls/ca.crt
    client_certificates: optional
    minimum_version: "1.3"
upstream:
  url: https://api.bank.internal:8443
  tls: {ca_file: /tls/upstream.crt, server_name: api.bank.example}
  connect_timeout_ms: 500
  via: off
limits:
  body_bytes_max: null
  requests_per_connection_max: 1000
valkey: valkeys+sentinel://quota@s1,s2:26380/main/2
valkey_password: hunter2
valkey_sentinel_username: watcher
valkey_sentinel_password: hunter3
valkey_tls: {ca_file: /tls/valkey.crt, verify: no}
ledger:
  partitions: 8
  on_ledger_failure: open
  open: {spool_directory: /var/spool/quota}
trusted_peers: [10.0.0.0/8, unix]
identity:
  - type: mtls
    accounts: {PSDGB-FCA-123456: tpp-1}
  - {type: trusted_header, header: X-Account}
  - {type: api_key, ttl_s: 2.5}
routes:
  - {path: /open-banking/health, free: true}
  - path: /open-banking/v3.1/aisp/accounts/{AccountId}
    methods: [GET]
    units: 2
    charge_statuses: [2xx, 404]
    idempotency: off
  - path: /open-banking/**
default_route: deny
metering: {url: "http://openmeter:8888"}
admin: {host: 0.0.0.0, token: correct-horse-battery}
log: {level: debug, format: console, access: all}
credit_headers: {rate_limit: false}
error_format: obie
error_documentation_url: https://developer.bank.example/errors
"""


def test_every_section_is_read() -> None:
    config = load(EVERYTHING)

    assert config.listen.tls is not None
    assert config.listen.tls.client_certificates == "optional"
    assert config.upstream.via is False
    assert config.limits.body_bytes_max is None
    assert [route.path for route in config.routes] == [
        "/open-banking/health",
        "/open-banking/v3.1/aisp/accounts/{AccountId}",
        "/open-banking/**",
    ]
    assert config.routes[1].charged_statuses == frozenset([101, *range(200, 300), 304, 404])
    assert config.routes[1].idempotency is None
    assert config.default_route == "deny"
    assert [resolver.type for resolver in config.identity] == ["mtls", "trusted_header", "api_key"]
    assert config.ledger.open.spool_directory == Path("/var/spool/quota")
    assert config.error_format == "obie"


def test_the_topology_is_complete_with_passwords_and_tls_files() -> None:
    topology = load(EVERYTHING).valkey

    assert isinstance(topology, Sentinel)
    assert topology.credentials == Credentials("quota", "hunter2")
    assert topology.sentinel_credentials == Credentials("watcher", "hunter3")
    assert topology.tls == Tls(ca_file=Path("/tls/valkey.crt"), verify=False)


def test_the_smallest_file_is_enough_and_is_closed_to_strangers() -> None:
    config = load(SMALLEST)

    assert config.admin.host == "127.0.0.1"
    assert config.trusted_peers == ()
    assert [resolver.type for resolver in config.identity] == ["api_key"]
    assert config.ledger.on_ledger_failure == "closed"
    assert config.routes == ()
    assert config.default_route != "deny"


def test_a_configuration_does_not_change() -> None:
    config = load(SMALLEST)

    with pytest.raises(ValueError, match="frozen"):
        config.log.level = "debug"


def test_no_text_form_of_a_configuration_shows_a_secret() -> None:
    config = load(EVERYTHING)

    text = f"{config!r} {config} {config.model_dump_json()}"

    assert not [secret for secret in ("hunter2", "hunter3", TOKEN) if secret in text]


@pytest.mark.parametrize("content", [TOKEN, TOKEN + "\n", TOKEN + "\r\n"])
def test_a_secret_can_be_read_from_a_file(content: str) -> None:
    Path("token").write_bytes(content.encode())

    token = load(SMALLEST + "admin: {token_file: token}\n").admin.token

    assert token is not None
    assert token.get_secret_value() == TOKEN


def test_a_secret_s_file_can_be_named_by_a_variable() -> None:
    Path("pw").write_text("hunter2\n")

    topology = load(
        "upstream: {url: 'http://h'}\nvalkey: valkey://u@h\n", {"SIDECAR_VALKEY_PASSWORD_FILE": "pw"}
    ).valkey

    assert isinstance(topology, Standalone)
    assert topology.credentials == Credentials("u", "hunter2")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "admin.token_file: token: No such file or directory"),
        (b"", "admin.token_file: token is empty"),
        (b"\n", "admin.token_file: token is empty"),
        (b"\xff" * 20, "admin.token_file: is not the path of a text file"),
        (b"x" * 65_537, "admin.token_file: token is larger than 65536 bytes"),
        (b"short", "admin.token: should be 16 or more visible ASCII characters: it is sent in a header"),
    ],
)
def test_a_secret_s_file_that_cannot_be_used_is_named_with_its_line(content: bytes | None, message: str) -> None:
    if content is not None:
        Path("token").write_bytes(content)

    assert errors(SMALLEST + "admin:\n  token_file: token\n") == [f"gateway.yaml:4: {message}"]


def test_a_secret_and_its_file_exclude_each_other() -> None:
    Path("token").write_text(TOKEN)

    assert errors(SMALLEST + f"admin:\n  token: {TOKEN}\n  token_file: token\n") == [
        "gateway.yaml:5: admin.token_file: is set, but token is set too (gateway.yaml:4); set only one of them"
    ]


def test_the_token_of_metering_stays_in_its_file_for_the_publisher_to_read_again() -> None:
    metering = load(SMALLEST + "metering: {token_file: token}\n").metering

    assert (metering.token, metering.token_file) == (None, Path("token"))


def test_a_file_that_is_not_there_is_an_error_with_its_name() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(Path("nowhere.yaml"), {})

    assert str(caught.value) == "nowhere.yaml: No such file or directory"


def test_a_directory_is_no_configuration(working_directory: Path) -> None:
    with pytest.raises(ConfigError, match="Is a directory"):
        load_config(working_directory, {})


def test_a_configuration_can_come_through_a_pipe() -> None:
    read_end, write_end = os.pipe()
    os.write(write_end, SMALLEST.encode())
    os.close(write_end)
    try:
        config = load_config(Path(f"/dev/fd/{read_end}"), {})
    finally:
        os.close(read_end)

    assert config.upstream.url == "http://127.0.0.1:8000"


def test_a_file_larger_than_a_megabyte_is_refused_unread() -> None:
    FILE.write_text(SMALLEST + "#" * 1_048_576)

    with pytest.raises(ConfigError) as caught:
        load_config(FILE, {})

    assert str(caught.value) == "gateway.yaml:1: is larger than 1048576 bytes"
