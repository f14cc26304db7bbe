"""The access log of a running gateway."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import redis

from tests.support.processes import running

JSON_LINE = re.compile(
    r'\{"timestamp":"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z","level":"[a-z]+","event":"[^"]+"[,}]'
)


@pytest.mark.parametrize("style", ["json", "console"])
def test_lines_about_requests_have_the_format_of_all_others(style: str, valkey: redis.Redis, tmp_path: Path) -> None:
    options = valkey.get_connection_kwargs()
    file = tmp_path / "gateway.yaml"
    document = {
        "listen": {"host": "127.0.0.1", "port": 0},
        "upstream": {"url": "http://127.0.0.1:9"},
        "valkey": f"valkey://{options['host']}:{options['port']}",
        "admin": {"port": 0},
        "log": {"format": style, "access": "all"},
    }
    file.write_text(json.dumps(document))
    with running("run", "-c", str(file), "--json") as gateway:
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(gateway.ready["proxy"] + "/accounts")
        assert gateway.stop() == 0
    lines = b"".join(gateway.errors).decode().splitlines()
    assert len(lines) >= 3, "serving, the request, stopped"
    if style == "json":
        documents = [json.loads(line) for line in lines]
        assert [line for line in lines if not JSON_LINE.match(line)] == []
        (request,) = [each for each in documents if each["event"] == "request"]
        assert (request["status"], request["level"]) == (401, "warning")
    else:
        assert not [line for line in lines if line.startswith("{")]
        (request_line,) = [line for line in lines if "] request" in line]
        assert "[warning" in request_line
        assert "status=401" in request_line
