"""What lies in a spool is charged to accounts: only what is ours alone is read."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from zlib import crc32

import orjson
import pytest

from sidecar.ledger.spool.journal import Journal, JournalError, dead_journals
from sidecar.ledger.spool.spool_file import Damage, Record, encode_record, keep_damaged, open_locked, read_records

Plant = Callable[[Path], None]


def _link(path: Path) -> None:
    target = path.parent.parent / "elsewhere"
    target.write_bytes(b"")
    target.chmod(0o600)
    path.symlink_to(target)


def _dangling(path: Path) -> None:
    path.symlink_to(path.parent / "absent")


def _second_name(path: Path) -> None:
    path.touch(0o600)
    os.link(path, path.parent.parent / "second")


def _socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the whole path may be too long for a socket
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path.name)
    finally:
        os.chdir(here)


def _with_mode(mode: int) -> Plant:
    def plant(path: Path) -> None:
        path.touch()
        path.chmod(mode)

    return plant


PLANTED = {
    "fifo": (lambda path: os.mkfifo(path, 0o600), "it is a FIFO, so it is not read"),
    "link": (_link, "it is a link, so it is not read"),
    "dangling link": (_dangling, "it is a link, so it is not read"),
    "directory": (lambda path: path.mkdir(), "it is a directory, so it is not read"),
    "socket": (_socket, "it is a socket, so it is not read"),
    "second name": (_second_name, "the file has 2 names, so it is not read"),
    "readable": (_with_mode(0o640), r"others than its owner may use it \(mode 0640\)"),
    "writable": (_with_mode(0o602), r"others than its owner may use it \(mode 0602\)"),
}


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    directory = tmp_path / "spool"
    directory.mkdir(0o700)
    return directory


@pytest.fixture(params=PLANTED)
def planted(request: pytest.FixtureRequest) -> tuple[Plant, str]:
    plant, message = PLANTED[request.param]
    return plant, message


def test_a_file_that_is_not_ours_alone_is_refused_and_stays(spool: Path, planted: tuple[Plant, str]) -> None:
    plant, message = planted
    plant(spool / "a.journal")
    assert dead_journals(spool) == ["a"]
    with pytest.raises(JournalError, match=rf"^{spool}/a\.journal: {message}"):
        Journal.adopt(spool, "a")
    assert (spool / "a.journal").is_symlink() or (spool / "a.journal").exists()
    with pytest.raises(JournalError):
        Journal.create(spool, "a", bytes_max=100_000)


def test_a_file_of_release_0_2_that_is_not_ours_alone_is_refused(spool: Path, planted: tuple[Plant, str]) -> None:
    plant, message = planted
    path = spool / "spool-a.log"
    plant(path)
    for use in (lambda: open_locked(path, create=False), lambda: list(read_records(path))):
        with pytest.raises(OSError, match=message):
            use()


def test_what_is_planted_as_the_file_of_damaged_lines_is_not_written_to(
    spool: Path, planted: tuple[Plant, str]
) -> None:
    plant, message = planted
    plant(spool / "spool-a.damaged")
    with pytest.raises(OSError, match=message):
        keep_damaged(spool / "spool-a.log", [b"x\n"])


@pytest.mark.parametrize("mode", [0o750, 0o701, 0o777, 0o2770])
def test_a_directory_that_others_may_use_is_refused_with_what_to_do(spool: Path, mode: int) -> None:
    spool.chmod(mode)
    message = rf"^{spool}: others than its owner may use it \(mode {mode:04o}\); chmod 700 it"
    for use in (lambda: Journal.create(spool, "a", bytes_max=100_000), lambda: Journal.adopt(spool, "a"),
                lambda: dead_journals(spool)):  # fmt: skip
        with pytest.raises(JournalError, match=message):
            use()
    with pytest.raises(OSError, match=message.removeprefix("^")):
        open_locked(spool / "spool-a.log", create=False)
    assert list(spool.iterdir()) == []


def test_a_directory_or_file_of_another_user_is_refused(spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Journal.create(spool, "a", bytes_max=100_000).close(remove=False)
    us = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: us + 1)
    with pytest.raises(JournalError, match=rf"^{spool}: it belongs to user {us}, and this process is user {us + 1}"):
        Journal.adopt(spool, "a")
    with pytest.raises(OSError, match=f"it belongs to user {us}"):
        open_locked(spool / "spool-a.log", create=False)


def test_a_link_to_a_directory_and_a_file_are_no_directory(spool: Path) -> None:
    link = spool.parent / "link"
    link.symlink_to(spool)
    with pytest.raises(JournalError, match=rf"^{link}: it is a link; name the directory itself"):
        Journal.create(link, "a", bytes_max=100_000)
    file = spool / "file"
    file.touch()
    with pytest.raises(JournalError, match=rf"^{file}: it is not a directory"):
        Journal.create(file, "a", bytes_max=100_000)
    with pytest.raises(JournalError, match=rf"^{file}/below: "):
        Journal.create(file / "below", "a", bytes_max=100_000)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
@pytest.mark.parametrize("parent_mode", [0o755, 0o2777])
def test_the_directory_and_its_files_are_made_for_us_alone_below_whatever_volume(
    tmp_path: Path, umask: int, parent_mode: int
) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    volume.chmod(parent_mode)  # 2777 is a volume with fsGroup
    before = os.umask(umask)
    try:
        journal = Journal.create(volume / "below" / "spool", "a", bytes_max=100_000)
    finally:
        os.umask(before)
    journal.append([b"x"])
    journal.close(remove=False)
    made = (volume / "below" / "spool", volume / "below" / "spool" / "a.journal")
    assert [stat.S_IMODE(path.stat().st_mode) & 0o777 for path in made] == [0o700, 0o600]
    found = Journal.adopt(volume / "below" / "spool", "a")
    assert found is not None
    assert found.pending == 1


def test_a_umask_that_takes_everything_away_leaves_directory_and_file_usable(spool: Path) -> None:
    before = os.umask(0o777)
    try:
        Journal.create(spool / "below", "a", bytes_max=100_000).close(remove=False)
    finally:
        os.umask(before)
    made = (spool / "below", spool / "below" / "a.journal")
    assert [stat.S_IMODE(path.stat().st_mode) for path in made] == [0o700, 0o600]


def line(account: str) -> bytes:
    body = orjson.dumps(["spool:gw:1", account, "calls", 5_000, [account, "calls", 5_000, "", "", 0, 0.0, None, None]])
    return b"%08x %b\n" % (crc32(body), body)


def test_a_file_that_somebody_else_planted_debits_nobody(spool: Path) -> None:
    """Seen: a file of a plain shell user, with a right checksum, debited an account of £50."""
    path = spool / "spool-planted.log"
    path.write_bytes(line("victim"))
    path.chmod(0o644)
    with pytest.raises(OSError, match="others than its owner may use it"):
        list(read_records(path))


def test_zeros_at_the_end_of_a_file_of_release_0_2_are_damage(spool: Path) -> None:
    """Seen: they were called torn, and deleted."""
    path = spool / "spool-a.log"
    whole = line("tpp")
    path.write_bytes(whole + line("tpp")[:40] + bytes(60))
    path.chmod(0o600)
    first, second = read_records(path)
    assert isinstance(first, Record)
    assert encode_record(first) == whole
    assert isinstance(second, Damage)
    assert not second.torn
