"""Values that are stored one after another are read whole or not at all."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import msgpack
import pytest

from sidecar.ledger.accounts.state_values import unpack_values

VALUES: list[Any] = [0, 7, None, -3, 300, False, "a", "x" * 40, b"\x93\xff", [1, None, "b"], 2**52, "y" * 300, None]
PACKED = [msgpack.packb(value) for value in VALUES]
ENDS = set(accumulate(map(len, PACKED), initial=0))


def test_values_are_read_up_to_where_one_ends() -> None:
    whole = b"".join(PACKED)
    for end in range(len(whole) + 1):
        if end in ENDS:
            count = sum(each <= end for each in accumulate(map(len, PACKED)))
            assert unpack_values(whole[:end]) == VALUES[:count]
        else:
            with pytest.raises(ValueError, match=r"ends within value|is no msgpack"):
                unpack_values(whole[:end])


def test_values_begin_where_they_are_said_to() -> None:
    assert unpack_values(b"\x00\x00\x05" + PACKED[1], 3) == [7]
    with pytest.raises(ValueError, match="ends within value"):
        unpack_values(b"\x00", 3)
