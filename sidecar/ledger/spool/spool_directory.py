"""Which directories and files a spool trusts. What lies in a spool is charged to accounts, so it must be ours.

A directory belongs to the effective user, and nobody else may read or write it (0700). A file in it is a regular file
of the same user, with one name, which nobody else may read or write (0600). Files are opened by the descriptor of their
directory, never through a link, and never so that the opening waits (a FIFO) or does something (a device).

A volume of Kubernetes with ``fsGroup`` belongs to root and is writable by the group. There the spool is a directory
below the mount, which the process makes for itself.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

_OTHERS: Final = 0o077
_KINDS: Final = (
    (stat.S_ISLNK, "a link"), (stat.S_ISDIR, "a directory"), (stat.S_ISFIFO, "a FIFO"), (stat.S_ISSOCK, "a socket"),
    (stat.S_ISBLK, "a device"), (stat.S_ISCHR, "a device"),
)  # fmt: skip


class NotTrusted(Exception):
    """A directory or file is not ours alone. The message names it and what is wrong."""


def open_directory(directory: Path, *, create: bool = False) -> int:
    """A descriptor of the directory. ``create``: it is made, 0700, if it is absent; its parents with the usual mode.

    Raises:
        NotTrusted: it is no directory, somebody else's, or open to others.
        OSError: it is absent, or cannot be made or opened.
    """
    if create:
        directory.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.mkdir(directory, 0o700)
        except FileExistsError:
            pass
        else:
            os.chmod(directory, 0o700)  # whatever the umask took away
            _sync(directory.parent)
    try:
        found = os.lstat(directory)
        if stat.S_ISLNK(found.st_mode):
            raise NotTrusted(f"{directory}: it is a link; name the directory itself")
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except NotADirectoryError:
        raise NotTrusted(f"{directory}: it is not a directory") from None
    try:
        _check_owner(directory, os.fstat(descriptor))
        mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
        if mode & _OTHERS:
            raise NotTrusted(
                f"{directory}: others than its owner may use it (mode {mode:04o}); chmod 700 it if all that is in it "
                "is yours, or name a directory below it, which is made"
            )
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def open_trusted(directory: int, path: Path, flags: int) -> int:
    """A descriptor of the file ``path.name`` in an open directory; ``path`` is for messages.

    With O_CREAT in ``flags`` a new file gets mode 0600 whatever the umask or the directory's defaults say.

    Raises:
        NotTrusted: it is no regular file, somebody else's, open to others, or has a second name.
        OSError: it is absent, or cannot be opened.
    """
    if not flags & os.O_EXCL:
        try:
            # Before it is opened: to open a device may do something.
            check_file(path, os.stat(path.name, dir_fd=directory, follow_symlinks=False))
        except FileNotFoundError:
            if not flags & os.O_CREAT:
                raise
            flags |= os.O_EXCL
    descriptor = os.open(path.name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600, dir_fd=directory)
    try:
        if flags & os.O_EXCL:
            os.fchmod(descriptor, 0o600)
        check_file(path, os.fstat(descriptor))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def check_file(path: Path, found: os.stat_result) -> None:
    """Whether a file is ours alone. One without a name passes: somebody has just removed it.

    Raises:
        NotTrusted: it is no regular file, somebody else's, open to others, or has a second name.
    """
    if not stat.S_ISREG(found.st_mode):
        kind = next((words for is_kind, words in _KINDS if is_kind(found.st_mode)), "no regular file")
        raise NotTrusted(f"{path}: it is {kind}, so it is not read")
    _check_owner(path, found)
    mode = stat.S_IMODE(found.st_mode)
    if mode & _OTHERS:
        raise NotTrusted(f"{path}: others than its owner may use it (mode {mode:04o}), so it is not read")
    if found.st_nlink > 1:
        raise NotTrusted(f"{path}: the file has {found.st_nlink} names, so it is not read")


def _check_owner(path: Path, found: os.stat_result) -> None:
    if found.st_uid != os.geteuid():
        raise NotTrusted(f"{path}: it belongs to user {found.st_uid}, and this process is user {os.geteuid()}")


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
