"""A Valkey server without a process: the real scripts in real Lua, its commands in Python, its clock from outside.

It answers one call after another, as the real one does. What it is told to be in trouble with, it refuses with the real
one's words (:class:`Trouble`). What network, replicas and cluster do to it is for who drives it:
:meth:`SimulatedValkey.snapshot` is cheap, so a replica is another server that is given an earlier snapshot.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from tests.simulation.valkey import (  # noqa: F401  the commands enter the table
    group_commands,
    hash_commands,
    key_commands,
    list_commands,
    server_commands,
    sorted_set_commands,
    stream_commands,
    stream_info_commands,
)
from tests.simulation.valkey.cluster import SlotTable
from tests.simulation.valkey.keyspace import Contents, Keyspace
from tests.simulation.valkey.lua_runtime import engine
from tests.simulation.valkey.registry import Command, lookup
from tests.simulation.valkey.replies import CommandError, Error, Reply
from tests.simulation.valkey.script_commands import Library, library_parts
from tests.simulation.valkey.values import Hash

OOM: Final = "OOM command not allowed when used memory > 'maxmemory'."
READONLY: Final = "READONLY You can't write against a read only replica."
NOREPLICAS: Final = "NOREPLICAS Not enough good replicas to write."
MISCONF: Final = (
    "MISCONF Valkey is configured to save RDB snapshots, but it's currently unable to persist to disk. Commands that "
    "may modify the data set are disabled, because this instance is configured to report errors during writes if RDB "
    "snapshotting fails (stop-writes-on-bgsave-error option). Please check the Valkey logs for details about the RDB "
    "error."
)
LOADING: Final = "LOADING Valkey is loading the dataset in memory"
MASTERDOWN: Final = "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'."
BUSY: Final = "BUSY Valkey is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE."


@dataclass(frozen=True, slots=True)
class Version:
    """What a server calls itself. Redis has no number of Valkey."""

    text: bytes = b"9.1.2"
    number: int = 0x00090102
    redis_text: bytes = b"7.2.4"
    redis_number: int = 0x00070204
    is_valkey: bool = True


@dataclass(slots=True)
class Trouble:
    """What a server is in trouble with. ``primary``: ``host:port``, of a replica."""

    out_of_memory: bool = False
    is_replica: bool = False
    primary: str = ""
    link_is_down: bool = False
    lacks_replicas: bool = False
    disk_fails: bool = False
    is_loading: bool = False
    is_busy: bool = False


@dataclass(slots=True)
class Session:
    """What a server knows of a connection."""

    id: int
    name: bytes = b""
    asking: bool = False


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Data and libraries of functions at one instant, as a file or a replica has them."""

    contents: Contents
    libraries: Mapping[bytes, bytes]
    writes: int


@dataclass(slots=True)
class _Script:
    """A script that runs. ``has_written``: from then on nothing is refused for want of memory, replicas or a disk."""

    has_written: bool = False


class SimulatedValkey:
    """``clock_us``: the wall clock, microseconds since 1970; asked once for each call. ``seed``: of what the server
    chooses at random. ``on_write``: called after each call that may have written; a replica is fed from there."""

    def __init__(
        self,
        clock_us: Callable[[], int],
        *,
        version: Version | None = None,
        seed: int = 0,
        address: str = "127.0.0.1:6379",
    ) -> None:
        self.address = address
        self.version = version or Version()
        self.random = random.Random(seed)
        self.db = Keyspace()
        self.trouble = Trouble()
        self.slots: SlotTable | None = None
        self.config = {"maxmemory": "0", "maxmemory-policy": "noeviction", "min-replicas-to-write": "0",
                       "min-replicas-max-lag": "10"}  # fmt: skip
        self.on_write: Callable[[], None] | None = None
        self.now_us = 0
        self.writes = 0
        self.calls = 0
        self.used_bytes = 1_000_000
        self.scripts: dict[bytes, bytes] = {}
        self.libraries: dict[bytes, Library] = {}
        self.session = Session(0)
        self.run_id = f"{self.random.getrandbits(160):040x}"
        self._clock_us = clock_us
        self._sessions = 0
        self._script: _Script | None = None
        self._registering: Library | None = None
        valkey = (self.version.text, self.version.number) if self.version.is_valkey else None
        self._engine = engine()
        self._lua = self._engine.new_server(
            valkey and self._engine.lua.table_from(valkey),
            self._engine.lua.table_from((self.version.redis_text, self.version.redis_number)),
        )

    def __repr__(self) -> str:
        return f"<SimulatedValkey {self.address} keys={len(self.db)} writes={self.writes} {self.trouble}>"

    def connect(self) -> Session:
        """What a new connection is known by."""
        self._sessions += 1
        return Session(self._sessions)

    def execute(self, session: Session, parts: list[bytes]) -> Reply:
        """Does one call."""
        self.now_us = self._clock_us()
        self.db.now_ms = self.now_us // 1000
        self.calls += 1
        self.session = session
        try:
            command = _found(parts)
            asking, session.asking = session.asking, False
            writes, grows = self._effect(command, parts)
            self._check(command, parts, writes, grows, asking)
            reply = command.run(self, parts)
        except CommandError as error:
            return Error(error.message)
        if writes and self.on_write is not None:
            self.on_write()
        return reply

    def call(self, *parts: bytes | str | int) -> Reply:
        """One call of a connection of its own; for tests."""
        return self.execute(Session(0), [part if isinstance(part, bytes) else str(part).encode() for part in parts])

    # What is refused

    def _effect(self, command: Command, parts: list[bytes]) -> tuple[bool, bool]:
        """Whether a call may write and grow. A function may; a script without flags is asked when it does."""
        if command.name == "fcall":
            return (True, True) if self.function(parts[1]) is not None else (False, False)
        return command.writes, command.grows

    def _check(self, command: Command, parts: list[bytes], writes: bool, grows: bool, asking: bool) -> None:
        """In the order of processCommand (src/server.c)."""
        if self.slots is not None and command.keys is not None:
            self.slots.check(command.keys(parts), self.db.has, asking=asking)
        trouble = self.trouble
        if grows and trouble.out_of_memory:
            raise CommandError(OOM)
        if writes:
            self._check_write()
        answers_stale = command.while_loading or command.name.startswith("script|")
        if trouble.is_replica and trouble.link_is_down and not answers_stale:
            raise CommandError(MASTERDOWN)
        if trouble.is_loading and not command.while_loading:
            raise CommandError(LOADING)
        if trouble.is_busy and not command.while_busy:
            raise CommandError(BUSY)
        if writes:
            self.writes += 1

    def _check_write(self) -> None:
        trouble = self.trouble
        if trouble.disk_fails and not trouble.is_replica:
            raise CommandError(MISCONF)
        if trouble.lacks_replicas and not trouble.is_replica:
            raise CommandError(NOREPLICAS)
        if trouble.is_replica:
            raise CommandError(READONLY)

    # Scripts

    def run_script(self, text: bytes, keys: list[bytes], arguments: list[bytes]) -> Reply:
        return self._in_lua(lambda: self._engine.run_script(self._lua, text, keys, arguments))

    def run_function(self, function: Any, keys: list[bytes], arguments: list[bytes]) -> Reply:
        return self._in_lua(lambda: self._engine.run_function(function, keys, arguments))

    def _in_lua(self, run: Callable[[], Reply]) -> Reply:
        self._script = script = _Script()
        self._engine.current = self
        try:
            return run()
        finally:
            self._script = self._engine.current = None
            if script.has_written:
                self.writes += 1
                if self.on_write is not None:
                    self.on_write()

    def command_of_script(self, parts: list[bytes]) -> Reply:
        """Does a command that a script calls.

        Raises:
            CommandError: it fails, or the script may not call it.
        """
        script = self._script
        assert script is not None
        if not parts:
            raise CommandError("ERR Please specify at least one argument for this call")
        command = lookup(parts)
        if command is None:
            raise CommandError("ERR Unknown command called from script")
        if not _fits(command, parts):
            raise CommandError("ERR Wrong number of args calling command from script")
        if not command.scripts:
            raise CommandError("ERR This Valkey command is not allowed from script")
        if not script.has_written:
            if command.writes:
                self._check_write()
            if command.grows and self.trouble.out_of_memory:
                raise CommandError(OOM)
        if command.writes:
            script.has_written = True
        if self.slots is not None and command.keys is not None:
            for key in command.keys(parts):
                if not self.slots.is_served(key):
                    raise CommandError("ERR Script attempted to access a non local key in a cluster node")
        return command.run(self, parts)

    def compile_script(self, text: bytes) -> None:
        """Raises CommandError."""
        try:
            self._engine.compiled(text, b"@user_script")
        except CommandError as error:
            raise CommandError(b"ERR Error compiling script (new function): " + error.message) from None

    def function(self, name: bytes) -> Any | None:
        """A function of Lua."""
        for library in self.libraries.values():
            if name in library.functions:
                return library.functions[name]
        return None

    def load_library(self, name: bytes, code: bytes, body: bytes) -> None:
        """Replaces a library. Raises CommandError, and then nothing is changed."""
        self._registering = library = Library(name, code)
        self._engine.current = self
        try:
            self._engine.load_library(self._lua, body)
        finally:
            self._registering = self._engine.current = None
        if not library.functions:
            raise CommandError("ERR No functions registered")
        for other in self.libraries.values():
            if other.name != name and (double := other.functions.keys() & library.functions.keys()):
                raise CommandError(b"ERR Function %b already exists" % min(double))
        self.libraries[name] = library

    def register_function(self, name: Any, function: Any) -> None:
        """``redis.register_function``, in both of its forms."""
        library = self._registering
        assert library is not None
        if function is None:
            name, function = name[b"function_name"], name[b"callback"]
        library.functions[name] = function

    # The life of a server

    def snapshot(self) -> Snapshot:
        """Its data now. Costs a copy of the table of keys."""
        libraries = {library.name: library.code for library in self.libraries.values()}
        return Snapshot(self.db.snapshot(), libraries, self.writes)

    def restore(self, snapshot: Snapshot, *, functions: bool = True) -> None:
        """Becomes what a server was: a rollback, a restart from a file, or what a replica has received. Functions are
        loaded anew, so what they kept in memory is gone; scripts are gone."""
        self.db.restore(snapshot.contents)
        self.writes = snapshot.writes
        self.restart(functions=False, data=True)
        if functions:
            for name, code in snapshot.libraries.items():
                self.load_library(name, code, library_parts(code)[1])

    def replicate(self, snapshot: Snapshot) -> None:
        """Becomes what its primary was. Scripts that it knows stay; a library that has not changed is not loaded
        anew."""
        self.db.restore(snapshot.contents)
        self.writes = snapshot.writes
        for name in [name for name, library in self.libraries.items() if snapshot.libraries.get(name) != library.code]:
            del self.libraries[name]
        for name, code in snapshot.libraries.items():
            if name not in self.libraries:
                self.load_library(name, code, library_parts(code)[1])

    def restart(self, *, functions: bool = False, data: bool = False) -> None:
        """Starts again: empty unless ``data``. ``functions``: they were in the file; what they kept in memory is
        gone."""
        libraries = {library.name: library.code for library in self.libraries.values()} if functions else {}
        self.scripts.clear()
        self.libraries.clear()
        self.run_id = f"{self.random.getrandbits(160):040x}"
        if not data:
            self.db.clear()
            self.writes = 0
        for name, code in libraries.items():
            self.load_library(name, code, library_parts(code)[1])

    def reclaim_expired(self) -> None:
        """What the server does by itself from time to time: keys and fields that have expired go."""
        db = self.db
        db.now_ms = self._clock_us() // 1000
        for key in list(db.values):
            value = db.find(key)
            if isinstance(value, Hash) and value.expires:
                changed = db.write(key, Hash)
                assert changed is not None
                changed.reclaim(db.now_ms)
                db.remove_if_empty(key, changed)


def _found(parts: list[bytes]) -> Command:
    command = lookup(parts) if b"|" not in parts[0] else None
    if command is None:
        name, *rest = parts
        known = lookup(parts[:1])
        if known is not None and rest:
            raise CommandError(b"ERR unknown subcommand '%b'. Try %b HELP." % (rest[0][:128], name.upper()))
        words = b"".join(b"'%b' " % each[:128] for each in rest)
        raise CommandError(b"ERR unknown command '%b', with args beginning with: %b" % (name[:128], words[:128]))
    if not _fits(command, parts):
        raise CommandError(f"ERR wrong number of arguments for '{command.name}' command")
    return command


def _fits(command: Command, parts: list[bytes]) -> bool:
    return len(parts) == command.arity if command.arity > 0 else len(parts) >= -command.arity
