"""Properties of the parser over generated messages, with h11 and llhttp as judges.

``FUZZ_EXAMPLES`` in the environment says how many messages each property is tried on.
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass

from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from sidecar.gateway.http1.body import BodyKind, open_body
from sidecar.gateway.http1.fields import HOP_BY_HOP
from sidecar.gateway.http1.framing import HeadParser, ProtocolError, RequestHead, ResponseHead
from sidecar.gateway.http1.grammar import fold
from sidecar.gateway.http1.limits import Limits
from sidecar.gateway.http1.target import routing_path
from tests.conformance.messages import (
    Message,
    chunked_bodies,
    cuts,
    pieces_of,
    requests,
    responses,
    tampered,
)
from tests.conformance.other_parsers import (
    Opinion,
    h11_on_request,
    h11_on_response,
    llhttp_on_request,
    llhttp_on_response,
)
from tests.conformance.reading import (
    PENDING,
    Content,
    Outcome,
    Read,
    Refused,
    is_request,
    read_body,
    read_request,
    read_response,
)
from tests.conformance.test_framing import DROPPED, INTERESTING, LIKE, forwarded

PARSER = HeadParser(INTERESTING, DROPPED, Limits(body_bytes_max=1000), like=LIKE, marks=INTERESTING[:1])
SMALL = HeadParser(
    INTERESTING,
    DROPPED,
    Limits(
        method_bytes_max=8,
        target_bytes_max=24,
        head_bytes_max=128,
        fields_max=6,
        chunk_extension_bytes_max=4,
        trailer_bytes_max=24,
        trailer_fields_max=1,
    ),
    like=LIKE,
    plain_passes=True,
    marks=INTERESTING[:1],
)
PURE = HeadParser(INTERESTING, DROPPED, PARSER.limits, compiled=False, like=LIKE, marks=INTERESTING[:1])
SMALL_PURE = HeadParser(
    INTERESTING, DROPPED, SMALL.limits, compiled=False, like=LIKE, plain_passes=True, marks=INTERESTING[:1]
)

fuzz = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "150")),
    deadline=None,
    database=None,
    derandomize="FUZZ_EXAMPLES" not in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)
any_request = st.one_of(requests().map(lambda message: message.data), tampered(requests()))
any_response = st.one_of(responses().map(lambda message: message.data), tampered(responses()))
any_chunks = st.one_of(chunked_bodies().map(lambda message: message.data), tampered(chunked_bodies()))

# h11 and llhttp take such a trailer for a header field. It does not go on, and what goes on is shown to them too.
FRAMING_TRAILER = re.compile(rb"\n(?i:content-length|transfer-encoding|connection|upgrade):")

# White space that the RFC allows and these two do not see, or refuse. None of it goes on.
LEGAL_WHITE_SPACE = re.compile(
    rb"\n(?i:transfer-encoding):(?![ ]?chunked\r)[ \t]*(?i:chunked)[ \t]*\r|[0-9A-Fa-f][ \t]+;|;[ \t]|[ \t]=|=[ \t]"
)

# h11 waits for the answer to an upgrade; llhttp obeys Proxy-Connection, which nobody specified.
KEEP_ALIVE_IN_DOUBT = {b"upgrade", b"proxy-connection"}


@dataclass(frozen=True)
class Passed:
    """A whole message that was let through: its body as it came in, its content, what goes on, what follows it."""

    head: RequestHead | ResponseHead
    came_in: bytes
    content: bytes
    onward: bytes
    rest: bytes


def pass_on(outcome: Outcome, *, request: bool) -> Passed | Outcome:
    """Read the body behind a head, once for its content and once for what the next server is sent."""
    if not isinstance(outcome, Read):
        return outcome
    head = outcome.head
    rules = PARSER.request_rules if request else PARSER.response_rules
    if head.body is BodyKind.NONE or head.body is BodyKind.UNTIL_CLOSE:
        content = outcome.rest if head.body is BodyKind.UNTIL_CLOSE else b""
        return Passed(head, content, content, content, outcome.rest[len(content) :])
    plain = read_body(open_body(head.body, head.length, rules, chunked=False), [outcome.rest])
    onward = read_body(open_body(head.body, head.length, rules, chunked=True), [outcome.rest])
    if not isinstance(plain, Content):
        assert plain == onward
        return plain
    assert isinstance(onward, Content)
    assert onward.rest == plain.rest
    return Passed(head, outcome.rest[: -len(plain.rest) or None], plain.written, onward.written, plain.rest)


def stripped(lines: bytes) -> list[tuple[bytes, bytes]]:
    split = (line.partition(b":") for line in lines.split(b"\r\n")[:-1])
    return [(name.lower(), value.strip(b" \t")) for name, _, value in split]


def without_hop_by_hop(fields: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    named = {
        option.strip(b" \t").lower() for name, value in fields if name == b"connection" for option in value.split(b",")
    }
    gone = HOP_BY_HOP | named | set(DROPPED)
    return [
        pair for pair in fields if pair[0] not in gone and (pair[0] in INTERESTING or not LIKE.match(fold(pair[0])))
    ]


def canonical(fields: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    return [(name, b"%d" % int(value) if name == b"content-length" else value) for name, value in fields]


@fuzz
@given(requests())
def test_a_well_formed_request_is_let_through(message: Message) -> None:
    passed = pass_on(read_request(PARSER, [message.data]), request=True)
    assert isinstance(passed, Passed), passed
    assert (passed.content, passed.rest) == (message.content, b"")


@fuzz
@given(responses())
def test_a_well_formed_response_is_let_through(message: Message) -> None:
    passed = pass_on(read_response(PARSER, [message.data]), request=False)
    assert isinstance(passed, Passed), passed
    assert (passed.content, passed.rest) == (message.content or b"", b"")


def agree(opinion: Opinion, content: bytes) -> None:
    assert not opinion.error
    assert opinion.complete
    assert opinion.content == content
    assert not opinion.goes_on


@fuzz
@given(any_request)
def test_a_request_that_is_let_through_is_read_the_same_by_others(data: bytes) -> None:
    passed = pass_on(read_request(PARSER, [data]), request=True)
    event("let through" if isinstance(passed, Passed) else "not let through")
    if not isinstance(passed, Passed) or FRAMING_TRAILER.search(passed.came_in):
        return
    head = passed.head
    assert is_request(head)
    came_in = data.removeprefix(b"\r\n")[: -len(passed.rest) or None]  # h11 knows no empty line before a request
    for judge in (h11_on_request, llhttp_on_request):
        opinion = judge(came_in)
        if opinion.error.startswith("HttpParserInvalidMethod"):
            continue  # llhttp knows registered methods only
        if LEGAL_WHITE_SPACE.search(came_in):
            continue
        if judge is llhttp_on_request and b"upgrade" in head.fields and head.body is not BodyKind.NONE:
            continue  # llhttp sees an upgrade and no body; that is why Upgrade does not go on together with a body
        agree(opinion, passed.content)
        assert opinion.start == (head.method, head.target)
        assert canonical(without_hop_by_hop(opinion.fields))[: head.block.count(b"\n")] == stripped(head.block)
        if not KEEP_ALIVE_IN_DOUBT & head.fields.keys() and (judge is llhttp_on_request or head.version_minor == 1):
            # h11 has no keep-alive in HTTP/1.0, and llhttp lets it win over close.
            assert opinion.keep_alive or not head.keep_alive


@fuzz
@given(any_request)
def test_what_is_sent_on_of_a_request_is_read_by_others_as_the_same_request(data: bytes) -> None:
    passed = pass_on(read_request(PARSER, [data]), request=True)
    if not isinstance(passed, Passed):
        return
    head = passed.head
    assert is_request(head)
    onward = forwarded(head) + passed.onward
    for opinion in (h11_on_request(onward), llhttp_on_request(onward)):
        if opinion.error.startswith("HttpParserInvalidMethod"):
            continue
        agree(opinion, passed.content)
        assert opinion.start == (head.method, head.origin_target)
    again = pass_on(read_request(PARSER, [onward]), request=True)
    assert isinstance(again, Passed)
    assert (again.content, again.onward, again.rest) == (passed.content, passed.onward, b"")
    assert again.head.block.endswith(head.block)


@fuzz
@given(any_response)
def test_a_response_that_is_let_through_is_read_the_same_by_others(data: bytes) -> None:
    passed = pass_on(read_response(PARSER, [data]), request=False)
    event("let through" if isinstance(passed, Passed) else "not let through")
    if not isinstance(passed, Passed) or passed.head.body is BodyKind.UNTIL_CLOSE:
        return
    head = passed.head
    assert not is_request(head)
    came_in = data[: -len(passed.rest) or None]
    if head.status == 101 or FRAMING_TRAILER.search(passed.came_in) or LEGAL_WHITE_SPACE.search(came_in):
        return  # of 101 both want to know whether somebody asked for it, which is for the exchange to know
    for opinion in (h11_on_response(came_in, b"GET"), llhttp_on_response(came_in)):
        if opinion.error.endswith("Duplicate Content-Length"):
            continue  # equal ones, of which one goes on
        agree(opinion, passed.content)
        assert opinion.start == (head.status, head.reason)


@fuzz
@given(any_request, st.sampled_from(((PARSER, PURE), (SMALL, SMALL_PURE))))
def test_the_compiled_core_reads_a_request_as_pure_python_does(
    data: bytes, pair: tuple[HeadParser, HeadParser]
) -> None:
    compiled, pure = pair
    outcome = read_request(compiled, [data])
    event("by the core" if isinstance(outcome, Read) and type(outcome.head) is not RequestHead else "by Python")
    assert outcome == read_request(pure, [data])


@fuzz
@given(any_response, st.sampled_from(((PARSER, PURE), (SMALL, SMALL_PURE))), st.sampled_from((b"GET", b"HEAD")))
def test_the_compiled_core_reads_a_response_as_pure_python_does(
    data: bytes, pair: tuple[HeadParser, HeadParser], method: bytes
) -> None:
    compiled, pure = pair
    assert read_response(compiled, [data], method) == read_response(pure, [data], method)


@fuzz
@given(any_request, cuts(), st.sampled_from((PARSER, SMALL)))
def test_how_a_request_is_cut_changes_nothing(data: bytes, places: list[float], parser: HeadParser) -> None:
    whole = read_request(parser, [data])
    event(type(whole).__name__)
    for pieces in (pieces_of(data, places), [bytes((byte,)) for byte in data]):
        cut = read_request(parser, pieces)
        # What cannot become a head any more is noticed at the latest with its last line.
        assert cut == whole or (cut == PENDING and isinstance(whole, Refused) and b"\r\n\r\n" not in data)


@fuzz
@given(any_response, cuts(), st.sampled_from((PARSER, SMALL)))
def test_how_a_response_is_cut_changes_nothing(data: bytes, places: list[float], parser: HeadParser) -> None:
    whole = read_response(parser, [data])
    for pieces in (pieces_of(data, places), [bytes((byte,)) for byte in data]):
        cut = read_response(parser, pieces)
        assert cut == whole or (cut == PENDING and isinstance(whole, Refused) and b"\r\n\r\n" not in data)


@fuzz
@given(any_chunks, cuts(), st.sampled_from((PARSER, SMALL)), st.booleans())
def test_how_a_chunked_body_is_cut_changes_nothing(
    data: bytes, places: list[float], parser: HeadParser, chunked: bool
) -> None:
    def read(pieces: list[bytes]) -> Outcome:
        return read_body(open_body(BodyKind.CHUNKED, 0, parser.request_rules, chunked=chunked), pieces)

    whole = read([data])
    event(type(whole).__name__)
    for pieces in (pieces_of(data, places), [bytes((byte,)) for byte in data]):
        assert read(pieces) == whole


@fuzz
@given(st.binary(max_size=200), st.sampled_from((PARSER, SMALL)))
def test_arbitrary_bytes_raise_nothing_but_protocol_errors(data: bytes, parser: HeadParser) -> None:
    for outcome in (read_request(parser, [data]), read_response(parser, [data])):
        if isinstance(outcome, Refused):
            assert outcome.status in {400, 413, 414, 417, 431, 501, 502, 505}
    read_body(open_body(BodyKind.CHUNKED, 0, parser.request_rules, chunked=True), [data])


PATH_PARTS = (b"/", b".", b"%2e", b"%2F", b"%5c", b"\\", b";", b"a", b"%41", b"%", b"%25", b"%c3%a9")


@fuzz
@given(st.lists(st.sampled_from(PATH_PARTS), max_size=8))
def test_a_routing_path_is_one_that_every_server_resolves_to_itself(parts: list[bytes]) -> None:
    route = route_of(b"/" + b"".join(parts))
    if route is None:
        return
    segments = route.split(b"/")[1:]
    assert not {b".", b".."} & set(segments)
    assert b"" not in segments[:-1]
    assert not any(mark in route for mark in (b"\\", b";", b"%2F", b"%5C", b"%2E"))
    assert route_of(route) == route


def route_of(path: bytes) -> bytes | None:
    with contextlib.suppress(ProtocolError):
        return routing_path(path)
    return None
