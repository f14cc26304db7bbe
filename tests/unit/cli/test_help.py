"""The help of each command, as terminals of usual widths show it."""

from __future__ import annotations

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
            # At 80 columns the longest option of all is cut off.
            assert width < 120 or not [word for word in line.split() if word.endswith("…") and word != "SIDECAR_…"], (
                line
            )


@pytest.mark.parametrize("names", [names for names in COMMANDS if len(names)], ids=" ".join)
def test_a_command_says_what_it_does_in_a_sentence(names: tuple[str, ...]) -> None:
    (first, *_) = about(names, 400)
    text = " ".join(first)
    assert text[0].isupper()
    assert text.endswith(".")
