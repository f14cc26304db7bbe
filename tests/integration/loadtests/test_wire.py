"""What the clients of the scenarios make of a server that answers, closes or breaks off. Real sockets."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from loadtests.scenarios.bodies import echoed
from loadtests.scenarios.result_counter import End
from loadtests.scenarios.wire import Line

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Credits-Charged: 0.10\r\n\r\nhi"


@contextmanager
def serving(*connections: Sequence[bytes]) -> Iterator[tuple[str, list[bytes]]]:
    """A server that gives each connection its answers, one a request, and then closes it."""
    requests: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            for answers in connections:
                connection, _ = server.accept()
                with connection:
                    for answer in answers:
                        requests.append(connection.recv(65_536))
                        connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", requests
        thread.join(10)
        assert not thread.is_alive()


def get(line: Line) -> tuple[End, int]:
    reply = line.call("GET", "/", {})
    return reply.end, reply.status


def test_an_answer_is_read_whole_and_names_are_in_lower_case() -> None:
    with serving([OK]) as (url, _):
        reply = Line(url).call("GET", "/", {"X-API-Key": "key"})
        assert (reply.end, reply.status, reply.body, reply.is_charged) == (End.ANSWERED, 200, b"hi", True)


def test_a_connection_is_kept_and_one_found_closed_is_opened_anew() -> None:
    with serving([OK, OK], [OK]) as (url, requests):
        line = Line(url)
        assert [get(line), get(line)] == [(End.ANSWERED, 200)] * 2
        _until_closed(line)
        assert get(line) == (End.ANSWERED, 200)
        assert len(requests) == 3


@pytest.mark.parametrize(
    ("answer", "end"),
    [
        (b"", (End.CUT, 0)),
        (OK[:-1], (End.BROKEN, 200)),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n", (End.BROKEN, 200)),
    ],
)
def test_no_answer_is_told_from_half_an_answer(answer: bytes, end: tuple[End, int]) -> None:
    with serving([answer]) as (url, _):
        assert get(Line(url)) == end


def test_nobody_there_is_no_request_that_was_sent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert get(Line(f"http://127.0.0.1:{port}")) == (End.REFUSED, 0)


def test_pieces_without_a_length_go_out_chunked() -> None:
    with serving([OK]) as (url, requests):
        Line(url).call("PUT", "/", {}, iter([b"one", b"two"]))
        assert b"Transfer-Encoding: chunked" in requests[0]


def test_an_api_echoes_by_digest_or_word_for_word() -> None:
    assert echoed(b'{"body_bytes": 3, "body_sha256": "ab"}') == (3, "ab")
    assert echoed(b"abc") == (3, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
    assert echoed(b"") is None


def _until_closed(line: Line) -> None:
    """Waits for the server's close to arrive."""
    sock = line._connection.sock
    assert sock is not None
    assert sock.recv(1, socket.MSG_PEEK) == b""
