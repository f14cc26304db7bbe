"""A corpus of mistakes. Each is a text and the exact lines that it must be answered with."""

from __future__ import annotations

import json
import re

import pytest

from sidecar.app.configuration import Config
from sidecar.config.validation import PATTERNS
from tests.unit.config.loads import SMALLEST, errors

CORPUS: dict[str, tuple[str, list[str]]] = {
    "missing sections": (
        "log: {level: info}\n",
        ["gateway.yaml:1: valkey: is missing"],
    ),
    "an empty file": ("", ["gateway.yaml is empty; set at least valkey"]),
    "a file of comments": ("# valkey: valkey://h\n---\n", ["gateway.yaml is empty; set at least valkey"]),
    "a file of comments without a document": (
        "# valkey: valkey://h\n",
        ["gateway.yaml is empty; set at least valkey"],
    ),
    "a tab as indentation": (
        "upstream:\n\turl: http://h\nvalkey: valkey://h\n",
        ["gateway.yaml:2: is indented with a tab: give YAML spaces, not tabs"],
    ),
    "a tab below spaces": (
        "upstream:\n  url: http://h\n  \tvia: off\nvalkey: valkey://h\n",
        ["gateway.yaml:3: is indented with a tab: give YAML spaces, not tabs"],
    ),
    "a tab in a list": (
        SMALLEST + "trusted_peers:\n\t- 10.0.0.0/8\n",
        ["gateway.yaml:4: is indented with a tab: give YAML spaces, not tabs"],
    ),
    "no YAML": (
        SMALLEST + "log: [level\n",
        ["gateway.yaml:4: is not YAML: while parsing a flow sequence, did not find expected ',' or ']'"],
    ),
    "a list instead of keys": ("- a\n", ["gateway.yaml:1: should be a mapping of keys to values, not a list"]),
    "text where a number belongs": (
        SMALLEST + "ledger:\n  hold_budget_ms: fast\n",
        ["gateway.yaml:4: ledger.hold_budget_ms: should be a whole number, not 'fast'"],
    ),
    "a fraction where a whole number belongs": (
        SMALLEST + "limits: {fields_max: 1.5}\n",
        ["gateway.yaml:3: limits.fields_max: should be a whole number, not 1.5"],
    ),
    "true where a number belongs": (
        SMALLEST + "listen: {port: true}\n",
        ["gateway.yaml:3: listen.port: should be a whole number, not true"],
    ),
    "a port beyond the last": (
        SMALLEST + "listen:\n  host: '::'\n  port: 65536\n",
        ["gateway.yaml:5: listen.port: should be at most 65535, not 65536"],
    ),
    "nothing where a number belongs": (
        SMALLEST + "listen:\n  port:\n",
        ["gateway.yaml:4: listen.port: should be a whole number, not null"],
    ),
    "a number where text belongs": (
        SMALLEST + "ledger: {prefix: 12}\n",
        ["gateway.yaml:3: ledger.prefix: should be text; put it in quotes, not 12"],
    ),
    "a section that is a word": (
        SMALLEST + "log: loud\n",
        ["gateway.yaml:3: log: should be a mapping of keys to values, not 'loud'"],
    ),
    "a source that is no URI reference": (
        SMALLEST + "metering:\n  source: 'eu1 gateway: prod'\n",
        [
            "gateway.yaml:4: metering.source: must be a URI reference as OpenMeter reads it (url.Parse of Go): first"
            " path segment in URL cannot contain colon"
        ],
    ),
    "a source that is empty": (
        SMALLEST + "metering: {source: ''}\n",
        ["gateway.yaml:3: metering.source: should have at least 1 character, not ''"],
    ),
    "an unknown choice": (
        SMALLEST + "log: {level: loud}\n",
        ["gateway.yaml:3: log.level: should be 'debug', 'info', 'warning' or 'error', not 'loud'"],
    ),
    "a misspelt key": (
        SMALLEST + "ledger:\n  hold_budget: 20\n",
        ["gateway.yaml:4: ledger.hold_budget: is not a known key; did you mean hold_budget_ms?"],
    ),
    "a key of nowhere": (
        SMALLEST + "log:\n  zzz: 20\n",
        ["gateway.yaml:4: log.zzz: is not a known key; known are access, format, level, lines_max"],
    ),
    "a misspelt key in a list": (
        SMALLEST + "routes:\n  - path: /a\n    unit: 2\n",
        ["gateway.yaml:5: routes[0].unit: is not a known key; did you mean units?"],
    ),
    "a misspelt key of one resolver among several kinds": (
        SMALLEST + "identity:\n  - type: api_key\n    heder: X-Key\n",
        ["gateway.yaml:5: identity[0].heder: is not a known key; did you mean header?"],
    ),
    "a key twice": (
        SMALLEST + "log:\n  level: info\n  level: error\n",
        ["gateway.yaml:5: log.level: is set twice, first in line 4"],
    ),
    "a resolver of no kind": (
        SMALLEST + "identity:\n  - header: X-Key\n",
        ["gateway.yaml:4: identity[0].type: is missing"],
    ),
    "a resolver of an unknown kind": (
        SMALLEST + "identity:\n  - type: oauth\n",
        [
            "gateway.yaml:4: identity[0].type: should be one of 'trusted_header', 'xfcc', 'mtls', 'api_key', 'jwt', "
            "not 'oauth'",
        ],
    ),
    "no resolver": (SMALLEST + "identity: []\n", ["gateway.yaml:3: identity: should have at least 1 entry"]),
    "several mistakes at once, in the file's order": (
        'upstream:\n  url: ftp://h\nvalkey: valky://h\nadmin:\n  port: "x"\nlog: {access: some}\n',
        [
            "gateway.yaml:2: upstream.url: should begin with http://, https:// or unix+http://",
            "gateway.yaml:3: valkey: has the unknown scheme valky; known are embedded, redis, redis+cluster, "
            "redis+sentinel, redis+unix, rediss, rediss+cluster, rediss+sentinel, unix, valkey, valkey+cluster, "
            "valkey+sentinel, valkey+unix, valkeys, valkeys+cluster, valkeys+sentinel",
            "gateway.yaml:5: admin.port: should be a whole number, not 'x'",
            "gateway.yaml:6: log.access: should be 'off', 'errors' or 'all', not 'some'",
        ],
    ),
    "an upstream with a path": (
        "upstream: {url: 'http://h/base'}\nvalkey: valkey://h\n",
        ["gateway.yaml:1: upstream.url: must not have a path: the gateway keeps the path of each request"],
    ),
    "TLS files for a plain upstream": (
        "upstream:\n  url: http://h\n  tls: {verify: false}\nvalkey: valkey://h\n",
        ["gateway.yaml:3: upstream.tls: is set, but upstream.url is not https"],
    ),
    "ports without redirected connections": (
        SMALLEST + "listeners:\n- {port: 8080, upstream: 'https://h'}\n",
        ["gateway.yaml:4: listeners[0].upstream: cannot be https: only upstream.url has settings for TLS"],
    ),
    "a port twice": (
        SMALLEST + "listeners:\n- {port: 8080, upstream: 'http://h'}\n",
        ["gateway.yaml:4: listeners[0].port: 8080 is the port of listen.port too"],
    ),
    "the port of clients as that of the admin side": (
        SMALLEST + "listen:\n  port: 9191\nadmin:\n  port: 9191\n",
        ["gateway.yaml:6: admin.port: 9191 is the port of listen.port too"],
    ),
    "the admin port that a gateway has by default": (
        SMALLEST + "listen:\n  port: 9090\n",
        ["gateway.yaml:4: listen.port: 9090 is the port of the admin side too (admin.port is not set)"],
    ),
    "one port for everything": (
        SMALLEST
        + "listen: {port: 7000}\nlisteners:\n- {port: 7001, upstream: 'http://h'}\n- {port: 7001, upstream: 'http://h'}\n"
        "admin: {port: 7001}\nhealth: {port: 7000}\n",
        [
            "gateway.yaml:6: listeners[1].port: 7001 is the port of listeners[0].port too",
            "gateway.yaml:7: admin.port: 7001 is the port of listeners[0].port too",
            "gateway.yaml:8: health.port: 7000 is the port of listen.port too",
        ],
    ),
    "a health port that a control plane's admin side has": (
        "valkey: valkey://h\nadmin: {port: 8080}\nhealth: {port: 8080}\n",
        ["gateway.yaml:3: health.port: 8080 is the port of admin.port too"],
    ),
    "a method that is none": (
        SMALLEST + "routes:\n- path: /a\n  methods: [GETT]\n",
        ["gateway.yaml:5: routes[0].methods: 'GETT' is not a registered method; did you mean GET?"],
    ),
    "a method near none": (
        SMALLEST + "routes:\n- path: /a\n  methods: [XYZZY]\n",
        [
            "gateway.yaml:5: routes[0].methods: 'XYZZY' is not a registered method; usual ones are GET, HEAD, POST, "
            "PUT, PATCH, DELETE, OPTIONS"
        ],
    ),
    "a parameter in another program's form": (
        SMALLEST + "routes:\n- path: /api/:id\n- path: /b/<id>/c\n- path: /c/{id}x\nfree_paths: ['/d/:name']\n",
        [
            "gateway.yaml:4: routes[0].path: has the segment ':id'; write a parameter as {id}",
            "gateway.yaml:5: routes[1].path: has the segment '<id>'; write a parameter as {id}",
            "gateway.yaml:6: routes[2].path: has the segment '{id}x'; a parameter stands for a whole segment, as in "
            "{id}",
            "gateway.yaml:7: free_paths[0]: has the segment ':name'; write a parameter as {name}",
        ],
    ),
    "everybody trusted where a header says who calls": (
        SMALLEST + "trusted_peers: [10.0.0.0/8, 0.0.0.0/0]\nidentity:\n- type: trusted_header\n",
        [
            "gateway.yaml:3: trusted_peers[1]: trusts every address, and identity takes a header (trusted_header) from "
            "trusted peers: every client could call as any account; name the addresses of your gateways"
        ],
    ),
    "everybody trusted over IPv6 where a header says who calls": (
        SMALLEST + "trusted_peers:\n- ::/0\nidentity:\n- type: xfcc\n",
        [
            "gateway.yaml:4: trusted_peers[0]: trusts every address, and identity takes a header (xfcc) from "
            "trusted peers: every client could call as any account; name the addresses of your gateways"
        ],
    ),
    "original destinations that are used by nothing": (
        "upstream:\n  url: http://h\n  ports: [80]\nvalkey: valkey://h\n",
        ["gateway.yaml:3: upstream.ports: has an effect only with original_destination"],
    ),
    "checks of the application that cannot be made": (
        SMALLEST
        + "health:\n  application:\n    checks:\n      app/livez: {}\n      app/readyz: {tcp_socket: {port: 0}}\n",
        [
            "gateway.yaml:6: health.application.checks.app/livez: has none: it should have one of http_get, "
            "tcp_socket, grpc",
            "gateway.yaml:7: health.application.checks.app/readyz.tcp_socket.port: should be at least 1, not 0",
        ],
    ),
    "a check without a container": (
        SMALLEST + "health:\n  application:\n    checks:\n      livez: {tcp_socket: {port: 1}}\n",
        [
            "gateway.yaml:5: health.application.checks: 'livez' should be a container's name, a slash, and livez, "
            "readyz, startupz, poststart or prestop"
        ],
    ),
    "a path that is no path": (
        SMALLEST + "free_paths: [healthz]\n",
        ["gateway.yaml:3: free_paths[0]: should begin with / and have at most 2048 characters"],
    ),
    "a certificate without its key": (
        "upstream:\n  url: https://h\n  tls:\n    certificate_file: c.pem\nvalkey: valkey://h\n",
        ["gateway.yaml:3: upstream.tls.key_file: is missing: set certificate_file and key_file together"],
    ),
    "client certificates without an authority": (
        SMALLEST + "listen:\n  tls: {certificate_file: c, key_file: k, client_certificates: required}\n",
        ["gateway.yaml:4: listen.tls.client_ca_file: is needed: client_certificates is required"],
    ),
    "mutual TLS as identity without asking for certificates": (
        SMALLEST + "identity:\n  - type: mtls\n",
        ["gateway.yaml:4: identity[0]: needs listen.tls with client_certificates: optional or required"],
    ),
    "a trusted header of nobody": (
        SMALLEST + "identity:\n  - type: api_key\n  - type: trusted_header\n",
        [
            "gateway.yaml:5: identity[1]: has no effect: it takes a header from trusted peers, and trusted_peers is "
            "empty"
        ],
    ),
    "PROXY headers of nobody": (
        SMALLEST + "listen:\n  proxy_protocol: v2\n",
        [
            "gateway.yaml:4: listen.proxy_protocol: would refuse every connection: trusted_peers, who may send such "
            "headers, is empty"
        ],
    ),
    "an admin port for all without a token": (
        SMALLEST + "admin: {host: 0.0.0.0}\n",
        ["gateway.yaml:3: admin.token: is needed (or token_file): 0.0.0.0 is not a loopback address"],
    ),
    "a short admin token": (
        SMALLEST + "admin:\n  token: opensesame\n",
        [
            "gateway.yaml:4: admin.token: should be 16 or more visible ASCII characters: it is sent in a header",
        ],
    ),
    "a head too small for its request line": (
        SMALLEST + "limits:\n  head_bytes_max: 8000\n",
        ["gateway.yaml:4: limits.head_bytes_max: must leave room for method_bytes_max and target_bytes_max"],
    ),
    "buffers upside down": (
        SMALLEST + "limits: {buffer_bytes_low: 70000}\n",
        ["gateway.yaml:3: limits.buffer_bytes_low: must be below buffer_bytes_high"],
    ),
    "death before the second heartbeat": (
        SMALLEST + "ledger:\n  heartbeat_ms: 4000\n",
        [
            "gateway.yaml:3: ledger.instance_ttl_ms: must be at least three times heartbeat_ms: "
            "a process may lose one heartbeat"
        ],
    ),
    "open without a spool": (
        SMALLEST + "ledger:\n  on_ledger_failure: open\n  open: {allowance_units: 5}\n",
        ["gateway.yaml:3: ledger.spool_directory: is needed: on_ledger_failure is open"],
    ),
    "TLS files for a Valkey without TLS": (
        "upstream: {url: 'http://h'}\nvalkey: valkey://h\nvalkey_tls: {ca_file: ca.pem}\n",
        [
            "gateway.yaml:3: valkey_tls: is set, but the URL's scheme uses no TLS (valkeys://, valkeys+cluster://, …)",
        ],
    ),
    "two passwords": (
        "upstream: {url: 'http://h'}\nvalkey: valkey://:hunter2@h\nvalkey_password: hunter3\n",
        ["gateway.yaml:3: valkey_password: is set, but the URL has a password too"],
    ),
    "a Sentinel's password without Sentinels": (
        SMALLEST + "valkey_sentinel_password: hunter2\n",
        ["gateway.yaml:3: valkey_sentinel_password: is set, but valkey names no Sentinels"],
    ),
    "a path template with an empty segment": (
        SMALLEST + "routes:\n  - path: /a//b\n",
        [
            "gateway.yaml:4: routes[0].path: has the segment '', which is neither a name, nor a {parameter}, nor a "
            "final **"
        ],
    ),
    "a route that is never reached": (
        SMALLEST + "routes:\n  - {path: '/a/**', units: 2}\n  - path: /a/{Id}\n    methods: [GET]\n",
        ["gateway.yaml:5: routes[1].path: is never used: routes[0] (/a/**) matches first"],
    ),
    "a route twice under other parameter names": (
        SMALLEST + "routes:\n  - {path: '/a/{Id}', methods: [GET]}\n  - {path: '/a/{Name}', methods: get}\n",
        ["gateway.yaml:5: routes[1].path: is the same as routes[0] (/a/{Id})"],
    ),
    "a status of no class": (
        SMALLEST + "default_route:\n  charge_statuses: [2xx, 6xx]\n",
        [
            "gateway.yaml:4: default_route.charge_statuses: '6xx' is neither a status like \"404\" nor a range like "
            '"200-499" nor a class like "2xx"'
        ],
    ),
    "a free route with a price": (
        SMALLEST + "default_route: {free: true, units: 2}\n",
        ["gateway.yaml:3: default_route.units: has no effect on a free route"],
    ),
    "a default route of an unknown word": (
        SMALLEST + "default_route: allow\n",
        ["gateway.yaml:3: default_route: should be 'deny', not 'allow'"],
    ),
    "a metric that OpenMeter cannot have": (
        SMALLEST + "default_route: {metric: API-Calls}\n",
        [
            "gateway.yaml:3: default_route.metric: should have lower-case letters, digits and single "
            "underscores, not 'API-Calls'",
        ],
    ),
    "a network with host bits": (
        SMALLEST + "trusted_peers: [10.1.2.3/8]\n",
        [
            "gateway.yaml:3: trusted_peers: '10.1.2.3/8' is neither 'unix' nor a network like 10.0.0.0/8 or fd00::/8: "
            "10.1.2.3/8 has host bits set"
        ],
    ),
}


@pytest.mark.parametrize(("text", "expected"), CORPUS.values(), ids=CORPUS)
def test_a_mistake_is_answered_with_its_file_line_and_key(text: str, expected: list[str]) -> None:
    assert errors(text) == expected


def test_a_hundred_mistakes_are_cut_to_what_can_be_read() -> None:
    lines = errors(SMALLEST + "".join(f"x{n}: 1\n" for n in range(100)))

    assert len(lines) == 51
    assert lines[-1] == "… and 50 more"


@pytest.mark.parametrize("secret", ["hunter2hunter2hunter2", "12345678901234567890"])
@pytest.mark.parametrize(
    "text",
    [
        "upstream: {url: 'http://u:SECRET@h'}\nvalkey: valkey://h\n",
        "upstream: {url: 'http://h'}\nvalkey: valkey://u:SECRET@h:99999\n",
        "upstream: {url: 'http://h'}\nvalkey: valkey://u:SE/SECRET@h\n",
        "upstream: {url: 'http://h'}\nvalkey: valkey://u:SECRET@h?timeout=1\n",
        "upstream: {url: 'http://h'}\nvalkey: valkey://u:SECRET#1@h\n",
        "upstream: {url: 'http://h'}\nvalkey: nonsense://u:SECRET@h\n",
        "upstream: {url: 'http://h'}\nvalkey: valkey://u:SECRET@@h\n",
        SMALLEST + "admin: {token: [SECRET]}\n",
        SMALLEST + "admin: {token: {a: SECRET}}\n",
        SMALLEST + "valkey_password: [SECRET]\n",
        SMALLEST + "valkey_password: 'SECRET'\n",
        SMALLEST + "metering: {token: 'SECRET SECRET'}\n",
        SMALLEST + "metering: {url: 'http://u:SECRET@h'}\n",
    ],
)
def test_an_error_never_repeats_a_secret(text: str, secret: str) -> None:
    assert secret not in "\n".join(errors(text.replace("SECRET", secret)))


@pytest.mark.parametrize("key", ["admin: {token: NUMBER}", "valkey_password: NUMBER", "metering: {token: NUMBER}"])
def test_a_secret_that_looks_like_a_number_is_not_repeated_either(key: str) -> None:
    (line,) = errors(SMALLEST + key.replace("NUMBER", "12345678901234567890") + "\n")

    assert line.endswith("should be text; put it in quotes")


def test_every_pattern_of_a_setting_has_words() -> None:
    schema = json.dumps(Config.model_json_schema())
    assert set(re.findall(r'"pattern": ("(?:[^"\\]|\\.)*")', schema)) <= {json.dumps(each) for each in PATTERNS}
