"""Reads the reload requests out of a verified webhook. No I/O.

Envelope: ``{"webhook_type", "object_type", "organization_id", "<object_type>": {…}}`` (lago-api
``app/services/webhooks/base_service.rb``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

import orjson

from sidecar.billing.reconcile.reload_requests import SWEEP
from sidecar.billing.webhooks.event_types import ANY, EVENT_TYPES, OTHER, Action, NamePath, ObjectKind
from sidecar.identity.account_id import is_account_id

TYPE_CHARS_MAX: Final = 128
NAME_BYTES_MAX: Final = 256
NOTES_MAX: Final = 16
SAMPLE_MAX: Final = 3


class EnvelopeError(ValueError):
    """The body is not the envelope of a webhook. The message says what is wrong, for whoever signed it."""


@dataclass(frozen=True, slots=True)
class Webhook:
    """``label`` is the type, or ``other`` for one that is not in the table. ``object`` is None where the envelope has
    none under ``object_type``."""

    type: str
    label: str
    object: Mapping[str, Any] | None


class WebhookResult(Enum):
    """``RELOAD``: ``reloads`` are to be requested. ``FOREIGN``: it names a customer whose id no caller of the gateway
    can have. ``MALFORMED``: it should name somebody and does not."""

    RELOAD = "reload"
    NOTE = "note"
    IGNORE = "ignore"
    FOREIGN = "foreign"
    MALFORMED = "malformed"


@dataclass(frozen=True, slots=True)
class WebhookDecision:
    """The decision on a webhook. ``notes`` are for the log: Lago's complaints, how often, and a few examples."""

    result: WebhookResult
    reloads: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def parse(body: bytes) -> Webhook:
    """Raises ``EnvelopeError``."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise EnvelopeError("The body is not JSON.") from None
    if not isinstance(document, dict):
        raise EnvelopeError("The body is not a JSON object.")
    type_ = document.get("webhook_type")
    if not isinstance(type_, str) or not 0 < len(type_) <= TYPE_CHARS_MAX:
        raise EnvelopeError(f"webhook_type: should be text of 1 to {TYPE_CHARS_MAX} characters.")
    object_type = document.get("object_type")
    if not isinstance(object_type, str) or not object_type:
        raise EnvelopeError("object_type: should be the name of the member with the object.")
    content = document.get(object_type)
    return Webhook(type_, type_ if type_ in EVENT_TYPES else OTHER, content if isinstance(content, dict) else None)


def decide(webhook: Webhook) -> WebhookDecision:
    """Decide what to do about a webhook."""
    known = EVENT_TYPES.get(webhook.type)
    rule = known or ANY
    match rule.action:
        case Action.IGNORE:
            return WebhookDecision(WebhookResult.IGNORE)
        case Action.SWEEP:
            return WebhookDecision(WebhookResult.RELOAD, (SWEEP,))
        case Action.NOTE:
            return WebhookDecision(WebhookResult.NOTE, notes=_notes(webhook.object or {}))
        case Action.RELOAD:
            found = _find(webhook.object or {}, rule.name_paths)
            is_other = known is None and found.result is not WebhookResult.RELOAD
            return WebhookDecision(WebhookResult.IGNORE) if is_other else found


def _find(content: Mapping[str, Any], name_paths: tuple[NamePath, ...]) -> WebhookDecision:
    for name_path in name_paths:
        value = _at(content, name_path.path)
        if not isinstance(value, str) or not _is_name(value):
            continue
        if name_path.kind is ObjectKind.ACCOUNT and not is_account_id(value):
            return WebhookDecision(WebhookResult.FOREIGN)
        return WebhookDecision(WebhookResult.RELOAD, (f"{name_path.kind.value}:{value}",))
    return WebhookDecision(WebhookResult.MALFORMED)


def _at(content: Mapping[str, Any], path: tuple[str, ...]) -> object:
    value: object = content
    for step in path:
        if isinstance(value, list) and value:
            value = value[0]  # what one webhook lists is one customer's
        value = value.get(step) if isinstance(value, dict) else None
    return value


def _is_name(text: str) -> bool:
    return bool(text) and len(text.encode()) <= NAME_BYTES_MAX and text.isprintable()


def _notes(content: Mapping[str, Any]) -> tuple[str, ...]:
    """``events.errors`` holds lists of transaction ids by what is wrong with them, ``event.error`` names one error."""
    notes = []
    for name, value in list(content.items())[:NOTES_MAX]:
        if isinstance(value, list) and value:
            sample = ", ".join(str(each)[:64] for each in value[:SAMPLE_MAX])
            notes.append(f"{name[:64]}: {len(value)} ({sample}{', …' if len(value) > SAMPLE_MAX else ''})")
        elif isinstance(value, str) and value:
            notes.append(f"{name[:64]}: {value[:128]}")
    return tuple(notes)
