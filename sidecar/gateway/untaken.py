"""How much of what was written the other side has not taken."""

from __future__ import annotations

import fcntl
import struct
import termios
from typing import Any, Final

_NONE: Final = bytes(4)


def untaken(transport: Any) -> int:
    """Bytes that wait in the transport, and in the kernel until the other side has acknowledged them.

    The kernel takes more of a transport only when a third of its buffer is free. That may be a megabyte, for which a
    slow but steady reader needs minutes, while the transport's own buffer does not get any smaller.
    """
    size: int = transport.get_write_buffer_size()
    sock = transport.get_extra_info("socket")
    if sock is None:
        return size
    try:
        # TIOCOUTQ of a socket is SIOCOUTQ, see tcp(7).
        return size + int(struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, _NONE))[0])
    except (OSError, ValueError):  # it is closed, or the system has no such question
        return size
