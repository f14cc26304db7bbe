"""Reviews, answered without a network."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from typing import Any

import jsonpatch
import kubernetes_validate
import pytest
import yaml
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from sidecar.kubernetes import names
from sidecar.kubernetes.admission import BODY_BYTES_MAX, VALUES_MAX, MalformedReview, review
from sidecar.kubernetes.injection import InjectionRefused, InjectionSettings, inject, wanted
from sidecar.kubernetes.workloads import look, workloads
from tests.unit.kubernetes.reviews import pod, review_of

SETTINGS = InjectionSettings()
GOLDEN = Path(__file__).parent / "golden"
PODS = [
    pytest.param(look(document, workload.path), workload.job, id=f"{file.stem}, {workload.title}")
    for file in sorted(GOLDEN.glob("*.yaml"))
    if not file.name.endswith(".expected.yaml") and not file.read_text().startswith("# kubernetes: 1.28")
    for document in yaml.safe_load_all(file.read_text())
    for workload in workloads(document)
]
"""Pods of all kinds of manifests."""


def answered(document: dict[str, Any], usual: InjectionSettings = SETTINGS) -> dict[str, Any]:
    made = json.loads(review(json.dumps(document).encode(), usual).body)
    assert (made["apiVersion"], made["kind"]) == ("admission.k8s.io/v1", "AdmissionReview")
    assert made["response"]["uid"] == document["request"]["uid"]
    response: dict[str, Any] = made["response"]
    return response


def patched(obj: dict[str, Any], response: dict[str, Any]) -> dict[str, Any]:
    assert response["patchType"] == "JSONPatch"
    made: dict[str, Any] = jsonpatch.apply_patch(obj, json.loads(base64.b64decode(response["patch"])))
    return made


def test_a_pod_gets_the_sidecar_by_a_patch_and_is_valid_then() -> None:
    before = pod()
    response = answered(review_of(before))
    assert response["allowed"] is True
    after = patched(before, response)
    assert after["spec"]["initContainers"][-1]["name"] == names.CONTAINER
    for version in ("1.29", kubernetes_validate.latest_version()):
        kubernetes_validate.validate(after, ".".join(version.split(".")[:2]), strict=True)
    operations = json.loads(base64.b64decode(response["patch"]))
    assert not any(each["path"].startswith("/spec/containers/0/image") for each in operations)


@pytest.mark.parametrize(("template", "job"), PODS)
def test_the_patch_of_any_pod_leads_to_what_the_manifest_would_have_become(template: dict[str, Any], job: bool) -> None:
    # An API server sends neither times nor dates as YAML has them.
    before = json.loads(json.dumps({**pod(), **template}, default=str))
    owner = [{"apiVersion": "batch/v1", "kind": "Job", "name": "j", "uid": "u"}] if job else []
    before["metadata"] = {**(before.get("metadata") or {}), "ownerReferences": owner}
    expected: dict[str, Any] | str = before
    try:
        if wanted(before["metadata"], {}, default=True):
            expected = inject(before, SETTINGS, job=job).pod
    except InjectionRefused as error:
        expected = f"quota-sidecar: pod bank/{before['metadata'].get('name', '?*')}: {error}"
    response = answered(review_of(before))
    if response["allowed"]:
        assert (patched(before, response) if "patch" in response else before) == expected
    else:
        assert response["status"]["message"] == expected


def test_a_pod_that_was_injected_before_is_left_alone_when_it_is_reviewed_again() -> None:
    before = pod()
    after = patched(before, answered(review_of(before)))
    assert answered(review_of(after)) == {"uid": review_of(after)["request"]["uid"], "allowed": True}


def test_a_dry_run_is_answered_like_any_other() -> None:
    assert answered(review_of(pod(), dryRun=True)) == answered(review_of(pod()))


@pytest.mark.parametrize(
    "document",
    [
        review_of(pod(labels={names.INJECT: "false"})),
        review_of(pod({"inject": "false"})),
        review_of(pod(), operation="UPDATE"),
        review_of(pod(), subResource="ephemeralcontainers"),
        review_of({"spec": 1}, kind={"group": "apps", "version": "v1", "kind": "Deployment"}),
        review_of({"spec": 1}, kind={"group": "example.com", "version": "v1", "kind": "Pod"}),
        review_of(None, operation="DELETE"),
    ],
    ids=[
        "opted out",
        "opted out by an annotation",
        "an update",
        "a sub-resource",
        "another kind",
        "another group",
        "a deletion",
    ],
)  # fmt: skip
def test_what_is_not_to_be_injected_passes_untouched(document: dict[str, Any]) -> None:
    assert answered(document) == {"uid": document["request"]["uid"], "allowed": True}


@pytest.mark.parametrize(
    ("obj", "words"),
    [
        (pod() | {"spec": pod()["spec"] | {"hostNetwork": True}}, "hostNetwork is true"),
        (pod({"ports": "grpc"}), "there is no TCP port 'grpc'"),
        (pod(labels={names.INJECT: "yes"}), 'should be "true" or "false"'),
        (pod(labels={names.INJECT: ["true"]}), "metadata.labels: the value of"),
        (pod(ownerReferences={}), "metadata.ownerReferences should be a list"),
        ({"metadata": {}, "spec": {"containers": "x"}}, "spec.containers should be a list"),
        ({}, "spec.containers names no container"),
        ("pod", "the pod should be a mapping"),
    ],
)
def test_a_pod_that_cannot_have_one_is_denied_with_the_reason(obj: Any, words: str) -> None:
    response = answered(review_of(obj))
    assert response["allowed"] is False
    assert (response["status"]["code"], response["status"]["reason"]) == (403, "Forbidden")
    assert words in response["status"]["message"]
    assert "patch" not in response


@pytest.mark.parametrize(
    ("request_name", "metadata", "shown"),
    [
        ("", {}, "pod bank/accounts-api-7d4b9c6f5d-*: "),
        ("", {"name": "one", "generateName": None}, "pod bank/one: "),
        ("two", {}, "pod bank/two: "),
        ("", {"generateName": None}, "pod bank/?*: "),
    ],
)
def test_a_denial_names_the_pod_which_an_api_server_calls_unknown(
    request_name: str, metadata: dict[str, Any], shown: str
) -> None:
    response = answered(review_of(pod({"ports": "grpc"}, **metadata), name=request_name))
    assert response["status"]["message"].startswith(f"quota-sidecar: {shown}")


def test_a_job_s_pod_is_known_by_its_owner() -> None:
    owner = [{"apiVersion": "batch/v1", "kind": "Job", "name": "j", "uid": "u"}]
    response = answered(review_of(pod(ownerReferences=owner)), InjectionSettings(native=False))
    assert "ends by itself" in response["status"]["message"]
    assert answered(review_of(pod(ownerReferences=owner)))["allowed"] is True


def test_warnings_reach_who_creates_the_pod_and_the_log_has_them_in_full() -> None:
    before = pod()
    before["spec"]["terminationGracePeriodSeconds"] = 5
    made = review(json.dumps(review_of(before)).encode(), SETTINGS)
    (warning,) = json.loads(made.body)["response"]["warnings"]
    assert warning.startswith("quota-sidecar: terminationGracePeriodSeconds is 5")
    assert (len(warning) <= 120, warning.endswith("…")) == (True, True)
    assert made.warnings[0].endswith("when the pod ends")


def test_there_are_at_most_five_warnings() -> None:
    before = pod({"mode": "redirect", "ports": "8080,9090"})  # it is not known whose port 9090 is
    hook = {"lifecycle": {"preStop": {"exec": {"command": ["sleep", "1"]}}}}
    before["spec"]["containers"] += [{"name": f"more-{number}", "image": "x", **hook} for number in range(7)]
    made = review(json.dumps(review_of(before)).encode(), SETTINGS)
    warnings = json.loads(made.body)["response"]["warnings"]
    assert (len(made.warnings), len(warnings)) == (7, 5)
    assert warnings[-1] == "quota-sidecar: 3 more warnings are in the injector's log"


def test_an_answer_says_for_the_log_whether_it_was_a_dry_run() -> None:
    made = [review(json.dumps(review_of(pod(), dryRun=dry)).encode(), SETTINGS).dry_run for dry in (True, False)]
    assert made == [True, False]


WHOLE = json.dumps(review_of(pod())).encode()
MALFORMED = {
    "nothing": b"",
    "no JSON": b"{",
    "not UTF-8": WHOLE.replace(b"accounts-api", b"accounts-\xff"),
    "UTF-16": WHOLE.decode().encode("utf-16"),
    "not a number": WHOLE.replace(b"30", b"NaN"),
    "half a pair of surrogates": WHOLE.replace(b"accounts-api", b"\\ud800"),
    "a list": b"[]",
    "another kind": b'{"kind": "Pod", "apiVersion": "v1"}',
    "the version before": json.dumps(review_of(pod()) | {"apiVersion": "admission.k8s.io/v1beta1"}).encode(),
    "no request": b'{"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1"}',
    "no uid": json.dumps(review_of(pod(), uid=None)).encode(),
    "an endless uid": json.dumps(review_of(pod(), uid="x" * 1000)).encode(),
    "two uids": WHOLE.replace(b'"uid": "705', b'"uid": "other", "uid": "705'),
    "no kind": json.dumps(review_of(pod(), kind=None)).encode(),
    "no operation": json.dumps(review_of(pod(), operation=None)).encode(),
    "no object": json.dumps(review_of(None)).encode(),
    "far too deep": b"[" * 100_000,
    "too deep": WHOLE.replace(b'"status": {}', b'"status": ' + b'{"a":' * 1100 + b"1" + b"}" * 1100),
    "far too large": b" " * (BODY_BYTES_MAX + 1),
    "far too many values": b"[" + b"[]," * (VALUES_MAX // 2 + 1) + b"1]",
}  # fmt: skip


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED)
def test_what_is_no_review_is_said_to_be_none(body: bytes) -> None:
    began = time.perf_counter()
    with pytest.raises(MalformedReview) as caught:
        review(body, SETTINGS)
    assert 0 < len(str(caught.value)) < 400
    assert time.perf_counter() - began < 1


def test_a_key_that_is_there_twice_is_named() -> None:
    with pytest.raises(MalformedReview, match="the key 'uid' twice"):
        review(MALFORMED["two uids"], SETTINGS)


def test_a_pod_as_large_as_there_can_be_is_answered() -> None:
    before = pod()
    before["metadata"]["annotations"] = {f"note-{number}": "x" * 10_000 for number in range(150)}
    response = answered(review_of(before))
    assert patched(before, response)["metadata"]["annotations"].items() >= before["metadata"]["annotations"].items()
    assert len(response["patch"]) < 10_000, "what is there already is not sent back"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["name", "port"]), inner, max_size=2),
    max_leaves=6,
)


def places(document: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The ways to all values of a document."""
    inner = document.items() if isinstance(document, dict) else enumerate(document)
    found = [(*above, key) for key, _ in inner]
    deeper = document.items() if isinstance(document, dict) else enumerate(document)
    return found + [way for key, each in deeper if isinstance(each, dict | list) for way in places(each, (*above, key))]


OPTIONS = pod({"mode": "redirect", "ports": "*", "exclude-ports": "9000", "inject": "true", "native": "false"})


@hypothesis_settings(max_examples=300)
@given(st.sampled_from(places(OPTIONS)), JSON)
def test_a_pod_with_anything_wrong_in_any_place_has_an_answer(way: tuple[Any, ...], wrong: Any) -> None:
    broken = json.loads(json.dumps(OPTIONS))
    parent = look(broken, way[:-1])
    parent[way[-1]] = wrong
    assert answered(review_of(broken))["allowed"] in (True, False)
