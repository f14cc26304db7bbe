"""Bodies: the corpus of chunks, and the decoders' common interface."""

from __future__ import annotations

import pytest

from sidecar.gateway.http1.body import (
    Body,
    BodyKind,
    BodyRules,
    ChunkedDecoder,
    LengthBody,
    UntilCloseBody,
    open_body,
)
from sidecar.gateway.http1.framing import HeadParser, ProtocolError
from sidecar.gateway.http1.limits import Limits
from tests.conformance.corpus_cases import Case, cases, two_pieces
from tests.conformance.reading import PENDING, Content, Outcome, Refused, read_body
from tests.conformance.test_framing import DROPPED, INTERESTING

CHUNKS = cases("chunks")


def decoder(case: Case, *, plain: bool) -> ChunkedDecoder:
    rules = HeadParser(INTERESTING, DROPPED, case.limits).request_rules
    if case.body_bytes_max is not None:
        rules = BodyRules(case.limits, 400, case.body_bytes_max, rules.trailers_dropped)
    return ChunkedDecoder(rules, plain=plain)


def expect(case: Case, outcome: Outcome, *, plain: bool) -> None:
    if case.pending:
        assert outcome == PENDING
    elif case.refuse is not None:
        assert isinstance(outcome, Refused), outcome
        assert outcome.status == case.refuse, outcome
    else:
        came_in = case.data.removesuffix(case.rest)
        written = case.accept.encode("latin-1") if plain else case.chunks if case.chunks is not None else came_in
        assert outcome == Content(written, case.rest)


@pytest.mark.parametrize("case", CHUNKS, ids=lambda case: case.name)
@pytest.mark.parametrize("plain", [True, False], ids=["as plain bytes", "as chunks"])
def test_a_chunked_body_is_passed_on_as_the_corpus_says(case: Case, plain: bool) -> None:
    expect(case, read_body(decoder(case, plain=plain), [case.data]), plain=plain)


@pytest.mark.parametrize("case", CHUNKS, ids=lambda case: case.name)
@pytest.mark.parametrize("plain", [True, False], ids=["as plain bytes", "as chunks"])
def test_a_chunked_body_is_passed_on_the_same_however_it_is_cut(case: Case, plain: bool) -> None:
    whole = read_body(decoder(case, plain=plain), [case.data])
    bytewise = [bytes((byte,)) for byte in case.data]
    assert read_body(decoder(case, plain=plain), bytewise) == whole
    for pieces in two_pieces(case.data):
        assert read_body(decoder(case, plain=plain), pieces) == whole, pieces


def rules(**changes: int | None) -> BodyRules:
    return BodyRules(Limits(), 502, changes.get("body_bytes_max"))


BODIES = [
    pytest.param(lambda: LengthBody(11), [b"hello", b" world"], b"hello world", id="length"),
    pytest.param(lambda: UntilCloseBody(), [b"hello", b" world"], b"hello world", id="until close"),
    pytest.param(
        lambda: UntilCloseBody(chunked=True),
        [b"hello", b"", b" world"],
        b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n",
        id="until close, in chunks",
    ),
    pytest.param(
        lambda: ChunkedDecoder(rules()),
        [b"5\r\nhello\r\n", b"6\r\n world\r\n0\r\n\r\n"],
        b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n",
        id="chunked",
    ),
    pytest.param(
        lambda: ChunkedDecoder(rules(), plain=True),
        [b"5\r\nhello\r\n", b"6\r\n world\r\n0\r\n\r\n"],
        b"hello world",
        id="chunked, as plain bytes",
    ),
]


@pytest.mark.parametrize(("make", "pieces", "written"), BODIES)
def test_every_kind_of_body_counts_its_content_and_knows_its_end(make, pieces, written) -> None:  # type: ignore[no-untyped-def]
    body: Body = make()
    out = b"".join(b"".join(body.feed(piece)) for piece in pieces)
    out += b"".join(body.eof())
    assert (out, body.done, body.received, body.leftover) == (written, True, 11, b"")
    assert type(body).__name__ in repr(body)
    assert "hello" not in repr(body)


@pytest.mark.parametrize("make", [lambda: LengthBody(5, 502), lambda: ChunkedDecoder(rules())])
def test_a_body_that_is_cut_short_is_a_fault_of_its_sender(make) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ProtocolError) as caught:
        make().eof()
    assert caught.value.status == 502


@pytest.mark.parametrize("behind", [b"", b"G", b"GET /"])
def test_what_follows_a_body_with_a_length_is_handed_back(behind: bytes) -> None:
    for pieces in two_pieces(b"abc" + behind):
        assert read_body(LengthBody(3), pieces) == Content(b"abc", behind)


def test_a_body_of_no_bytes_is_complete_at_once() -> None:
    assert LengthBody(0).done


def test_faults_in_the_upstreams_chunks_are_bad_gateways() -> None:
    for data in (b"x", b"0\r\nbad\r\n\r\n", b"ffffffffffffffff\r\n", b"0\r\n" + b"a: b\r\n" * 33 + b"\r\n"):
        with pytest.raises(ProtocolError) as caught:
            ChunkedDecoder(rules()).feed(data)
        assert caught.value.status == 502


@pytest.mark.parametrize("plain", [True, False])
def test_a_piece_that_lies_inside_of_a_chunk_is_passed_on_without_a_copy(plain: bool) -> None:
    body = ChunkedDecoder(rules(), plain=plain)
    body.feed(b"100000\r\n")
    piece = bytes(65536)
    (out,) = body.feed(piece)
    assert out is piece


@pytest.mark.parametrize("chunk", [b"5\r\nhello\r\n", b"05;a=b\r\nhello\r\n"])
def test_a_chunk_that_is_complete_is_not_kept_back(chunk: bytes) -> None:
    body = ChunkedDecoder(rules())
    for _ in range(3):
        assert b"".join(body.feed(chunk)) == b"5\r\nhello\r\n"


def test_a_large_piece_with_chunk_ends_in_it_is_passed_on_without_a_copy() -> None:
    data = b"8000\r\n" + bytes(0x8000) + b"\r\n8000\r\n" + bytes(0x8000) + b"\r\n"
    (out,) = ChunkedDecoder(rules()).feed(data)
    assert out is data
    views = ChunkedDecoder(rules(), plain=True).feed(data)
    assert [type(view) for view in views] == [memoryview, memoryview]  # a copy would be bytes
    assert b"".join(views) == bytes(0x10000)


@pytest.mark.parametrize(
    ("kind", "chunked", "decoder_type"),
    [
        (BodyKind.NONE, True, LengthBody),
        (BodyKind.LENGTH, True, LengthBody),
        (BodyKind.CHUNKED, True, ChunkedDecoder),
        (BodyKind.UNTIL_CLOSE, True, UntilCloseBody),
    ],
)
def test_each_kind_of_framing_has_its_decoder(kind: BodyKind, chunked: bool, decoder_type: type) -> None:
    body = open_body(kind, 0, rules(), chunked=chunked)
    assert type(body) is decoder_type


def test_an_old_receiver_gets_plain_bytes() -> None:
    chunked = open_body(BodyKind.CHUNKED, 0, rules(), chunked=False)
    assert b"".join(chunked.feed(b"1\r\na\r\n0\r\n\r\n")) == b"a"
    closing = open_body(BodyKind.UNTIL_CLOSE, 0, rules(), chunked=False)
    assert b"".join([*closing.feed(b"a"), *closing.eof()]) == b"a"
