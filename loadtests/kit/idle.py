"""Connections that are kept open and say nothing more. ``python -m loadtests.kit.idle PORT COUNT PATH``: makes one
request over each, prints ``open``, and closes them when its standard input does.
"""

from __future__ import annotations

import socket
import sys

PER_ADDRESS = 5000
"""Connections from one source address: a pair of addresses has some 28,000 ports between them."""
TIMEOUT_S = 20.0


def source_of(number: int) -> str:
    """The loopback address from which the connection of this number comes."""
    return f"127.0.0.{2 + number // PER_ADDRESS}"


def connect(port: int, number: int, path: str) -> socket.socket:
    """A connection over which one request was answered.

    Raises:
        OSError: it cannot be had, or the answer is none.
    """
    connection = socket.create_connection(("127.0.0.1", port), TIMEOUT_S, source_address=(source_of(number), 0))
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
    received = b""
    while not whole(received):
        data = connection.recv(65536)
        if not data:
            raise OSError(f"connection {number} was closed instead of answered: {received[:80]!r}")
        received += data
    if not received.startswith(b"HTTP/1.1 200 "):
        raise OSError(f"connection {number} got {received[:80]!r}")
    return connection


def whole(received: bytes) -> bool:
    """Whether a response with a Content-Length is complete."""
    head, found, body = received.partition(b"\r\n\r\n")
    length = head.lower().partition(b"\r\ncontent-length:")[2].split(b"\r\n", 1)[0].strip()
    return bool(found) and len(body) >= int(length or b"0")


def main(port: int, count: int, path: str) -> int:
    connections = []
    try:
        for number in range(count):
            connections.append(connect(port, number, path))
    except OSError as error:
        print(f"after {len(connections)} connections: {error}", file=sys.stderr)
        return 1
    print("open", flush=True)
    sys.stdin.read()
    for connection in connections:
        connection.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
