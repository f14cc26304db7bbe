"""Which labels the result of a PromQL expression has, given those of the metrics. Finds names that are not there,
labels that nobody has, and joins that can match nothing. The parser is GreptimeDB's, which follows Prometheus'.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import promql_parser as ast

Labels = frozenset[str] | None
"""Of each series of a vector; None for a scalar or a text."""

_SET_OPERATORS = frozenset({"and", "or", "unless"})
_KEEP_LABELS = frozenset({"topk", "bottomk"})
_LITERAL = re.compile(r"[A-Za-z0-9_.:+()/ -]+")


class PromQLError(Exception):
    """What is wrong with an expression."""


@dataclass(frozen=True, slots=True)
class Metrics:
    """``labels`` by series name. ``values``: those that a label is known to take, by series name and label; a label
    that is not in it may have any.
    """

    labels: Mapping[str, frozenset[str]]
    values: Mapping[tuple[str, str], frozenset[str]] = field(default_factory=dict)

    def labels_of(self, expression: str) -> Labels:
        """Raises :class:`PromQLError`."""
        try:
            tree = ast.parse(expression)
        except ValueError as error:
            raise PromQLError(f"{error}: {expression}") from None
        try:
            return self._labels(tree)
        except PromQLError as error:
            raise PromQLError(f"{error}, in: {expression}") from None

    def _labels(self, node: Any) -> Labels:
        match node:
            case ast.VectorSelector():
                return self._selected(node)
            case ast.MatrixSelector():
                return self._selected(node.vector_selector)
            case ast.ParenExpr() | ast.UnaryExpr() | ast.SubqueryExpr():
                return self._labels(node.expr)
            case ast.AggregateExpr():
                return self._aggregated(node)
            case ast.Call():
                return self._called(node)
            case ast.BinaryExpr():
                return self._combined(node)
            case _:
                return None

    def _selected(self, node: Any) -> frozenset[str]:
        labels = self.labels.get(node.name)
        if labels is None:
            raise PromQLError(f"there is no metric {node.name}")
        if node.matchers.or_matchers:
            raise PromQLError("matchers with `or` are not Prometheus'")
        for matcher in node.matchers.matchers:
            _need([matcher.name], labels, node.name)
            known = self.values.get((node.name, matcher.name))
            if known is not None:
                for value in _literals(matcher):
                    if value not in known:
                        raise PromQLError(f"{node.name} never has {matcher.name}={value!r} but {sorted(known)}")
        return labels

    def _aggregated(self, node: Any) -> Labels:
        inner = self._labels(node.expr)
        assert inner is not None
        if node.modifier is None:
            return inner if str(node.op) in _KEEP_LABELS else frozenset()
        _need(node.modifier.labels, inner, str(node.expr))
        listed = frozenset(node.modifier.labels)
        return listed if node.modifier.type == ast.AggModifierType.By else inner - listed

    def _called(self, node: Any) -> Labels:
        if node.func.return_type == ast.ValueType.Scalar:
            for argument in node.args:
                self._labels(argument)
            return None
        name = node.func.name
        vectors = [labels for labels in map(self._labels, node.args) if labels is not None]
        if name in ("absent", "vector") or not vectors:
            return frozenset()
        if name == "label_replace":
            return vectors[0] | {node.args[1].val}
        if name == "histogram_quantile":
            _need(["le"], vectors[0], name)
            return vectors[0] - {"le"}
        return vectors[0]

    def _combined(self, node: Any) -> Labels:
        left, right = self._labels(node.lhs), self._labels(node.rhs)
        if left is None or right is None:
            return left if right is None else right
        operator, modifier = str(node.op), node.modifier
        matching = modifier.matching if modifier is not None else None
        if operator == "or":
            return left | right
        if matching is None:
            if left != right:
                raise PromQLError(f"{operator} of {sorted(left)} and {sorted(right)} can match nothing")
            return left
        listed = frozenset(matching.labels)
        if matching.type == ast.LabelModifierType.Include:
            _need(listed, left, f"the left side of {operator}")
            _need(listed, right, f"the right side of {operator}")
            kept = listed
        else:
            if left - listed != right - listed:
                raise PromQLError(f"{operator} of {sorted(left)} and {sorted(right)} can match nothing")
            kept = left - listed
        if operator in _SET_OPERATORS:
            return left
        if modifier.card == ast.VectorMatchCardinality.ManyToOne:
            return left | frozenset(modifier.group_labels)
        if modifier.card == ast.VectorMatchCardinality.OneToMany:
            return right | frozenset(modifier.group_labels)
        return kept


def _need(wanted: Iterable[str], labels: frozenset[str], where: str) -> None:
    for label in wanted:
        if label not in labels:
            raise PromQLError(f"{where} has no label {label}, only {sorted(labels)}")


def _literals(matcher: Any) -> list[str]:
    """The values that a matcher spells out; none for what is a pattern or one of Grafana's variables."""
    alternatives = matcher.value.split("|") if "Re" in str(matcher.op) else [matcher.value]
    is_plain = all(_LITERAL.fullmatch(each) and ".." not in each and "*" not in each for each in alternatives)
    return alternatives if is_plain else []
