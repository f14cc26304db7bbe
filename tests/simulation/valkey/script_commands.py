"""Scripts and functions."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from tests.simulation.valkey.key_commands import matches
from tests.simulation.valkey.registry import command, keys_counted
from tests.simulation.valkey.replies import OK, CommandError, Reply, integer

if TYPE_CHECKING:
    from tests.simulation.valkey.server import SimulatedValkey

_NAME: Final = re.compile(rb"[A-Za-z0-9_]+")


@dataclass(slots=True)
class Library:
    """``code``: what FUNCTION LOAD was given. ``functions``: of Lua, by name."""

    name: bytes
    code: bytes
    functions: dict[bytes, Any] = field(default_factory=dict)


def _counted(parts: list[bytes], message: bytes | None = None) -> tuple[list[bytes], list[bytes]]:
    """Keys and arguments of a call."""
    count = integer(parts[2]) if message is None else integer(parts[2], message)
    if count > len(parts) - 3:
        raise CommandError("ERR Number of keys can't be greater than number of args")
    if count < 0:
        raise CommandError("ERR Number of keys can't be negative")
    return parts[3 : 3 + count], parts[3 + count :]


@command("eval", -3, keys=keys_counted, scripts=False)
def eval_(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    keys, arguments = _counted(parts)
    reply = server.run_script(parts[1], keys, arguments)
    server.scripts.setdefault(_sha1(parts[1]), parts[1])
    return reply


@command("evalsha", -3, keys=keys_counted, scripts=False)
def evalsha(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    keys, arguments = _counted(parts)
    text = server.scripts.get(parts[1].lower())
    if text is None:
        raise CommandError("NOSCRIPT No matching script.")
    return server.run_script(text, keys, arguments)


def _sha1(text: bytes) -> bytes:
    return hashlib.sha1(text, usedforsecurity=False).hexdigest().encode()


@command("script", -2, container=True)
@command("function", -2, container=True)
def container(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    raise AssertionError("a container has only subcommands")


@command("script|load", 3, scripts=False)
def script_load(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    server.compile_script(parts[2])
    sha = _sha1(parts[2])
    server.scripts[sha] = parts[2]
    return sha


@command("script|exists", -3, scripts=False)
def script_exists(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    return [int(sha.lower() in server.scripts) for sha in parts[2:]]


@command("script|flush", -2, scripts=False)
def script_flush(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    server.scripts.clear()
    return OK


@command("script|kill", 2, scripts=False, while_busy=True)
@command("function|kill", 2, scripts=False, while_busy=True)
def script_kill(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    if not server.trouble.is_busy:
        raise CommandError("NOTBUSY No scripts in execution right now.")
    server.trouble.is_busy = False
    return OK


@command("fcall", -3, keys=keys_counted, scripts=False)
@command("fcall_ro", -3, keys=keys_counted, scripts=False)
def fcall(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    function = server.function(parts[1])
    if function is None:
        raise CommandError("ERR Function not found")
    keys, arguments = _counted(parts, b"ERR Bad number of keys provided")
    if parts[0].lower() == b"fcall_ro":
        raise CommandError("ERR Can not execute a script with write flag using *_ro command.")
    return server.run_function(function, keys, arguments)


@command("function|load", -3, scripts=False, writes=True, grows=True)
def function_load(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    *options, code = parts[2:]
    for option in options:
        if option.upper() != b"REPLACE":
            raise CommandError(b"ERR Unknown option given: " + option)
    name, body = library_parts(code)
    former = server.libraries.get(name)
    if former is not None and not options:
        raise CommandError(b"ERR Library '%b' already exists" % name)
    server.load_library(name, code, body)
    return name


def library_parts(code: bytes) -> tuple[bytes, bytes]:
    """Name and Lua of a library. The first line is left empty, so that lines keep their numbers.

    Raises:
        CommandError: it says nothing of itself.
    """
    if not code.startswith(b"#!"):
        raise CommandError("ERR Missing library metadata")
    first, newline, rest = code.partition(b"\n")
    if not newline:
        raise CommandError("ERR Invalid library metadata")
    engine, *metadata = first[2:].split()
    name = None
    for each in metadata:
        if not each.lower().startswith(b"name="):
            raise CommandError(b"ERR Invalid metadata value given: " + each)
        if name is not None:
            raise CommandError("ERR Invalid metadata value, name argument was given multiple times")
        name = each[5:]
    if name is None:
        raise CommandError("ERR Library name was not given")
    if not _NAME.fullmatch(name):
        raise CommandError(
            "ERR Library names can only contain letters, numbers, or underscores(_) and must be at least one "
            "character long"
        )
    if engine.lower() != b"lua":
        raise CommandError(b"ERR Engine '%b' not found" % engine)
    return name, b"\n" + rest


@command("function|delete", 3, scripts=False, writes=True)
def function_delete(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    if server.libraries.pop(parts[2], None) is None:
        raise CommandError("ERR Library not found")
    return OK


@command("function|flush", -2, scripts=False, writes=True)
def function_flush(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    server.libraries.clear()
    return OK


@command("function|list", -2, scripts=False)
def function_list(server: SimulatedValkey, parts: list[bytes]) -> Reply:
    pattern, with_code = None, False
    at = 2
    while at < len(parts):
        option = parts[at].upper()
        if option == b"WITHCODE":
            with_code = True
        elif option == b"LIBRARYNAME":
            at += 1
            if at == len(parts):
                raise CommandError("ERR library name argument was not given")
            pattern = parts[at]
        else:
            raise CommandError(b"ERR Unknown argument " + parts[at])
        at += 1
    found: list[Reply] = []
    for library in server.libraries.values():
        if matches(library.name, pattern):
            functions: list[Reply] = [[b"name", name, b"description", None, b"flags", []] for name in library.functions]
            found.append([b"library_name", library.name, b"engine", b"LUA", b"functions", functions])
            if with_code:
                found[-1] += [b"library_code", library.code]
    return found
