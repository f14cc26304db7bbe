"""The reader of documentation blocks reads what it should, and its comparison can fail."""

from __future__ import annotations

import pytest

from tests.docs.blocks import WHERE, blocks, matches, pages

EVERY = [block for page in pages() for block in blocks(page)]


@pytest.mark.parametrize(
    ("shown", "printed"),
    [
        ("HTTP/1.1 200 OK\n…\nX-Credits-Charged: 0.10\n", "HTTP/1.1 200 OK\r\nDate: x\r\nX-Credits-Charged: 0.10\r\n"),
        ("a … c\n", "a b c\n"),
        ("two\n", "one\ntwo\nthree\n"),
        ("…\n", ""),
    ],
)
def test_what_varies_may_be_left_out(shown: str, printed: str) -> None:
    assert matches(shown, printed)


@pytest.mark.parametrize(
    ("shown", "printed"),
    [
        ("X-Credits-Charged: 0.10\n", "X-Credits-Charged: 0.101\n"),
        ("one\nthree\n", "one\ntwo\nthree\n"),
        ("a … c\n", "a b\nc\n"),
        ("anything\n", ""),
    ],
)
def test_what_does_not_vary_may_not(shown: str, printed: str) -> None:
    assert not matches(shown, printed)


def test_every_block_of_a_shell_says_where_it_runs_in_a_word_that_is_known() -> None:
    shell = [block for block in EVERY if block.language == "sh"]
    assert shell
    assert not [str(block) for block in shell if block.where not in WHERE]


def test_no_block_escapes_by_having_no_language_or_another_shell_s() -> None:
    known = {"sh", "text", "yaml", "json", "mermaid", "python", "lua", "nginx", "http", "conf"}
    assert not [f"{block} ({block.language or 'none'})" for block in EVERY if block.language not in known]


def test_what_a_program_prints_stands_after_what_was_run() -> None:
    assert any(block.shown for block in EVERY)
    orphans = [str(block) for block in EVERY if block.language == "text" and block.page == "README.md"]
    assert not orphans
