"""The help of each command, as terminals of usual widths show it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from sidecar.cli import build

WIDTHS = (80, 120)


def commands(group: Any = None, names: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Words of every command and group."""
    group = group or typer.main.get_command(build([]))
    yield names
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, (*names, name))


COMMANDS = list(commands())


@cache
def helped(names: tuple[str, ...], width: int) -> list[str]:
    shown = CliRunner().invoke(build(names), [*names, "--help"], env={"COLUMNS": str(width)})
    assert shown.exit_code == 0, shown.output
    return [line.rstrip() for line in shown.output.splitlines()]


def about(names: tuple[str, ...], width: int) -> list[list[str]]:
    """Paragraphs between the usage and the first table."""
    paragraphs: list[list[str]] = [[]]
    for line in helped(names, width):
        if line.startswith("╭"):
            break
        if line.strip():
            paragraphs[-1].append(line.strip())
        elif paragraphs[-1]:
            paragraphs.append([])
    return [each for each in paragraphs if each][1:]


@pytest.mark.parametrize("names", COMMANDS, ids=" ".join)
def test_a_paragraph_is_broken_where_the_line_is_full_and_nowhere_else(names: tuple[str, ...]) -> None:
    for width in WIDTHS:
        for paragraph in about(names, width):
            for line, following in pairwise(paragraph):
                assert len(line) + 1 + len(following.split()[0]) > width - 3, (width, line, following)


@pytest.mark.parametrize("names", COMMANDS, ids=" ".join)
def test_the_help_fits_the_terminal_and_cuts_nothing_off(names: tuple[str, ...]) -> None:
    for width in WIDTHS:
        for line in helped(names, width):
            assert len(line) <= width
            assert not [word for word in line.split() if word.endswith("…") and word != "SIDECAR_…"], line
            assert not re.search(r"<(int|float) range|<list\[|\[\d+<=x", line), line


@pytest.mark.parametrize("names", [names for names in COMMANDS if len(names)], ids=" ".join)
def test_a_command_says_what_it_does_in_a_sentence(names: tuple[str, ...]) -> None:
    (first, *_) = about(names, 400)
    text = " ".join(first)
    assert text[0].isupper()
    assert text.endswith(".")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["demo", "--proxy-port", "65536"], "65536 is not between 0 and 65535."),
        (["account", "list", "--limit", "0"], "0 is not between 1 and 10000."),
        (["drain", "--timeout", "-1"], "-1.0 is not 0 or more."),
        (["drain", "--timeout", "nan"], "nan is not 0 or more."),
    ],
)
def test_a_number_out_of_range_is_refused_with_the_range(words: list[str], message: str) -> None:
    shown = CliRunner().invoke(build(words), words, env={"COLUMNS": "120"})
    assert shown.exit_code == 2
    assert message in " ".join(shown.output.split())
