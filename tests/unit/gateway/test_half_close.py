"""One direction of a connection ends, or the connection if the other end has reset it."""

from __future__ import annotations

import errno

import pytest

from sidecar.gateway.half_close import half_close


class Transport:
    def __init__(self, *, can: bool = True, fails: bool = False) -> None:
        self.did: list[str] = []
        self._can = can
        self._fails = fails

    def can_write_eof(self) -> bool:
        return self._can

    def write_eof(self) -> None:
        if self._fails:
            raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")
        self.did.append("eof")

    def abort(self) -> None:
        self.did.append("abort")


@pytest.mark.parametrize(
    ("transport", "does"), [(Transport(), ["eof"]), (Transport(can=False), []), (Transport(fails=True), ["abort"])]
)
def test_one_that_was_reset_is_given_up(transport: Transport, does: list[str]) -> None:
    half_close(transport)  # type: ignore[arg-type]
    assert transport.did == does
