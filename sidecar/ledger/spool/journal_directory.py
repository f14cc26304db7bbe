"""The journals of a directory: their names, and what is said of those that cannot be used."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from sidecar.ledger.spool.journal_format import NAME_BYTES_MAX
from sidecar.ledger.spool.spool_directory import NotTrusted, open_directory

SUFFIX: Final = ".journal"
JOURNALS_MAX: Final = 10_000
"""Journals of one directory that are listed at once; the others' turn comes when these are gone."""
_NAME: Final = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{NAME_BYTES_MAX - 1}}}")


class JournalError(Exception):
    """A directory or file cannot be used. The message names it and what is wrong."""


class JournalFull(JournalError):
    """The file would grow beyond its limit. Nothing was written."""


def dead_journals(directory: Path) -> list[str]:
    """Names of the journals in a directory, of living processes too, at most JOURNALS_MAX; none if it is absent.

    Raises:
        JournalError: the directory may not be trusted, or cannot be read.
    """
    try:
        with opened(directory, directory) as folder, os.scandir(folder) as found:
            names = [entry.name for _, entry in zip(range(JOURNALS_MAX), _journals(found), strict=False)]
    except FileNotFoundError:
        return []
    return sorted(name.removesuffix(SUFFIX) for name in names)


def _journals(found: Iterator[os.DirEntry[str]]) -> Iterator[os.DirEntry[str]]:
    return (each for each in found if each.name.endswith(SUFFIX) and _NAME.fullmatch(each.name.removesuffix(SUFFIX)))


def journal_path(directory: Path, name: str) -> Path:
    """The file of a journal. Raises JournalError: ``name`` is no plain name."""
    if not _NAME.fullmatch(name):
        raise JournalError(f"{directory}: {name!r} is no name of a journal")
    return directory / f"{name}{SUFFIX}"


@contextlib.contextmanager
def opened(directory: Path, path: Path, *, create: bool = False) -> Iterator[int]:
    """A descriptor of the directory, for the block. ``path`` is what the block works on, for messages.

    Raises:
        JournalError: the directory may not be trusted, or something cannot be read or written.
        FileNotFoundError: the file is absent, or the directory, which was not to be made.
    """
    try:
        descriptor = open_directory(directory, create=create)
    except NotTrusted as error:
        raise JournalError(str(error)) from None
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not create:
            raise
        raise JournalError(f"{directory}: {error.strerror}") from None
    try:
        yield descriptor
    except NotTrusted as error:
        raise JournalError(str(error)) from None
    except FileNotFoundError:
        raise
    except OSError as error:
        raise JournalError(f"{path}: {error.strerror}") from None
    finally:
        os.close(descriptor)
