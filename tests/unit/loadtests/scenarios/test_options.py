"""What may be said on the command line, and what is misuse."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtests.scenarios.adopting import calls_left, problem_of
from loadtests.scenarios.options import Options, parse, parser
from loadtests.scenarios.result_counter import End, Reply
from loadtests.scenarios.target import CannotRun, Secret
from loadtests.scenarios.web import place

NAMES = ("steady", "herd")
URL = ("--url", "http://127.0.0.1:8080")


def options(*words: str) -> Options:
    return parse(parser(NAMES).parse_args(words), NAMES)


def test_a_name_alone_is_enough() -> None:
    assert options("herd") == Options("herd")


def test_keys_are_read_from_a_file_with_and_without_their_accounts(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# two accounts\ntpp-1 key-1\n\nkey-2\n")
    assert options("herd", *URL, "--keys", str(file)).keys == (("tpp-1", Secret("key-1")), ("", Secret("key-2")))


def test_accounts_go_with_keys_in_their_order() -> None:
    given = options("herd", *URL, "--key", "a", "--key", "b", "--account", "tpp-a", "--account", "tpp-b")
    assert given.keys == (("tpp-a", Secret("a")), ("tpp-b", Secret("b")))


def test_no_secret_is_shown_by_the_options() -> None:
    given = options("herd", *URL, "--key", "secret-1", "--valkey", "valkey://user:secret-2@host:6379")
    assert "secret" not in repr(given)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("hurd",), "there is no scenario 'hurd'; there are steady, herd"),
        (("herd", "--users", "0"), "'0' is not a number from 1"),
        (("herd", "--users", "1.5"), "is not a whole number"),
        (("herd", "--seconds", "soon"), "'soon' is not a number"),
        (("herd", "--nonsense"), "unrecognized arguments"),
        (("herd", *URL), "--url needs --key"),
        (("herd", "--admin", "http://x"), "--admin goes with --url"),
        (("herd", "--url", "127.0.0.1:8080", "--key", "a"), "is not http://HOST:PORT"),
        (("herd", "--url", "http://user:pass@host", "--key", "a"), "only scheme, host and port"),
        (("herd", "--url", "http://host/path", "--key", "a"), "only scheme, host and port"),
        (("herd", *URL, "--key", "a", "--key", "b", "--account", "c"), "as often as --key"),
        (("herd", *URL, "--keys", "/nowhere/keys"), "No such file"),
    ],
)
def test_misuse_is_one_line_that_names_it(words: tuple[str, ...], says: str) -> None:
    with pytest.raises(CannotRun, match=r".") as caught:
        options(*words)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "left"),
    [('"credit";r=9', 9), ('"rate";r=5;t=0, "credit";r=120', 120), ('"rate";r=5', None), ("", None)],
)
def test_calls_left_are_those_of_the_credit(field: str, left: int | None) -> None:
    assert calls_left(field) == left


def test_a_first_answer_that_is_not_charged_is_a_reason_not_to_begin() -> None:
    charged = {"x-credits-charged": "0.10"}
    assert problem_of(Reply(End.ANSWERED, 200, charged)) == ""
    assert "not known" in problem_of(Reply(End.ANSWERED, 401))
    assert "no credit left" in problem_of(Reply(End.ANSWERED, 402))
    assert "not say that it was charged" in problem_of(Reply(End.ANSWERED, 200, {}))
    assert problem_of(Reply(End.REFUSED, why="No route")) == "cannot be reached: No route"


def test_a_url_is_shown_without_its_password() -> None:
    assert place("valkeys://user:secret@host:6379/0?x=secret") == "valkeys://host:6379"
