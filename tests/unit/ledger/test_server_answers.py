"""What a server's error replies mean for a batch."""

from __future__ import annotations

import pytest

from sidecar.ledger.client.server_answers import REASON_LENGTH_MAX, Meaning, asked_server, server_answer


@pytest.mark.parametrize(
    ("message", "meaning"),
    [
        ("MOVED 3999 127.0.0.1:6381", Meaning.ELSEWHERE),
        ("READONLY You can't write against a read only replica.", Meaning.ELSEWHERE),
        ("NOAUTH Authentication required.", Meaning.ELSEWHERE),
        ("ASK 3999 127.0.0.1:6381", Meaning.ASK),
        ("TRYAGAIN Multiple keys request during rehashing of slot", Meaning.LATER),
        ("CLUSTERDOWN The cluster is down", Meaning.LATER),
        ("LOADING Valkey is loading the dataset in memory", Meaning.LATER),
        ("MASTERDOWN Link with MASTER is down", Meaning.LATER),
        ("NOREPLICAS Not enough good replicas to write.", Meaning.LATER),
        ("OOM command not allowed when used memory > 'maxmemory'.", Meaning.LATER),
        ("MISCONF Errors writing to the AOF file", Meaning.LATER),
        ("BUSY Valkey is busy running a script.", Meaning.LATER),
        ("NOPERM User x has no permissions to run the 'fcall' command", Meaning.LATER),
        ("ERR Function not found", Meaning.NOT_LOADED),
        ("NOSCRIPT No matching script.", Meaning.NOT_LOADED),
        ("FORMAT 3, this release has 2", Meaning.REGISTER),
        ("STALE batch 3 of gw.00, the last one was 5", Meaning.DONE),
        ("STALE batch 3 of gw.00", Meaning.REFUSED),
        ("LIMIT a batch of 3001 groups", Meaning.REFUSED),
        ("BATCH user_function:3: attempt to index a nil value", Meaning.REFUSED),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", Meaning.REFUSED),
        ("ERR whatever a later server says", Meaning.REFUSED),
        ("WHATEVER it says", Meaning.REFUSED),
        ("", Meaning.REFUSED),
    ],
)
def test_every_word_of_a_server_has_a_meaning(message: str, meaning: Meaning) -> None:
    assert server_answer(message).meaning is meaning


def test_an_account_is_named_by_its_number_with_the_reason() -> None:
    answer = server_answer("ACCOUNT 12 a state of 3 values")
    assert (answer.meaning, answer.account, answer.reason) == (Meaning.ACCOUNT, 12, "a state of 3 values")


@pytest.mark.parametrize("message", ["ACCOUNT", "ACCOUNT x", "ACCOUNT 0 nobody", "ACCOUNT 1"])
def test_an_account_without_a_number_is_nobodys_fault(message: str) -> None:
    assert server_answer(message).meaning is Meaning.REFUSED


def test_words_that_a_server_invents_are_counted_as_one() -> None:
    assert {server_answer(f"{word} x").word for word in ("ABC", "DEF", "lower", "X" * 99)} == {"ERR"}


def test_a_reason_has_a_limit() -> None:
    assert len(server_answer("ERR " + "x" * 10_000).reason) == REASON_LENGTH_MAX


@pytest.mark.parametrize(
    ("message", "server"),
    [
        ("ASK 3999 127.0.0.1:6381", ("127.0.0.1", 6381)),
        ("ASK 3999 ::1:6381", ("::1", 6381)),
        ("ASK 3999 :6381", ("", 6381)),
        ("ASK 3999 host", None),
        ("ASK 3999 host:99999", None),
        ("ASK", None),
    ],
)
def test_the_server_that_is_to_be_asked(message: str, server: tuple[str, int] | None) -> None:
    assert asked_server(message) == server
