"""``/billable_metrics`` of the Lago stand-in. Source: lago-api ``app/models/billable_metric.rb``."""

from __future__ import annotations

from sidecar.sandbox.lago.fields import Fields
from sidecar.sandbox.lago.lago_events import AGGREGATIONS
from sidecar.sandbox.lago.lago_store import Store, newest_first
from sidecar.sandbox.lago.lago_wire import Call, Json, not_found, page
from sidecar.sandbox.lago.records import Metric
from sidecar.sandbox.lago.views import metric_view

ROUNDING_PLACES_MAX = 15


class MetricsApi:
    """``weighted_sum_agg`` and ``custom_agg`` are refused; expressions are kept and not evaluated."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def create(self, call: Call) -> Json:
        fields = Fields(call.root("billable_metric"))
        code = fields.required("code")
        if code in self._store.metrics:
            fields.error("code", "value_already_exist")
        metric = Metric(**self._store.new(), code=code, name=fields.required("name"), aggregation="count_agg")
        self._assign(metric, fields)
        self._store.metrics[code] = metric
        self._store.emit("billable_metric.created", "billable_metric", lambda: metric_view(metric, counts=False))
        return {"billable_metric": metric_view(metric)}

    def update(self, call: Call) -> Json:
        """One that a plan uses changes its name and description only; the rest is dropped without a word."""
        metric, fields = self._find(call), Fields(call.root("billable_metric"))
        metric.name = fields.text("name") or metric.name
        metric.description = fields.text("description", metric.description)
        if "filters" in fields:
            metric.filters = _filters(fields)
        if not any(charge.metric is metric for plan in self._store.plans.values() for charge in plan.charges):
            code = fields.text("code") or metric.code
            if code != metric.code and code in self._store.metrics:
                fields.error("code", "value_already_exist")
            self._assign(metric, fields)
            del self._store.metrics[metric.code]
            metric.code = code
            self._store.metrics[code] = metric
        fields.check()
        self._store.emit("billable_metric.updated", "billable_metric", lambda: metric_view(metric, counts=False))
        return {"billable_metric": metric_view(metric)}

    def _assign(self, metric: Metric, fields: Fields) -> None:
        """Sets the rest. ``count_agg`` has no field: one that is given is dropped without a word."""
        aggregation = fields.choice(
            "aggregation_type", AGGREGATIONS, None if metric.code not in self._store.metrics else metric.aggregation
        )
        field_name = fields.text("field_name", metric.field_name)
        recurring = fields.boolean("recurring", metric.recurring)
        if aggregation == "count_agg":
            field_name = None
        elif not field_name:
            fields.error("field_name", "value_is_mandatory")
        if recurring and aggregation in ("count_agg", "max_agg", "latest_agg"):
            fields.error("recurring", "not_compatible_with_aggregation_type")
        rounding = fields.text("rounding_function", metric.rounding)
        if rounding not in (None, "round", "ceil", "floor"):
            fields.error("rounding_function", "value_is_invalid")
        places = fields.integer("rounding_precision", metric.rounding_places)
        if places is not None and abs(places) > ROUNDING_PLACES_MAX:
            fields.error("rounding_precision", "value_is_invalid")
        filters = _filters(fields) if "filters" in fields else metric.filters
        description = fields.text("description", metric.description)
        expression = fields.text("expression", metric.expression)
        fields.check()
        metric.aggregation, metric.field_name, metric.recurring = aggregation, field_name, recurring
        metric.rounding, metric.rounding_places, metric.filters = rounding, places, filters
        metric.description, metric.expression = description, expression

    def get(self, call: Call) -> Json:
        return {"billable_metric": metric_view(self._find(call))}

    def list(self, call: Call) -> Json:
        return page(call, "billable_metrics", newest_first(self._store.metrics.values()), metric_view)

    def delete(self, call: Call) -> Json:
        """Its charges go with it."""
        metric = self._find(call)
        del self._store.metrics[metric.code]
        for plan in [*self._store.plans.values(), *(item.plan for item in self._store.subscriptions)]:
            plan.charges = [charge for charge in plan.charges if charge.metric is not metric]
        self._store.emit("billable_metric.deleted", "billable_metric", lambda: metric_view(metric, counts=False))
        return {"billable_metric": metric_view(metric)}

    def _find(self, call: Call) -> Metric:
        found = self._store.metrics.get(call.path["code"])
        if found is None:
            raise not_found("billable_metric")
        return found


def _filters(fields: Fields) -> list[Json]:
    return [
        {"key": Fields(item).required("key"), "values": list(Fields(item).texts("values"))}
        for item in fields.objects("filters")
    ]
