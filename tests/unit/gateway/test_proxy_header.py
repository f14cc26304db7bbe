"""Headers of the PROXY protocol, version 2."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.gateway.admission.proxy_protocol import (
    HEADER_BYTES_MAX,
    PREAMBLE_BYTES,
    SIGNATURE,
    ProxyHeaderError,
    rest_length,
    source_address,
)

V4 = bytes([192, 0, 2, 7, 10, 0, 0, 1]) + b"\x12\x67\x01\xbb"


def preamble(command: int, family: int, length: int) -> bytes:
    return SIGNATURE + bytes([command, family]) + length.to_bytes(2, "big")


def test_the_source_of_a_tcp_connection() -> None:
    begin = preamble(0x21, 0x11, 12)
    assert rest_length(begin) == 12
    assert source_address(begin, V4) == "192.0.2.7"
    mapped = b"\x00" * 10 + b"\xff\xff" + bytes([192, 0, 2, 7])
    assert source_address(preamble(0x21, 0x21, 36), mapped + bytes(20)) == "192.0.2.7"


def test_local_and_unspecified_have_none() -> None:
    assert source_address(preamble(0x20, 0x11, 12), V4) is None
    assert source_address(preamble(0x21, 0x00, 0), b"") is None


@pytest.mark.parametrize(
    ("begin", "why"),
    [
        (b"PROXY TCP4 192.0", "version 1"),
        (b"GET / HTTP/1.1\r\n", "there is none"),
        (preamble(0x11, 0x11, 12), "version or command"),
        (preamble(0x22, 0x11, 12), "version or command"),
        (preamble(0x21, 0x12, 12), "not of a TCP"),
        (preamble(0x21, 0x31, 216), "not of a TCP"),
        (preamble(0x21, 0x11, 11), "too short"),
        (preamble(0x21, 0x21, 35), "too short"),
        (preamble(0x21, 0x11, HEADER_BYTES_MAX - PREAMBLE_BYTES + 1), "too long"),
    ],
)
def test_what_cannot_be_used_is_refused(begin: bytes, why: str) -> None:
    with pytest.raises(ProxyHeaderError, match=why):
        rest_length(begin)


@given(st.binary(min_size=4, max_size=4), st.binary(max_size=HEADER_BYTES_MAX))
def test_no_header_ends_in_another_error(tail: bytes, rest: bytes) -> None:
    begin = SIGNATURE + tail
    with contextlib.suppress(ProxyHeaderError):
        length = rest_length(begin)
        assert 0 <= length <= HEADER_BYTES_MAX - PREAMBLE_BYTES
        source_address(begin, (rest + bytes(length))[:length])
