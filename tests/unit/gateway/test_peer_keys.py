"""Whose share a client takes."""

from __future__ import annotations

import pytest

from sidecar.gateway.admission.peer_keys import forwarded_key, peer_key


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("", ""),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("no:address", "no:address"),
    ],
)
def test_an_ipv4_address_or_the_64_of_an_ipv6_address(address: str, key: str) -> None:
    assert peer_key(address) == key


@pytest.mark.parametrize(
    ("chain", "key"),
    [
        (b"192.0.2.1", "192.0.2.1"),
        (b"198.51.100.1, 192.0.2.1", "192.0.2.1"),
        (b"192.0.2.1:4711", "192.0.2.1"),
        (b"2001:db8::1", "2001:db8::/64"),
        (b"x, [2001:db8::1]:4711", "2001:db8::/64"),
        (b"::ffff:192.0.2.1", "192.0.2.1"),
        (b"192.0.2.1, unknown", None),
        (b"192.0.2.1,", None),
        (b"\xff\x00", None),
        (b"", None),
    ],
)
def test_of_a_chain_the_last_address_counts(chain: bytes, key: str | None) -> None:
    assert forwarded_key(chain) == key
