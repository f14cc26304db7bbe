"""Limits on what one HTTP message may be. Each has a name, a default and the reason for the default.

RFC 9112 sections 3 and 5 and RFC 9110 section 17.5 ask every recipient to choose such limits; without them the other
side decides how much memory and time it takes from this process.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

__all__ = ["Limits"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What is refused, and with which status, when a message is larger.

    Raises:
        ValueError: a limit is not positive, or the head could not hold the longest request line.
    """

    #: 501. The longest registered method is UPDATEREDIRECTREF with 17 bytes.
    method_bytes_max: int = 32
    #: 414. RFC 9112 section 3 asks for at least 8000; nginx and Apache take 8 KiB.
    target_bytes_max: int = 8192
    #: 431. nginx takes 4 buffers of 8 KiB; tokens and certificates in fields seldom reach half of it.
    head_bytes_max: int = 32768
    #: 431. Apache's default. A field costs more than its bytes, so bytes alone do not bound the work.
    fields_max: int = 100
    #: 413, requests only. An Open Banking file payment is far below; None takes any size (bodies are streamed).
    body_bytes_max: int | None = 10 * 1024 * 1024
    #: 400, per message. Nobody uses extensions, and they are how a sender spends our time outside of the body's limit.
    chunk_extension_bytes_max: int = 1024
    #: 431. Trailers are held in memory until they are complete, unlike the body before them.
    trailer_bytes_max: int = 8192
    #: 431. A digest, a signature, a checksum and a status are four.
    trailer_fields_max: int = 32

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and value < 1:
                raise ValueError(f"{field.name} must be at least 1, not {value}")
        if self.head_bytes_max < self.method_bytes_max + self.target_bytes_max + 16:
            raise ValueError("head_bytes_max must leave room for the longest method and target")
