"""The corpus of heads: each case read whole, byte by byte, and cut in two at every place."""

from __future__ import annotations

import pytest

from sidecar.gateway.http1 import framing
from sidecar.gateway.http1.framing import HeadParser, ProtocolError, RequestHead
from sidecar.gateway.http1.limits import Limits
from sidecar.gateway.http1.name_patterns import NamePatterns
from tests.conformance.corpus_cases import Case, cases, two_pieces
from tests.conformance.reading import PENDING, Outcome, Read, Refused, is_request, read_request, read_response

INTERESTING = (b"traceparent", b"x-fapi-interaction-id", b"x-idempotency-key", b"x-forwarded-key")
DROPPED = (b"x-api-key", b"x-tpp-id")
LIKE = NamePatterns([b"x-forwarded-*", b"x-real-ip"])

REQUESTS = cases("requests")
RESPONSES = cases("responses")


@pytest.fixture(params=["compiled", "pure"], autouse=True)
def core(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every case is read with the compiled core, where it was built, and without."""
    if request.param == "pure":
        monkeypatch.setattr(framing, "scanner_factory", None)


def parser_for(case: Case) -> HeadParser:
    return HeadParser(INTERESTING, DROPPED, case.limits, like=LIKE)


def read(case: Case, pieces: list[bytes]) -> Outcome:
    if case in RESPONSES:
        return read_response(parser_for(case), pieces, case.request)
    return read_request(parser_for(case), pieces)


def expect(case: Case, outcome: Outcome) -> None:
    if case.pending:
        assert outcome == PENDING
    elif case.refuse is not None:
        assert isinstance(outcome, Refused), outcome
        assert outcome.status == case.refuse, outcome
    else:
        assert isinstance(outcome, Read), outcome
        assert outcome.rest == case.rest
        for attribute, wanted in case.accept.items():
            found = getattr(outcome.head, attribute)
            if attribute == "fields":
                found = {name.decode("latin-1"): value.decode("latin-1") for name, value in found.items()}
                assert wanted.items() <= found.items()
            elif attribute == "body":
                assert found.name == wanted
            else:
                assert (found.decode("latin-1") if isinstance(found, bytes) else found) == wanted, attribute


@pytest.mark.parametrize("case", REQUESTS, ids=lambda case: case.name)
def test_a_request_head_is_read_as_the_corpus_says(case: Case) -> None:
    expect(case, read(case, [case.data]))


@pytest.mark.parametrize("case", RESPONSES, ids=lambda case: case.name)
def test_a_response_head_is_read_as_the_corpus_says(case: Case) -> None:
    expect(case, read(case, [case.data]))


@pytest.mark.parametrize("case", REQUESTS + RESPONSES, ids=lambda case: case.name)
def test_a_head_is_read_the_same_however_it_is_cut(case: Case) -> None:
    whole = read(case, [case.data])
    assert read(case, [bytes((byte,)) for byte in case.data]) == whole
    for pieces in two_pieces(case.data):
        assert read(case, pieces) == whole, pieces


@pytest.mark.parametrize("case", REQUESTS, ids=lambda case: case.name)
def test_a_head_is_read_the_same_behind_another_message(case: Case) -> None:
    before = b"x:HTTP/1.1 GET"  # what a careless look behind the start would take for a part of the head
    assert read_request(parser_for(case), [before + case.data], start=len(before)) == read(case, [case.data])


@pytest.mark.parametrize("case", [case for case in REQUESTS if case.accept], ids=lambda case: case.name)
def test_what_is_forwarded_of_a_head_is_read_as_the_same_request(case: Case) -> None:
    outcome = read(case, [case.data])
    assert isinstance(outcome, Read)
    first = outcome.head
    assert is_request(first)
    again = read(case, [forwarded(first)])
    assert isinstance(again, Read), again
    second = again.head
    assert is_request(second)
    same = ("method", "path", "query", "body", "length")
    assert [getattr(second, name) for name in same] == [getattr(first, name) for name in same]
    assert second.host.lower() == first.host.lower()
    assert second.block.endswith(first.block)


def forwarded(head: RequestHead) -> bytes:
    """The head as a proxy writes it."""
    chunked = b"Transfer-Encoding: chunked\r\n" if head.body.name == "CHUNKED" else b""
    host = b"" if b"host" in head.fields or not head.host else b"Host: " + head.host + b"\r\n"
    version = b"HTTP/1.%d" % head.version_minor
    line = b" ".join((head.method, head.origin_target, version))
    return line + b"\r\n" + host + head.block + chunked + b"\r\n"


class _CountingParser(HeadParser):
    """Counts the bytes that were looked at with a full parse or a search for what is wrong."""

    examined = 0

    def _examine_request(self, buf: bytes, start: int) -> None:
        self.examined += 2 * (len(buf) - start)
        super()._examine_request(buf, start)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"GET /" + b"a" * 8000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", id="a long target"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\nX-A: " + b"a" * 32000 + b"\r\n\r\n", id="a long value"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\n" + b"a: b\r\n" * 99 + b"\r\n", id="many fields"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\n" + (b"a: " + b"b" * 320 + b"\r\n") * 99 + b"\r\n", id="both"),
    ],
)
def test_a_head_that_trickles_in_costs_no_square_of_its_length(data: bytes) -> None:
    parser = _CountingParser()
    outcome = read_request(parser, [bytes((byte,)) for byte in data])
    assert isinstance(outcome, Read)
    lines_and_kilobytes = 2 * data.count(b"\r\n") + len(data) // 1024 + 1
    assert parser.examined <= 2 * lines_and_kilobytes * len(data)


def test_names_that_clients_make_up_do_not_fill_the_memory() -> None:
    parser = HeadParser(INTERESTING, DROPPED)
    for number in range(50):
        lines = b"".join(b"X-%d-%d: a\r\n" % (number, line) for line in range(90))
        assert parser.request(b"GET / HTTP/1.1\r\nHost: h%d\r\n" % number + lines + b"\r\n") is not None
    assert len(parser._fields._names) <= 1024 + 1
    found = parser.request(b"GET / HTTP/1.1\r\nHost: a\r\nTRACEPARENT: 1\r\nX-Api-KEY: k\r\n\r\n")
    assert found is not None
    assert found[0].fields[b"traceparent"] == b"1"
    assert found[0].block == b"Host: a\r\nTRACEPARENT: 1\r\n"


def test_a_refusal_quotes_nothing_of_what_was_sent() -> None:
    secret = b"s3cr3t"
    for case in REQUESTS:
        for place in (b"Host: a", b"chunked", b"5", b"b"):
            data = case.data.replace(place, place + secret, 1)
            outcome = read(case, [data])
            if isinstance(outcome, Refused):
                assert secret.decode() not in outcome.reason


@pytest.mark.parametrize("name", [b"X-Key", b"x key", b"", b"x:"])
def test_a_parser_is_not_made_with_a_name_that_no_field_can_have(name: bytes) -> None:
    with pytest.raises(ValueError, match="not a field name in lower case"):
        HeadParser(drop=[name])


@pytest.mark.parametrize("pattern", [b"", b"*", b"x-*-y", b"x y", b"x-**", b"x:*"])
def test_a_pattern_that_no_field_can_match_is_refused(pattern: bytes) -> None:
    with pytest.raises(ValueError, match="header field"):
        NamePatterns([pattern])


SPELLINGS = (b"X-Forwarded-Port", b"x-forwarded-port", b"X_Forwarded_Port", b"X-Forwarded_Port", b"X.FORWARDED-port")


@pytest.mark.parametrize("name", SPELLINGS)
@pytest.mark.parametrize("plain_passes", [True, False])
def test_of_a_trusted_peer_only_the_plain_spelling_passes(name: bytes, plain_passes: bool) -> None:
    parser = HeadParser(drop=[b"x-forwarded-for"], like=LIKE, plain_passes=plain_passes)
    found = parser.request(b"GET / HTTP/1.1\r\nHost: a\r\n" + name + b": 1\r\n\r\n")
    assert found is not None
    passes = plain_passes and name.lower() == b"x-forwarded-port"
    assert found[0].block == b"Host: a\r\n" + (name + b": 1\r\n" if passes else b"")
    assert name.lower() not in found[0].fields


@pytest.mark.parametrize("https", [True, False])
def test_a_target_with_https_is_refused_where_the_connection_has_no_tls(https: bool) -> None:
    outcome = read_request(HeadParser(https=https), [b"GET HttpS://a/ HTTP/1.1\r\nHost: a\r\n\r\n"])
    assert isinstance(outcome, Read) if https else outcome == Refused(421, outcome.reason)  # type: ignore[union-attr]
    assert isinstance(read_request(HeadParser(https=https), [b"GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n"]), Read)


ANSWERS = [
    (b"HTTP/1.1 201 Created\r\nX-A: b\0c\r\n\r\n", 201, True),
    (b"HTTP/1.1 201 Created\r\nX-A: b\nc\r\n\r\n", 201, True),
    (b"HTTP/1.1 201 Created\r\nX-A: b\r\n c\r\n\r\n", 201, True),
    (b"HTTP/1.1 201 Created\r\nX-A: b\r\nnonsense\r\n\r\n", 201, True),
    (b"HTTP/1.1 201 Created\r\n" + b"A: b\r\n" * 101 + b"\r\n", 201, True),
    (b"HTTP/1.1 201 Created\r\nX-A: " + b"b" * 40_000, 201, True),
    (b"HTTP/1.1 503 Busy\r\nX-A: " + b"b" * 40_000, 503, True),
    (b"HTTP/1.1 201 Created\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 201, False),
    (b"HTTP/1.1 201 Created\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 201, False),
    (b"HTTP/1.1 201 Created\r\nConnection: content-length\r\n\r\n", 201, False),
    (b"HTTP/2 201 Created\r\n\r\n", 0, False),
    (b"<html>\r\n", 0, False),
]


@pytest.mark.parametrize(("data", "answered", "by_caller"), ANSWERS)
def test_a_response_that_is_refused_says_its_status_and_who_may_have_brought_it_about(
    data: bytes, answered: int, by_caller: bool
) -> None:
    with pytest.raises(ProtocolError) as caught:
        HeadParser().response(data, b"POST")
    assert (caught.value.status, caught.value.answered, caught.value.by_caller) == (502, answered, by_caller)


def test_a_request_that_is_refused_for_what_it_says_says_it() -> None:
    line = b"x-fapi-interaction-id: 93bac548\r\n"
    for head in (
        b"TRACE / HTTP/1.1\r\nHost: a\r\n",
        b"GET / HTTP/1.1\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nExpect: x\r\n",
    ):
        with pytest.raises(ProtocolError) as caught:
            HeadParser(INTERESTING).request(head + line + b"\r\n")
        assert caught.value.fields is not None
        assert caught.value.fields[b"x-fapi-interaction-id"] == b"93bac548"


@pytest.mark.parametrize("limits", [{"fields_max": 0}, {"head_bytes_max": 8192}, {"body_bytes_max": -1}])
def test_limits_that_make_no_sense_are_refused(limits: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(limits))):
        Limits(**limits)


def test_connection_names_no_more_than_so_many_fields() -> None:
    parser = HeadParser()
    line = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close%s\r\n\r\n"
    assert parser.request(line % (b", a" * 256)) is not None
    with pytest.raises(ProtocolError, match="Connection is malformed"):
        parser.request(line % (b", a" * 257))


def test_only_protocols_that_are_let_through_are_upgraded_to() -> None:
    parser = HeadParser(upgrades=[b"websocket", b"foo/2"])
    line = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: %s\r\n\r\n"
    for value, upgrade in ((b"Foo/2", b"Foo/2"), (b"foo/2, websocket", b"foo/2, websocket"), (b"foo", None)):
        found = parser.request(line % value)
        assert found is not None
        assert found[0].upgrade == upgrade
