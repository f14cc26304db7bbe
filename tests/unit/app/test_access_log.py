"""Lines of the access log: a level, a time, and the format that the rest of the log has."""

from __future__ import annotations

import io
import json
import logging

import pytest
import structlog

from sidecar.app import logs
from sidecar.app.logs import AccessLog


async def written(style: str, *lines: dict[str, object]) -> list[str]:
    """What is on standard error once these lines were logged."""
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="utf-8")  # closes what it wraps when nobody has it any more
    log = AccessLog(style, stream)
    for line in lines:
        log(json.dumps(line, separators=(",", ":")).encode())
    log.flush()
    return raw.getvalue().decode().splitlines()


@pytest.mark.parametrize(
    ("status", "level"),
    [(200, "info"), (302, "info"), (402, "warning"), (500, "error"), (503, "error")],
)
async def test_a_line_has_the_level_of_its_status(status: int, level: str) -> None:
    (line,) = await written("json", {"event": "request", "path": "/a", "status": status})
    found = json.loads(line)
    assert (found["level"], found["status"], found["event"]) == (level, status, "request")
    assert found["timestamp"].endswith("Z")


def test_a_line_of_a_library_has_the_format_of_all_others() -> None:
    stream = io.StringIO()
    before = logging.root.handlers[:]
    logging.root.handlers.clear()
    try:
        logs.configure("info", "json", stream)
        logging.getLogger("asyncio").error("Task was %s", "destroyed")
    finally:
        logging.root.handlers[:] = before
        structlog.reset_defaults()
    line = stream.getvalue()
    assert list(json.loads(line)) == ["timestamp", "level", "event", "logger"]
    assert line.endswith('"level":"error","event":"Task was destroyed","logger":"asyncio"}\n')


async def test_a_caller_cannot_choose_the_level() -> None:
    (line,) = await written("json", {"event": "request", "path": '/"status":500', "status": 200})
    assert json.loads(line)["level"] == "info"


async def test_a_line_without_a_status_is_information() -> None:
    (line,) = await written("json", {"event": "refused"})
    assert json.loads(line)["level"] == "info"


async def test_for_people_a_line_looks_like_every_other_line() -> None:
    first, second = await written(
        "console",
        {"event": "request", "method": "GET", "path": "/a b", "status": 200, "account": None},
        {"event": "refused", "status": 400, "reason": "the head is no head"},
    )
    assert "[info     ] request" in first
    assert "method=GET" in first
    assert "status=200" in first
    assert "account" not in first, "what is not known needs no room on a screen"
    assert "[warning  ] refused" in second
    assert "reason='the head is no head'" in second
    for line in (first, second):
        assert "{" not in line
        assert line.index("Z") < line.index("[")


async def test_text_from_a_client_cannot_begin_a_line_of_its_own() -> None:
    lines = await written("console", {"event": "request", "path": "/a\nb\x1b[31m", "status": 200})
    assert len(lines) == 1
    assert "\x1b" not in lines[0]
