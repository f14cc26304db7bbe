"""What a server's error replies mean for a batch: one table for all of them.

All that is sent are scripts that read before they write, so after an error nothing has changed (lua/batch.lua). The
question is only who can do it, and when. The caller of a hold is told nothing before its budget ends (then:
unavailable, 503), but where repeating cannot help.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import Final


class Meaning(Enum):
    """What to do with the batch. It keeps its number in every case."""

    ELSEWHERE = "elsewhere"
    """Another server has the partition: connect anew, send again."""
    ASK = "ask"
    """This one batch goes to the server that the reply names; the partition stays where it is for now."""
    LATER = "later"
    """Send again after a pause."""
    NOT_LOADED = "not loaded"
    """The server lacks the function: load it, send again."""
    REGISTER = "register"
    """The partition is not the one that the instance registered in: register anew, send again."""
    ACCOUNT = "account"
    """One account is at fault: send again without it. Its holds are unavailable at once, its settles are refused."""
    LOST = "lost"
    """The server does not know batches that it has confirmed: its data went back. ``number`` is the last it knows."""
    DONE = "done"
    """The server has done it, and later ones, up to ``number``: it has what another server had lost. The reply is
    gone."""
    REFUSED = "refused"
    """Repeating cannot help: its accounts are tried one by one, and who fails alone is treated as with ACCOUNT."""


@dataclass(frozen=True, slots=True)
class ServerAnswer:
    """``word``: the reply's first word, for the counter. ``account``: from 1, for ACCOUNT. ``number``: for LOST
    and DONE. ``reason``: for the log."""

    meaning: Meaning
    word: str
    reason: str
    account: int = 0
    number: int = 0


_MEANINGS: Final = {
    # Cluster specification, "Redirection and resharding"
    "MOVED": Meaning.ELSEWHERE,
    "ASK": Meaning.ASK,
    "TRYAGAIN": Meaning.LATER,  # some keys of a slot that moves are there, some here
    "CLUSTERDOWN": Meaning.LATER,
    # a replica, or a primary that became one
    "READONLY": Meaning.ELSEWHERE,
    "MASTERDOWN": Meaning.LATER,
    "UNBLOCKED": Meaning.LATER,
    # a server that starts, is full, or must not write now
    "LOADING": Meaning.LATER,
    "OOM": Meaning.LATER,
    "NOREPLICAS": Meaning.LATER,
    "MISCONF": Meaning.LATER,  # the disk
    "BUSY": Meaning.LATER,  # another script
    # access that an operator may be about to give
    "NOAUTH": Meaning.ELSEWHERE,
    "NOPERM": Meaning.LATER,
    # the scripts' own
    "FORMAT": Meaning.REGISTER,
    "ACCOUNT": Meaning.ACCOUNT,
    "LIMIT": Meaning.REFUSED,
    "BATCH": Meaning.REFUSED,
    "WRONGTYPE": Meaning.REFUSED,  # a key of the partition itself
    "NOSCRIPT": Meaning.NOT_LOADED,
}
_ACCOUNT = re.compile(r"ACCOUNT ([1-9][0-9]{0,5}) (.*)", re.DOTALL)
_STALE = re.compile(r"STALE .* the last one was ([0-9]{1,16})", re.DOTALL)
_WORD = re.compile(r"[A-Z]{2,20}")
_NOT_LOADED: Final = "ERR Function not found"
REASON_LENGTH_MAX: Final = 300


def server_answer(message: str) -> ServerAnswer:
    """Reads an error reply. One that is not in the table is REFUSED: it may name anything, but nothing was done."""
    reason = message[:REASON_LENGTH_MAX]
    if message.startswith(_NOT_LOADED):
        return ServerAnswer(Meaning.NOT_LOADED, "NOSCRIPT", reason)
    found = _WORD.match(message)
    word = found[0] if found else "ERR"
    if word == "ACCOUNT":
        of_account = _ACCOUNT.match(message)
        if of_account is None:
            return ServerAnswer(Meaning.REFUSED, word, reason)
        return ServerAnswer(Meaning.ACCOUNT, word, of_account[2][:REASON_LENGTH_MAX], int(of_account[1]))
    if word == "LOST":
        number = message[len("LOST ") :]
        if not number.isdecimal():
            return ServerAnswer(Meaning.REFUSED, word, reason)
        return ServerAnswer(Meaning.LOST, word, reason, number=int(number))
    if word == "STALE" and (done := _STALE.fullmatch(message)):
        return ServerAnswer(Meaning.DONE, word, reason, number=int(done[1]))
    meaning = _MEANINGS.get(word)
    return ServerAnswer(meaning or Meaning.REFUSED, word if meaning else "ERR", reason)


def asked_server(message: str) -> tuple[str, int] | None:
    """Host and port that an ASK names; the host is empty if it is the same one. None if it cannot be read."""
    parts = message.split()
    host, colon, port = parts[2].rpartition(":") if len(parts) > 2 else ("", "", "")
    return (host, int(port)) if colon and port.isdecimal() and int(port) < 65_536 else None
