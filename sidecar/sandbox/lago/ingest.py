"""``/events`` of the Lago stand-in. Source: lago-api ``app/services/events/`` with the Postgres event store."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from sidecar.sandbox.lago.clock import unix_us
from sidecar.sandbox.lago.fields import decimal_of, parse_instant
from sidecar.sandbox.lago.lago_events import is_usable
from sidecar.sandbox.lago.lago_store import Store, newest_first
from sidecar.sandbox.lago.lago_wire import Call, Json, bad_request, invalid, not_found, page
from sidecar.sandbox.lago.records import Event, Subscription
from sidecar.sandbox.lago.views import event_view

TEXT_CHARS_MAX = 256
PROPERTIES_MAX = 100
EVENTS_MAX = 5_000_000
#: The year 9999; later timestamps are no valid times.
TIMESTAMP_MAX = Decimal(253_402_300_800)
Errors = dict[str, list[str]]


class EventsApi:
    """Unknown codes and subscriptions are accepted, here as in Lago; ``events.errors`` tells of them each hour."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._unchecked: list[Event] = []

    def create(self, call: Call) -> Json:
        event = self._read(call.root("event"))
        if not isinstance(event, Event):
            raise invalid(event)
        if self._store.events.knows(event.external_subscription_id, event.transaction_id):
            raise invalid({"transaction_id": ["value_already_exist"]})
        view = event_view(event)
        self._keep([event])
        return {"event": view}

    def create_batch(self, call: Call) -> Json:
        """All or nothing. ``error_details`` are by index; ids of one batch must differ even across subscriptions."""
        given = call.body.get("events") if isinstance(call.body, dict) else None
        if given is not None and not isinstance(given, list):
            raise bad_request("events must be an array")
        if not given:
            raise invalid({"events": ["no_events"]})
        if len(given) > self._store.config.events_batch_max:
            raise invalid({"events": ["too_many_events"]})
        events, errors = self._read_all(given)
        if errors:
            raise invalid(errors)
        seen: set[str] = set()
        for index, event in enumerate(events):
            known = self._store.events.knows(event.external_subscription_id, event.transaction_id)
            if known or event.transaction_id in seen:
                errors[str(index)] = {"transaction_id": ["value_already_exist"]}
            seen.add(event.transaction_id)
        if errors:
            raise invalid(errors)
        views = [event_view(event) for event in events]
        self._keep(events)
        return {"events": views}

    def _read_all(self, given: Sequence[object]) -> tuple[list[Event], dict[str, Errors]]:
        events, errors = [], {}
        for index, item in enumerate(given):
            event = self._read(item) if isinstance(item, dict) else {"event": ["value_is_invalid"]}
            if isinstance(event, Event):
                events.append(event)
            else:
                errors[str(index)] = event
        return events, errors

    def _read(self, given: Json) -> Event | Errors:
        errors: Errors = {}
        texts: dict[str, str] = {}
        for name, is_needed in (("transaction_id", True), ("code", True), ("external_subscription_id", False)):
            value = given.get(name)
            text = str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""
            if is_needed and not text.strip():
                errors[name] = ["value_is_mandatory"]
            elif len(text) > TEXT_CHARS_MAX:
                errors[name] = ["value_is_too_long"]
            texts[name] = text
        at_us = self._timestamp_us(given.get("timestamp"))
        if at_us is None:
            errors["timestamp"] = ["invalid_format"]
        properties = given.get("properties") or {}
        if not isinstance(properties, dict) or len(properties) > PROPERTIES_MAX:
            errors["properties"] = ["value_is_invalid"]
            properties = {}
        precise = given.get("precise_total_amount_cents")
        if precise is not None and decimal_of(precise) is None:
            errors["precise_total_amount_cents"] = ["value_is_invalid"]
        if errors or at_us is None:
            return errors
        precise_text = None if precise is None else str(precise)
        return Event(
            **self._store.new(),
            transaction_id=texts["transaction_id"],
            external_subscription_id=texts["external_subscription_id"],
            code=texts["code"],
            at_us=at_us,
            properties=properties,
            precise_cents=precise_text,
        )

    def _timestamp_us(self, given: object) -> int | None:
        """Unix seconds, decimals allowed; now if there are none. ISO 8601 is refused."""
        if given is None:
            return unix_us(self._store.now())
        seconds = decimal_of(given)
        if seconds is None or not 0 <= seconds < TIMESTAMP_MAX:
            return None
        return int(seconds * 1_000_000)

    def _keep(self, events: Sequence[Event]) -> None:
        if len(self._store.events) + len(events) > EVENTS_MAX:
            raise invalid({"events": ["stand_in_is_full"]})
        for event in events:
            self._store.events.add(event)
        self._unchecked += events
        self._store.later(lambda: self._assign(events))

    def _assign(self, events: Sequence[Event]) -> None:
        """What Lago does afterwards: finds the subscription, marks wallets and drafts as out of date."""
        touched: dict[str, Subscription] = {}
        for event in events:
            event.subscription = self._subscription_of(event)
            if event.subscription is not None:
                event.subscription.customer.awaits_refresh = True
                touched[event.subscription.id] = event.subscription
        for invoice in self._store.invoices.values():
            if invoice.status == "draft" and any(period.subscription.id in touched for period in invoice.periods):
                invoice.needs_refresh = True

    def _subscription_of(self, event: Event) -> Subscription | None:
        """The one that was active then, the newest if several were."""
        for item in reversed(self._store.subscriptions_of(event.external_subscription_id)):
            began = item.started_at is not None and unix_us(item.started_at) <= event.at_us
            ended = item.terminated_at is not None and unix_us(item.terminated_at) < event.at_us
            if began and not ended:
                return item
        return None

    def report_errors(self) -> None:
        """The hourly webhook ``events.errors`` about events that no metric can use."""
        checked, self._unchecked = self._unchecked, []
        unknown, missing = [], []
        for event in checked:
            metric = self._store.metrics.get(event.code)
            if metric is None:
                unknown.append(event.transaction_id)
            elif not is_usable(metric, event):
                missing.append(event.transaction_id)
        if unknown or missing:
            found: Json = {
                "invalid_code": unknown,
                "missing_aggregation_property": missing,
                "missing_group_key": [],
                "invalid_filter_values": [],
            }
            self._store.emit("events.errors", "events_errors", lambda: found)

    def get(self, call: Call) -> Json:
        found = self._store.events.find(call.path["transaction_id"])
        if found is None:
            raise not_found("event")
        return {"event": event_view(found)}

    def list(self, call: Call) -> Json:
        found: Sequence[Event] = self._store.events.all
        subscription, code = call.one("external_subscription_id"), call.one("code")
        if subscription is not None:
            found = [item for item in found if item.external_subscription_id == subscription]
        if code is not None:
            found = [item for item in found if item.code == code]
        for name, is_first in (("timestamp_from", True), ("timestamp_to", False)):
            text = call.one(name)
            if text is None:
                continue
            bound = parse_instant(text)
            if bound is None:
                raise invalid({name: ["invalid_date"]})
            limit = unix_us(bound)
            found = [item for item in found if (item.at_us >= limit if is_first else item.at_us <= limit)]
        return page(call, "events", newest_first(found), event_view)
