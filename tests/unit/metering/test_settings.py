"""Configuration of metering."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from sidecar.metering.settings import MeteringSettings

SECRET = "om_5tr1ctly-private"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"url": "openmeter.example"}, "must be an http or https URL with a host"),
        ({"url": "ftp://openmeter.example"}, "must be an http or https URL with a host"),
        ({"url": "http://"}, "must be an http or https URL with a host"),
        ({"url": "http://host:0"}, "must be an http or https URL with a host"),
        ({"url": "http://host:99999"}, "not a URL"),
        ({"url": f"https://user:{SECRET}@openmeter.example"}, "must have neither user nor password"),
        ({"url": "https://openmeter.example/?a=1"}, "must have neither query nor fragment"),
        ({"token": ""}, "printable ASCII characters without spaces"),
        ({"token": SECRET + "\r\nX-Evil: 1"}, "printable ASCII characters without spaces"),
        ({"token": SECRET, "token_file": "/run/token"}, "only one of token and token_file"),
        ({"source": ""}, "at least 1 character"),
        ({"source": "eu1 gateway: prod"}, "URI reference as OpenMeter reads it (url.Parse of Go): first path segment"),
        ({"source": "100% bank"}, 'invalid URL escape "% b"'),
        ({"source": "https://bank.example:eu1"}, 'invalid port ":eu1" after host'),
        ({"source": "bank\n"}, "invalid control character in URL"),
        ({"type": ""}, "at least 1 character"),
        ({"batch_events_max": 0}, "greater than or equal to 1"),
        ({"batch_bytes_max": 2_000_000}, "less than or equal to 1048576"),
        ({"backoff_ms_min": 500, "backoff_ms_max": 400}, "backoff_ms_max is less than backoff_ms_min"),
        ({"linger": 5}, "Extra inputs are not permitted"),
    ],
)
def test_a_bad_value_is_refused_with_a_message_that_holds_no_secret(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        MeteringSettings.model_validate(values)
    messages = [error["msg"] for error in caught.value.errors()]
    assert any(message in text for text in messages)
    assert not any(SECRET in text for text in messages)


@pytest.mark.parametrize("source", ["open-banking-api", "eu1 gateway", "//bank.example/eu1", "urn:bank:eu1"])
def test_a_source_is_any_uri_reference_and_stays_as_it_is(source: str) -> None:
    assert MeteringSettings.model_validate({"source": source}).source == source


def test_the_token_does_not_show() -> None:
    settings = MeteringSettings.model_validate({"url": "https://openmeter.example/", "token": SECRET})
    assert SECRET not in repr(settings)
    assert settings.url == "https://openmeter.example"


def test_every_setting_is_described() -> None:
    assert [name for name, field in MeteringSettings.model_fields.items() if not field.description] == []
