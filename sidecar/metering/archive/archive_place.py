"""Where an archive's files are: a directory, or an object store through fsspec (the extra ``archive``).

A file of a directory grows, and is on the disk before :meth:`append` returns. An object of a store cannot grow, so each
append makes one. No file is ever changed or written over.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

SUFFIXES: Final = (".jsonl", ".checkpoint.json")
LINE_BYTES_MAX: Final = 67_108_864
"""An outbox entry has at most 16 MiB, and JSON may double it."""


class ArchiveError(Exception):
    """The archive cannot be read or written. The message says where and why."""


class ArchivePlace(Protocol):
    def append(self, name: str, data: bytes) -> None:
        """To the file of this name, durably. Raises :class:`ArchiveError`."""

    def close(self) -> None:
        """Closes the file that grows, if there is one."""

    @property
    def grows(self) -> bool:
        """Whether a file can be appended to again."""

    def names(self) -> list[str]:
        """Of all files of the archive, sorted. Raises :class:`ArchiveError`."""

    def lines(self, name: str) -> Iterator[bytes]:
        """The lines of a file, with their ends. Raises :class:`ArchiveError`."""


def archive_place(where: str) -> ArchivePlace:
    """``where``: a path, or a URL such as `s3://bucket/folder`. Raises :class:`ArchiveError`: fsspec is missing."""
    parts = urlsplit(where)
    if len(parts.scheme) > 1 and parts.scheme != "file":
        return _ObjectStore(where)
    return _Directory(Path(parts.path if parts.scheme == "file" else where))


class _Directory:
    grows = True

    def __init__(self, path: Path) -> None:
        self._path = path
        self._name = ""
        self._file: int | None = None

    def __repr__(self) -> str:
        return str(self._path)

    def append(self, name: str, data: bytes) -> None:
        try:
            if name != self._name or self._file is None:
                self._open(name)
            assert self._file is not None
            written = 0
            while written < len(data):
                written += os.write(self._file, data[written:])
            os.fsync(self._file)
        except OSError as error:
            self.close()
            raise ArchiveError(f"{self._path / name}: {error.strerror or error}") from None

    def _open(self, name: str) -> None:
        self.close()
        self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        self._file = os.open(self._path / name, flags, 0o600)
        self._name = name
        directory = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def names(self) -> list[str]:
        try:
            return sorted(each.name for each in self._path.iterdir() if each.name.endswith(SUFFIXES))
        except OSError as error:
            raise ArchiveError(f"{self._path}: {error.strerror or error}") from None

    def lines(self, name: str) -> Iterator[bytes]:
        try:
            with (self._path / name).open("rb") as file:
                while line := file.readline(LINE_BYTES_MAX):
                    yield line
        except OSError as error:
            raise ArchiveError(f"{self._path / name}: {error.strerror or error}") from None


class _ObjectStore:
    grows = False

    def __init__(self, url: str) -> None:
        try:
            fsspec = import_module("fsspec.core")
        except ImportError:
            raise ArchiveError(
                f"{url}: needs fsspec; install quota-sidecar[archive] and the store's own package"
            ) from None
        self._url = url.rstrip("/")
        try:
            found: tuple[Any, str] = fsspec.url_to_fs(self._url)
        except (ImportError, ValueError) as error:
            raise ArchiveError(f"{url}: {error}") from None
        self._store, self._root = found

    def __repr__(self) -> str:
        return self._url

    def append(self, name: str, data: bytes) -> None:
        path = f"{self._root}/{name}"
        try:
            if self._store.exists(path):
                raise ArchiveError(f"{self._url}/{name}: exists")
            self._store.makedirs(self._root, exist_ok=True)
            self._store.pipe_file(path, data)
        except ArchiveError:
            raise
        except Exception as error:  # each store has errors of its own
            raise ArchiveError(f"{self._url}/{name}: {error}") from None

    def close(self) -> None:
        pass

    def names(self) -> list[str]:
        try:
            found = self._store.ls(self._root, detail=False)
        except Exception as error:
            raise ArchiveError(f"{self._url}: {error}") from None
        return sorted(name.rpartition("/")[2] for name in found if name.endswith(SUFFIXES))

    def lines(self, name: str) -> Iterator[bytes]:
        try:
            with self._store.open(f"{self._root}/{name}", "rb") as file:
                while line := file.readline(LINE_BYTES_MAX):
                    yield line
        except Exception as error:
            raise ArchiveError(f"{self._url}/{name}: {error}") from None
