"""Fields that several sections of a catalog file have."""

from __future__ import annotations

import re
from typing import Annotated, Final

from pydantic import AfterValidator, Field

from sidecar.ledger.pricing.currencies import exponent

TEXT_CHARS_MAX: Final = 255
"""Lago's columns for names and codes."""

_METRIC: Final = re.compile(r"[a-z0-9]+(?:_[a-z0-9]+)*")
_CODE: Final = re.compile(r"[A-Za-z0-9._:@+-]{1,128}")
_METRIC_CHARS_MAX: Final = 64


def _metric(text: str) -> str:
    # The code is also the slug of a meter, for which OpenMeter has this rule.
    if len(text) > _METRIC_CHARS_MAX or _METRIC.fullmatch(text) is None:
        raise ValueError("should be named like api_calls: lower-case letters, digits and single underscores")
    return text


def _code(text: str) -> str:
    # Dots alone mean another path.
    if _CODE.fullmatch(text) is None or text in (".", ".."):
        raise ValueError("should be 1 to 128 of the characters A-Z a-z 0-9 . _ : @ + -")
    return text


def _currency(text: str) -> str:
    exponent(text)
    return text


MetricCode = Annotated[str, AfterValidator(_metric)]
Code = Annotated[str, AfterValidator(_code)]
"""Of a tax, a plan, a customer, a subscription, a wallet: it stands in paths and in the ledger's keys."""

Codes = Annotated[tuple[Code, ...], Field(max_length=20)]
MetricCodes = Annotated[tuple[MetricCode, ...], Field(max_length=100)]
Currency = Annotated[str, AfterValidator(_currency)]
Text = Annotated[str, Field(min_length=1, max_length=TEXT_CHARS_MAX)]
Description = Annotated[str, Field(max_length=600)]
