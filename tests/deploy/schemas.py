"""Kubernetes' own schemas, of the oldest version with native sidecars and of the newest, and small ones of the custom
resources that the chart makes, after their documentation."""

from __future__ import annotations

import json
import re
from functools import cache
from importlib import resources
from typing import Any

import jsonschema
import kubernetes_validate
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT7

Manifest = dict[str, Any]

VERSIONS = ("1.29", ".".join(kubernetes_validate.latest_version().split(".")[:2]))
_SELECTOR = {
    "type": "object", "additionalProperties": False,
    "properties": {"matchLabels": {"type": "object", "additionalProperties": {"type": "string"}},
                   "matchExpressions": {"type": "array"}},
}  # fmt: skip
_ENDPOINT = {
    "type": "object", "additionalProperties": False, "required": ["port"],
    "properties": {"port": {"type": "string"}, "path": {"type": "string"},
                   "interval": {"type": "string", "pattern": r"^\d+(ms|s|m|h)$"},
                   "relabelings": {"type": "array", "items": {
                       "type": "object", "additionalProperties": False, "required": ["action"],
                       "properties": {"action": {"enum": ["replace", "labeldrop"]}, "regex": {"type": "string"},
                                      "sourceLabels": {"type": "array", "items": {"type": "string"}},
                                      "targetLabel": {"type": "string"}}}}},
}  # fmt: skip
_NAMESPACES = {
    "type": "object", "additionalProperties": False,
    "properties": {"any": {"type": "boolean"}, "matchNames": {"type": "array", "items": {"type": "string"}}},
}  # fmt: skip
_TIME = {"type": "string", "pattern": r"^\d+(ms|s|m|h|d)$"}
_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
_RULE = {
    "type": "object", "additionalProperties": False, "required": ["expr"],
    "oneOf": [{"required": ["alert"]}, {"required": ["record"]}],
    "properties": {"alert": {"type": "string"}, "record": {"type": "string"}, "expr": {"type": ["string", "integer"]},
                   "for": _TIME, "keep_firing_for": _TIME, "labels": _TEXTS, "annotations": _TEXTS},
}  # fmt: skip
_GO_DURATION = {"type": "string", "pattern": r"^(\d+(\.\d+)?(s|m|h))+$"}
_CUSTOM: dict[tuple[str, str], dict[str, Any]] = {
    ("monitoring.coreos.com/v1", "ServiceMonitor"): {
        "required": ["selector", "endpoints"],
        "properties": {"selector": _SELECTOR, "namespaceSelector": _NAMESPACES,
                       "endpoints": {"type": "array", "items": _ENDPOINT, "minItems": 1}},
    },
    ("monitoring.coreos.com/v1", "PodMonitor"): {
        "required": ["selector"],
        "properties": {"selector": _SELECTOR, "namespaceSelector": _NAMESPACES,
                       "podMetricsEndpoints": {"type": "array", "items": _ENDPOINT, "minItems": 1}},
    },
    ("monitoring.coreos.com/v1", "PrometheusRule"): {
        "required": ["groups"],
        "properties": {"groups": {"type": "array", "minItems": 1, "items": {
            "type": "object", "additionalProperties": False, "required": ["name", "rules"],
            "properties": {"name": {"type": "string"}, "interval": _TIME, "limit": {"type": "integer"},
                           "rules": {"type": "array", "minItems": 1, "items": _RULE}}}}},
    },
    ("cert-manager.io/v1", "Issuer"): {"required": ["selfSigned"], "properties": {"selfSigned": {"type": "object"}}},
    ("cert-manager.io/v1", "Certificate"): {
        "required": ["secretName", "issuerRef"],
        "properties": {
            "secretName": {"type": "string"}, "dnsNames": {"type": "array", "items": {"type": "string"}},
            "duration": _GO_DURATION, "renewBefore": _GO_DURATION,
            "usages": {"type": "array", "items": {"enum": ["server auth", "digital signature", "key encipherment"]}},
            "privateKey": {"type": "object", "additionalProperties": False, "properties": {
                "algorithm": {"enum": ["RSA", "ECDSA", "Ed25519"]}, "size": {"enum": [256, 384, 521, 2048, 4096]},
                "rotationPolicy": {"enum": ["Never", "Always"]}}},
            "issuerRef": {"type": "object", "additionalProperties": False, "required": ["name"],
                          "properties": {name: {"type": "string"} for name in ("name", "kind", "group")}},
        },
    },
}  # fmt: skip


def faults(document: Manifest, version: str) -> list[str]:
    """What Kubernetes would refuse in a manifest, each with its place."""
    return list(_faults(json.dumps(document), version))


@cache
def _faults(text: str, version: str) -> tuple[str, ...]:
    document = json.loads(text)  # many sets of values make the same object
    about = f"{document['kind']} {document['metadata']['name']}"
    errors = _validator(document["apiVersion"], document["kind"], version).iter_errors(document)
    return tuple(f"{about}: {error.json_path}: {error.message[:300]}" for error in errors)


@cache
def _validator(api_version: str, kind: str, version: str) -> jsonschema.protocols.Validator:
    custom = _CUSTOM.get((api_version, kind))
    if custom is not None:
        properties = {"apiVersion": {}, "kind": {}, "metadata": {}, "spec": {"additionalProperties": False, **custom}}
        return jsonschema.Draft7Validator(
            {"required": ["spec"], "additionalProperties": False, "properties": properties}
        )
    group = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", api_version)
    schema = json.loads((_directory(version) / f"{kind.lower()}-{group}.json").read_text())
    return jsonschema.Draft7Validator(schema, registry=_definitions(version))


@cache
def _definitions(version: str) -> Registry[Any]:
    contents = json.loads((_directory(version) / "_definitions.json").read_text())
    resource: Resource[Any] = Resource.from_contents(contents, default_specification=DRAFT7)
    return Registry().with_resources([("_definitions.json", resource)]).crawl()


def _directory(version: str) -> Any:
    return resources.files("kubernetes_validate") / "kubernetes-json-schema" / f"v{version}.0-local-strict"
