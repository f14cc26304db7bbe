"""Lua 5.1 itself, with what Valkey puts around a script (``sandbox.lua``).

One state of Lua serves all simulated servers of a process: a text is compiled once, and a new server costs a few
tables. What a server's functions keep between calls is that server's own.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lupa import lua51

from tests.simulation.valkey.replies import CommandError, Error, Reply, Status

if TYPE_CHECKING:
    from tests.simulation.valkey.server import SimulatedValkey

_HERE = Path(__file__).parent
_VALUES_MAX: Final = 5000
"""Values that are handed to Lua one by one; beyond it they go as a table, since its stack has a limit."""
_VALUE, _ARRAY, _TABLE, _ERROR, _STATUS = range(5)


class LuaEngine:
    """The process's state of Lua. ``current``: the server whose script runs."""

    def __init__(self) -> None:
        self.lua = lua51.LuaRuntime(
            encoding=None, unpack_returned_tuples=True, register_eval=False, register_builtins=False
        )
        self.current: SimulatedValkey | None = None
        self._chunks: dict[tuple[bytes, bytes], Any] = {}
        self._table = self.lua.table_from
        fail = self._file("errors")
        cmsgpack, cjson = self._file("cmsgpack", fail, _packed_double, _unpacked_double), self._file("cjson", fail)
        parts = self._dispatch, _sha1, self._register, self._clock_s, cmsgpack, cjson
        sandbox = self._file("sandbox", *parts)
        self.new_server: Callable[..., Any] = sandbox[b"new_server"]
        self._run_script, self._run_function = sandbox[b"run_script"], sandbox[b"run_function"]
        self._load_library, self._result_table = sandbox[b"load_library"], sandbox[b"result_table"]
        self._compile = sandbox[b"compile"]

    def _file(self, name: str, *arguments: Any) -> Any:
        load = self.lua.globals()[b"loadstring"]
        chunk = load((_HERE / f"{name}.lua").read_bytes(), f"@{name}".encode())
        assert not isinstance(chunk, tuple), chunk
        return chunk(*arguments)

    def compiled(self, text: bytes, source: bytes) -> Any:
        """The function that a text is.

        Raises:
            CommandError: it is no Lua; the message is the compiler's.
        """
        chunk = self._chunks.get((text, source))
        if chunk is None:
            chunk = self._compile(text, source)
            if isinstance(chunk, tuple):
                raise CommandError(chunk[1])
            self._chunks[text, source] = chunk
        return chunk

    def run_script(self, tables: Any, text: bytes, keys: Sequence[bytes], arguments: Sequence[bytes]) -> Reply:
        try:
            chunk = self.compiled(text, b"@user_script")
        except CommandError as error:
            raise CommandError(b"ERR Error compiling script (new function): " + error.message) from None
        return self._outcome(self._run_script(tables, chunk, self._table(keys), self._table(arguments)))

    def run_function(self, function: Any, keys: Sequence[bytes], arguments: Sequence[bytes]) -> Reply:
        return self._outcome(self._run_function(function, self._table(keys), self._table(arguments)))

    def load_library(self, tables: Any, code: bytes) -> None:
        """Runs a library; it registers its functions with the current server.

        Raises:
            CommandError: it cannot be compiled or run.
        """
        try:
            chunk = self.compiled(code, b"@user_function")
        except CommandError as error:
            raise CommandError(b"ERR Error compiling function: " + error.message) from None
        found = self._load_library(tables, chunk)
        if found is not True:
            raise CommandError(b"ERR Error registering functions: " + found[1])

    def _outcome(self, found: Any) -> Reply:
        if type(found) is bool:  # it returned nothing
            return None
        worked, result, *place = found
        if worked:
            return result if type(result) is bytes else self._reply(result)
        if result is None:
            return Error(b"ERR unknown error" + _where(place))
        return Error(result + _where(place))

    def _reply(self, value: Any) -> Reply:
        if value is None or value is False:
            return None
        if value is True:
            return 1
        if isinstance(value, bytes):
            return value
        if isinstance(value, int | float):
            return max(-(2**63), int(value)) if -(2**63) <= value < 2**63 else -(2**63)
        if lua51.lua_type(value) != "table":
            return None
        kind, what = self._result_table(value)
        if kind == b"err":
            return Error(what)
        if kind == b"ok":
            return Status(what)
        return [self._reply(value[at]) for at in range(1, what + 1)]

    # What Lua calls

    def _dispatch(self, *arguments: Any) -> tuple[Any, ...]:
        server = self.current
        assert server is not None
        parts: list[bytes] = []
        for each in arguments:
            if type(each) is bytes:
                parts.append(each)
            elif type(each) is int or type(each) is float:
                parts.append(number_text(each))
            else:
                return _ERROR, b"ERR Command arguments must be strings or integers"
        try:
            reply = server.command_of_script(parts)
        except CommandError as error:
            return _ERROR, error.message
        if type(reply) is bytes or type(reply) is int:
            return _VALUE, reply
        return self._given(reply)

    def _given(self, reply: Reply) -> tuple[Any, ...]:
        if reply is None:
            return _VALUE, False
        if isinstance(reply, Status):
            return _STATUS, reply.text
        if isinstance(reply, Error):
            return _ERROR, reply.message
        if not isinstance(reply, list):
            return _VALUE, reply
        if len(reply) > _VALUES_MAX or any(isinstance(each, list | Status | Error) for each in reply):
            return _TABLE, self._nested(reply)
        return (_ARRAY, *[False if each is None else each for each in reply])

    def _nested(self, reply: Reply) -> Any:
        if reply is None:
            return False
        if isinstance(reply, list):
            return self._table([self._nested(each) for each in reply])
        if isinstance(reply, Status):
            return self._table({b"ok": reply.text})
        return self._table({b"err": reply.message}) if isinstance(reply, Error) else reply

    def _register(self, name: Any, function: Any = None) -> None:
        assert self.current is not None
        self.current.register_function(name, function)

    def _clock_s(self) -> float:
        assert self.current is not None
        return self.current.now_us / 1e6


@cache
def engine() -> LuaEngine:
    """The process's one."""
    return LuaEngine()


def _where(place: list[Any]) -> bytes:
    return b" script: on %b:%d." % (place[0], int(place[1])) if len(place) == 2 and place[0] is not None else b""


def number_text(number: float) -> bytes:
    """A number of Lua as an argument of a command: an integer where it is one, else the shortest digits (fpconv)."""
    if isinstance(number, int) and -(2**62) <= number <= 2**62:
        return b"%d" % number
    text = repr(float(number))
    mantissa, _, exponent = text.partition("e")
    mantissa = mantissa.removesuffix(".0")
    if not exponent:
        return mantissa.encode()
    power = int(exponent)
    digits = mantissa.replace(".", "").removeprefix("-")
    zeros = power - len(digits) + 1
    if power >= 0 and 0 <= zeros < 7:
        return f"{'-' * mantissa.startswith('-')}{digits}{'0' * zeros}".encode()
    return f"{mantissa}e{'+' if power > 0 else '-'}{abs(power)}".encode()


def _packed_double(number: float) -> bytes:
    try:
        short = struct.pack(">f", number)
    except OverflowError:
        return b"\xcb" + struct.pack(">d", number)
    if struct.unpack(">f", short)[0] == number:
        return b"\xca" + short
    return b"\xcb" + struct.pack(">d", number)


def _unpacked_double(packed: bytes) -> float:
    value: float = struct.unpack(">f" if len(packed) == 4 else ">d", packed)[0]
    return value


def _sha1(text: Any) -> bytes:
    packed = text if isinstance(text, bytes) else str(text).encode()
    return hashlib.sha1(packed, usedforsecurity=False).hexdigest().encode()
