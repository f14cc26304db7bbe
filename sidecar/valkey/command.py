"""How a command goes to Valkey (RESP, https://valkey.io/topics/protocol/). No I/O."""

from __future__ import annotations


def bulk(part: bytes) -> bytes:
    """A bulk string."""
    return b"$%d\r\n%b\r\n" % (len(part), part)


def encode_command(parts: list[bytes]) -> bytes:
    """A command as an array of bulk strings."""
    return b"*%d\r\n" % len(parts) + b"".join([bulk(part) for part in parts])


def encode_call(function: bytes, count: int, keys: list[bytes], arguments: list[bytes]) -> bytes:
    """FCALL of a function with ``count`` keys. ``keys`` are bulk strings already, one or more in each, for those of
    accounts are the same in every call."""
    head = b"*%d\r\n$5\r\nFCALL\r\n" % (3 + count + len(arguments))
    return b"".join([head, bulk(function), bulk(b"%d" % count), *keys, *[bulk(argument) for argument in arguments]])
