"""How many connections the descriptors are enough for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.gateway.admission.descriptors import RESERVE, Allotment, allot


@pytest.mark.parametrize(
    ("descriptors", "pools", "room"),
    [
        (1_048_576, 1, Allotment(10_000, 256)),
        (20_000, 4, Allotment(10_000, 256)),
        (1_024, 1, Allotment(640, 256)),
        (1_024, 4, Allotment(448, 112)),
        (256, 1, Allotment(96, 96)),
    ],
)
def test_a_reserve_and_the_connections_to_the_apis_come_off(descriptors: int, pools: int, room: Allotment) -> None:
    assert allot(descriptors, 10_000, 256, pools) == room


@given(st.integers(64, 2_000_000), st.integers(1, 1_000_000), st.integers(1, 65_535), st.integers(1, 17))
def test_all_together_are_never_more_than_there_are(descriptors: int, wanted: int, upstream: int, pools: int) -> None:
    room = allot(descriptors, wanted, upstream, pools)
    assert 1 <= room.connections <= wanted
    assert 1 <= room.upstream <= upstream
    assert room.connections + room.upstream * pools + min(RESERVE, descriptors // 4) <= descriptors
