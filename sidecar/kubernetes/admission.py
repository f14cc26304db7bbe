"""AdmissionReview (admission.k8s.io/v1): bytes of a request in, bytes of the answer out.

Which pods come here is decided by the API server, by two entries of the MutatingWebhookConfiguration:

* in namespaces labelled ``quota.openova.io/inject: "true"``: all pods but those whose own label is "false";
* in all other namespaces: pods that have the label themselves.

A review does not carry the labels of the namespace, so a pod that comes here gets the sidecar unless it says "false"
itself. An annotation of a pod can only opt it out: selectors see labels. Both entries have ``reinvocationPolicy:
IfNeeded``, since another webhook may add to the pod later; a pod that has the sidecar is not touched again. They have
``sideEffects: None``: nothing is done beyond the answer, so a dry run is a review like any other.
"""

from __future__ import annotations

import base64
import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import orjson

from sidecar.kubernetes.injection import InjectionRefused, InjectionSettings, inject, wanted
from sidecar.kubernetes.patch import json_patch
from sidecar.kubernetes.pod_fields import mapping, mappings, texts

BODY_BYTES_MAX: Final = 7 * 1024 * 1024
"""An object in etcd has at most 1.5 MiB, a request to the API server 3 MiB; a review may carry the object twice."""
VALUES_MAX: Final = 1_000_000
"""Few bytes of JSON can become a hundred of Python's: this bounds the memory of a review."""
WARNINGS_MAX: Final = 5
WARNING_LENGTH_MAX: Final = 120
"""As Kubernetes' documentation asks for; longer ones may be cut by the API server."""
_API: Final = "admission.k8s.io/v1"

Result = Literal["injected", "unchanged", "refused"]


class MalformedReview(Exception):
    """What came is no review: HTTP status 400, with this message."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer, and what the log says of it.

    Attributes:
        about: the pod, as ``namespace/name``.
        refusal: why it was refused.
        warnings: in full; those of the answer are short.
    """

    body: bytes
    result: Result
    about: str
    dry_run: bool = False
    refusal: str = ""
    warnings: tuple[str, ...] = ()


def review(body: bytes, settings: InjectionSettings) -> Answer:
    """Answers one review.

    A refusal is 403 ``Forbidden``, as that of any admission controller: 422 would say that the pod breaks Kubernetes'
    own rules.

    Raises:
        MalformedReview: it is none, or of another version.
    """
    request = _request(body)
    uid, kind, operation = request.get("uid"), request.get("kind"), request.get("operation")
    if not isinstance(uid, str) or not 1 <= len(uid) <= 253:
        raise MalformedReview("request.uid should be text")
    if not isinstance(kind, dict) or not isinstance(operation, str):
        raise MalformedReview("request.kind and request.operation should name the kind and the operation")
    about, dry_run = _about(request), request.get("dryRun") is True
    is_pod = (kind.get("group") or "", kind.get("kind")) == ("", "Pod") and not request.get("subResource")
    if not is_pod or operation != "CREATE":
        return Answer(_reviewed(uid), "unchanged", about, dry_run)
    if request.get("object") is None:
        raise MalformedReview("request.object should be the pod")
    try:
        return _admitted(uid, request["object"], settings, about, dry_run)
    except InjectionRefused as error:
        message = f"quota-sidecar: pod {about}: {error}"
        status = {"status": "Failure", "code": 403, "reason": "Forbidden", "message": message}
        return Answer(_reviewed(uid, allowed=False, status=status), "refused", about, dry_run, refusal=str(error))


def _admitted(uid: str, pod: Any, settings: InjectionSettings, about: str, dry_run: bool) -> Answer:
    whole = mapping(pod, "the pod")
    metadata = mapping(whole.get("metadata"), "metadata")
    for field in ("labels", "annotations"):
        texts(metadata.get(field), f"metadata.{field}")
    if not wanted(metadata, {}, default=True):
        return Answer(_reviewed(uid), "unchanged", about, dry_run)
    owners = mappings(metadata.get("ownerReferences"), "metadata.ownerReferences")
    made = inject(whole, settings, job=any(owner.get("kind") == "Job" for owner in owners))
    if not made.changed:
        return Answer(_reviewed(uid), "unchanged", about, dry_run)
    patch = base64.b64encode(orjson.dumps(json_patch(whole, made.pod))).decode()
    more: dict[str, Any] = {"patchType": "JSONPatch", "patch": patch}
    if made.warnings:
        more["warnings"] = _short(made.warnings)
    return Answer(_reviewed(uid, **more), "injected", about, dry_run, warnings=made.warnings)


def _request(body: bytes) -> dict[str, Any]:
    if len(body) > BODY_BYTES_MAX:
        raise MalformedReview(f"the review has more than {BODY_BYTES_MAX} bytes")
    if sum(map(body.count, (b",", b"[", b"{"))) > VALUES_MAX:
        raise MalformedReview(f"the review has more than {VALUES_MAX} values")
    try:
        document = orjson.loads(body)
        # orjson keeps the last of two equal keys: an answer to a review with two uids would be to one of them.
        json.loads(body, object_pairs_hook=_check_keys)
    except RecursionError:
        raise MalformedReview("the review is nested too deeply") from None
    except ValueError as error:
        raise MalformedReview(f"the review is no JSON: {error}"[:300]) from None
    if not isinstance(document, dict) or document.get("kind") != "AdmissionReview":
        raise MalformedReview("the request is not an AdmissionReview")
    if document.get("apiVersion") != _API:
        raise MalformedReview(f"the review's apiVersion should be {_API}, not {str(document.get('apiVersion'))[:60]!r}")
    request = document.get("request")
    if not isinstance(request, dict):
        raise MalformedReview("the review has no request")
    return request


def _check_keys(pairs: list[tuple[str, Any]]) -> None:
    if len(dict(pairs)) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"it has the key {next(key for key in keys if keys.count(key) > 1)[:60]!r} twice")


def _about(request: dict[str, Any]) -> str:
    """``namespace/name``; a pod of a workload has no name yet, only what it will begin with."""
    pod = request.get("object")
    metadata = pod.get("metadata") if isinstance(pod, dict) else None
    found = metadata if isinstance(metadata, dict) else {}
    name = request.get("name") or found.get("name") or f"{found.get('generateName') or '?'}*"
    return f"{request.get('namespace') or '?'}/{name}"[:300]


def _short(warnings: Sequence[str]) -> list[str]:
    made = [textwrap.shorten(f"quota-sidecar: {each}", WARNING_LENGTH_MAX, placeholder=" …") for each in warnings]
    if len(made) > WARNINGS_MAX:
        left = len(made) - WARNINGS_MAX + 1
        made[WARNINGS_MAX - 1 :] = [f"quota-sidecar: {left} more warnings are in the injector's log"]
    return made


def _reviewed(uid: str, *, allowed: bool = True, **more: Any) -> bytes:
    response = {"uid": uid, "allowed": allowed, **more}
    return orjson.dumps({"apiVersion": _API, "kind": "AdmissionReview", "response": response})
