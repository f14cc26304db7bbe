"""Which objects of Kubernetes have a pod, or the template of one, and where."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

TEMPLATES: Final[Mapping[tuple[str, str], tuple[str, ...]]] = {
    ("", "Pod"): (),
    ("", "PodTemplate"): ("template",),
    ("", "ReplicationController"): ("spec", "template"),
    ("apps", "Deployment"): ("spec", "template"),
    ("apps", "StatefulSet"): ("spec", "template"),
    ("apps", "DaemonSet"): ("spec", "template"),
    ("apps", "ReplicaSet"): ("spec", "template"),
    ("batch", "Job"): ("spec", "template"),
    ("batch", "CronJob"): ("spec", "jobTemplate", "spec", "template"),
}
"""By API group and kind: the way to the template, empty for a pod itself."""


@dataclass(frozen=True, slots=True)
class Workload:
    """``path`` leads from the document to its pod. ``job``: its pods come to an end."""

    title: str
    path: tuple[str | int, ...]
    job: bool


def workloads(document: Any) -> Iterator[Workload]:
    """The workloads in a document, those in a ``List`` included."""
    yield from _within(document, ())


def _within(document: Any, above: tuple[str | int, ...]) -> Iterator[Workload]:
    if not isinstance(document, Mapping) or len(above) > 8:
        return
    version, kind = document.get("apiVersion"), document.get("kind")
    if not isinstance(version, str) or not isinstance(kind, str):
        return
    if version == "v1" and kind.endswith("List") and isinstance(document.get("items"), list):
        for number, each in enumerate(document["items"]):
            yield from _within(each, (*above, "items", number))
        return
    group = version.rpartition("/")[0]
    below = TEMPLATES.get((group, kind))
    if below is None:
        return
    metadata = document.get("metadata")
    name = metadata.get("name") or metadata.get("generateName") if isinstance(metadata, Mapping) else None
    yield Workload(f"{kind} {name}" if isinstance(name, str) else kind, (*above, *below), kind in ("Job", "CronJob"))


def look(document: Any, path: tuple[str | int, ...]) -> Any:
    """What is at a path, None if nothing is."""
    for part in path:
        if isinstance(document, Mapping):
            document = document.get(part)
        elif isinstance(document, list) and isinstance(part, int) and part < len(document):
            document = document[part]
        else:
            return None
    return document
