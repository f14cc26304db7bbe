"""The URLs that ``valkey:`` takes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.valkey.url import (
    Address,
    Cluster,
    Credentials,
    Embedded,
    Sentinel,
    Standalone,
    Tls,
    Topology,
    ValkeyUrlError,
    parse_valkey_url,
)

H = Address("h", 6379)
BOTH = (Address("h1", 7000), Address("h2", 7001))


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("embedded:///var/lib/quota", Embedded(Path("/var/lib/quota"))),
        ("embedded:///var/with%20space", Embedded(Path("/var/with space"))),
        ("valkey://h", Standalone(H)),
        ("valkey://h:7000/3", Standalone(Address("h", 7000), db=3)),
        ("valkey://h?db=3", Standalone(H, db=3)),
        ("valkey://[::1]:7000", Standalone(Address("::1", 7000))),
        ("valkey://u:p%40ss%2F@h", Standalone(H, Credentials("u", "p@ss/"))),
        ("valkey://:p@h", Standalone(H, Credentials(None, "p"))),
        ("valkey://u@h", Standalone(H, Credentials("u", None))),
        ("valkeys://h", Standalone(H, tls=Tls())),
        ("redis://h", Standalone(H)),
        ("rediss://h", Standalone(H, tls=Tls())),
        ("valkey+unix:///run/v.sock", Standalone(Path("/run/v.sock"))),
        ("redis+unix://u:p@/run/v.sock?db=2", Standalone(Path("/run/v.sock"), Credentials("u", "p"), db=2)),
        ("unix:///run/v.sock", Standalone(Path("/run/v.sock"))),
        ("valkey+sentinel://h1:7000,h2:7001/main", Sentinel(BOTH, "main")),
        ("valkey+sentinel://h1,h2:7001/main/4", Sentinel((Address("h1", 26379), BOTH[1]), "main", db=4)),
        ("redis+sentinel://:p@h1:7000,h2:7001/main", Sentinel(BOTH, "main", Credentials(None, "p"))),
        ("valkeys+sentinel://h1:7000,h2:7001/main", Sentinel(BOTH, "main", tls=Tls())),
        ("rediss+sentinel://h1:7000,h2:7001/main", Sentinel(BOTH, "main", tls=Tls())),
        ("valkey+cluster://h1:7000,h2:7001", Cluster(BOTH)),
        ("redis+cluster://u:p@h1:7000,h2:7001", Cluster(BOTH, Credentials("u", "p"))),
        ("valkeys+cluster://h1:7000,h2:7001/0", Cluster(BOTH, tls=Tls())),
        ("rediss+cluster://h1:7000,h2:7001", Cluster(BOTH, tls=Tls())),
    ],
)
def test_a_url_names_a_topology(url: str, expected: Topology) -> None:
    assert parse_valkey_url(url) == expected


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("localhost:6379", "is not a URL"),
        ("http://h", "has the unknown scheme http"),
        ("valkey://", "names no host"),
        ("valkey://h:", "host number 1 is not of the form"),
        ("valkey://h:0", "the port 0"),
        ("valkey://h:70000", "the port 70000"),
        ("valkey://h:٣", "host number 1 is not of the form"),
        ("valkey://a b", "host number 1"),
        ("valkey://::1", "host number 1"),
        ("valkey://h1,h2", "takes one host"),
        ("valkey://h/x", "is not one number of a database"),
        ("valkey://h/16384", "a database above 16383"),
        ("valkey://h/1?db=1", "is not one number of a database"),
        ("valkey://h?timeout=1", "a query other than ?db=NUMBER"),
        ("valkey://h#1", "is not a URL"),
        ("valkey://a@b@h", "an @ within the user or password"),
        ("valkey+unix://run/v.sock", "takes an absolute path, with three slashes"),
        ("valkey+unix://", "needs an absolute path"),
        ("valkey+unix:///" + "x" * 103, "too long a path"),
        ("embedded://data", "takes an absolute path alone"),
        ("embedded:///" + "x" * 92, "too long a path"),
        ("embedded:///a%00b", "needs an absolute path"),
        ("valkey+sentinel://h", "needs the name of the primary"),
        ("valkey+sentinel://h/a b", "needs the name of the primary"),
        ("valkey+cluster://h/1", "a Cluster has only number 0"),
        ("valkey+cluster://" + ",".join(["h"] * 65), "names 65 hosts"),
        ("valkey://" + "h" * 4096, "is longer than 4096"),
    ],
)
def test_what_is_no_such_url_is_refused_with_the_part_that_is_wrong(url: str, message: str) -> None:
    with pytest.raises(ValkeyUrlError) as caught:
        parse_valkey_url(url)

    assert message in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "valkey://user:hunter2@h",
        "valkeys+sentinel://user:hunter2@h/main",
        "valkey+cluster://user:hunter2@h",
        "valkey+unix://user:hunter2@/run/v.sock",
    ],
)
def test_neither_text_nor_repr_shows_a_password(url: str) -> None:
    topology = parse_valkey_url(url)

    assert "user" in str(topology)
    assert "hunter2" not in f"{topology} {topology!r}"


@given(st.text(max_size=80).map(lambda text: f"valkey://{text}") | st.text(max_size=80))
def test_no_text_leads_to_anything_but_a_topology_or_its_error(text: str) -> None:
    try:
        topology = parse_valkey_url(text)
    except ValkeyUrlError:
        return
    assert isinstance(topology, Standalone)
    # Without its password, the text form names the same place.
    again = parse_valkey_url(str(topology))
    assert isinstance(again, Standalone)
    assert (again.address, again.db, again.credentials.username) == (
        topology.address,
        topology.db,
        topology.credentials.username,
    )
