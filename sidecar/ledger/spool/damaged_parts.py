"""Files that keep what was damaged in a journal, for people to look at."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from sidecar.ledger.spool.journal_format import Damage, ReadAt
from sidecar.ledger.spool.spool_directory import open_trusted

FILES_MAX: Final = 1_000
"""Beside one journal."""
_COPY_BYTES: Final = 1_048_576


class TooManyFiles(Exception):
    """No further file is made. The message says what to do."""


def keep_parts(directory: int, base: Path, read_at: ReadAt, damages: Iterable[Damage]) -> tuple[Path, int] | None:
    """Copies damaged parts to a new file ``BASE.damaged-N`` in an open directory (0600, fsync). Each part comes behind
    a line that says where it was and what is wrong.

    Returns:
        The file, and an offset behind the beginning of the last part. None if there are no parts: there is no file.

    Raises:
        TooManyFiles: there are FILES_MAX already.
        OSError: it cannot be written. There is no file.
    """
    path: Path | None = None
    descriptor = -1
    at = begins = 0
    try:
        for damage in damages:
            if path is None:
                path, descriptor = _new_file(directory, base)
            line = f"{base.name} offset={damage.offset} length={damage.length}: {damage.reason}\n"
            at += write_all(descriptor, line.encode(), at)
            end = damage.offset + damage.length
            for offset in range(damage.offset, end, _COPY_BYTES):
                at += write_all(descriptor, read_at(offset, min(_COPY_BYTES, end - offset)), at)
            at += write_all(descriptor, b"\n", at)
            begins = damage.offset
        if path is None:
            return None
        os.fsync(descriptor)
        os.fsync(directory)
    except OSError:
        if path is not None:
            with contextlib.suppress(OSError):
                os.unlink(path.name, dir_fd=directory)
        raise
    finally:
        if path is not None:
            os.close(descriptor)
    return path, begins + 1


def _new_file(directory: int, base: Path) -> tuple[Path, int]:
    for number in range(1, FILES_MAX + 1):
        path = base.with_name(f"{base.name}.damaged-{number}")
        with contextlib.suppress(FileExistsError):
            return path, open_trusted(directory, path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    raise TooManyFiles(f"{base}: there are {FILES_MAX} files of damaged parts beside it; move them elsewhere")


def write_all(descriptor: int, data: bytes, offset: int) -> int:
    """Writes all of it at an offset. How many bytes that were. Raises OSError."""
    view = memoryview(data)
    while view:
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count
    return len(data)
