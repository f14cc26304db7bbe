from __future__ import annotations

import pytest

from sidecar.identity.peers import TrustedPeers

LISTED = TrustedPeers(["10.1.0.0/16", "192.0.2.7", "fd00::/8", "unix"])


@pytest.mark.parametrize("address", ["10.1.0.0", "10.1.255.255", "192.0.2.7", "fd12::1", "::ffff:10.1.2.3", ""])
def test_a_peer_in_a_listed_network_is_trusted(address: str) -> None:
    assert LISTED.trusts(address)


@pytest.mark.parametrize(
    "address", ["10.2.0.1", "192.0.2.8", "fe80::1", "fe80::1%eth0", "::ffff:10.2.0.1", "127.0.0.1", "::1"]
)
def test_a_peer_outside_of_the_listed_networks_is_not_trusted(address: str) -> None:
    assert not LISTED.trusts(address)


@pytest.mark.parametrize("address", ["", "127.0.0.1", "::1", "10.0.0.1"])
def test_an_empty_list_trusts_nobody_not_even_loopback(address: str) -> None:
    assert not TrustedPeers().trusts(address)


@pytest.mark.parametrize("text", ["10.1.2.3.4", "localhost", "10.1.0.0/16 ", "0x0a010203", "999999999999", "\x00"])
def test_what_is_no_address_is_not_trusted(text: str) -> None:
    assert not TrustedPeers(["0.0.0.0/0", "::/0", "unix"]).trusts(text)


@pytest.mark.parametrize("entry", ["10.1.2.3/8", "10.0.0.0/33", "gateway.example", "", "Unix"])
def test_a_bad_entry_is_refused_by_name(entry: str) -> None:
    with pytest.raises(ValueError, match="neither") as caught:
        TrustedPeers(["10.0.0.0/8", entry])
    assert repr(entry) in str(caught.value)


def test_the_verdict_stays_the_same_when_many_peers_have_been_seen() -> None:
    peers = TrustedPeers(["10.1.0.0/16"])
    for low in range(10_000):
        assert peers.trusts(f"10.{low >> 8}.{low & 255}.1") is (low >> 8 == 1)
    assert len(peers._remembered) <= 4096
    assert peers.trusts("10.1.0.1")


def test_a_list_of_peers_shows_itself() -> None:
    assert repr(LISTED) == "TrustedPeers(10.1.0.0/16, 192.0.2.7/32, fd00::/8, unix)"
