"""The injector in the chart: about which pods it is asked, what it may do, and where its certificate comes from."""

from __future__ import annotations

import inspect

import pytest

from deploy.kustomize.__main__ import NAMESPACE
from sidecar.kubernetes import names, webhook
from tests.deploy.manifests import INJECTOR, SETS, arguments, chart, deployment, manifests, named, of_kind, selects

NAMESPACES: dict[str, dict[str, str]] = {
    "opted in": {names.INJECT: "true"},
    "said nothing": {},
    "opted out": {names.INJECT: "false"},
    "kube-system": {"kubernetes.io/metadata.name": "kube-system", names.INJECT: "true"},
    "the release's": {"kubernetes.io/metadata.name": NAMESPACE, names.INJECT: "true"},
}
REVIEWS = [
    ("opted in", None, 1),
    ("opted in", "true", 1),
    ("opted in", "false", 0),
    ("opted in", "yes", 1),  # to be refused by name
    ("said nothing", None, 0),
    ("said nothing", "true", 1),
    ("said nothing", "false", 0),
    ("said nothing", "yes", 1),
    ("opted out", None, 0),
    ("opted out", "true", 1),
    ("kube-system", None, 0),
    ("kube-system", "true", 0),
    ("the release's", "true", 0),
]


@pytest.mark.parametrize(("namespace", "label", "reviews"), REVIEWS)
@pytest.mark.parametrize("source", ["defaults", "kustomize/base"])
def test_the_api_server_asks_about_the_pods_that_opted_in_and_no_others(
    source: str, namespace: str, label: str | None, reviews: int
) -> None:
    entries = named(manifests(source), "MutatingWebhookConfiguration", INJECTOR)["webhooks"]
    labels = {"app": "api"} | ({names.INJECT: label} if label is not None else {})
    place = {"kubernetes.io/metadata.name": "shop"} | NAMESPACES[namespace]
    asked = [
        each
        for each in entries
        if selects(each["namespaceSelector"], place) and selects(each["objectSelector"], labels)
    ]
    assert len(asked) == reviews


@pytest.mark.parametrize("name", [name for name in SETS if name not in ("no injector", "gateway only")])
def test_the_webhook_is_where_the_injector_listens(name: str) -> None:
    documents = chart(name)
    for entry in named(documents, "MutatingWebhookConfiguration", INJECTOR)["webhooks"]:
        called = entry["clientConfig"]["service"]
        service = named(documents, "Service", called["name"], called["namespace"])
        assert called["port"] in [port["port"] for port in service["spec"]["ports"]]
        assert f'"{called["path"]}"' in inspect.getsource(webhook)
        assert entry["sideEffects"] == "None"
        assert entry["reinvocationPolicy"] == "IfNeeded"
        assert entry["failurePolicy"] == "Fail"
        assert ("caBundle" in entry["clientConfig"]) is (name == "own certificate")


def test_a_self_signing_injector_may_do_what_it_does_and_no_more() -> None:
    documents = chart("defaults")
    given = dict(each.removeprefix("--").split("=", 1) for each in arguments(documents, INJECTOR) if "=" in each)
    role, cluster_role = named(documents, "Role", INJECTOR), named(documents, "ClusterRole", INJECTOR)
    assert role["rules"] == [
        {
            "apiGroups": [""],
            "resources": ["secrets"],
            "resourceNames": [given["certificate-secret"]],
            "verbs": ["get", "update"],
        },
        {"apiGroups": [""], "resources": ["secrets"], "verbs": ["create"]},
    ]
    assert cluster_role["rules"] == [
        {
            "apiGroups": ["admissionregistration.k8s.io"], "resources": ["mutatingwebhookconfigurations"],
            "resourceNames": [given["webhook-configuration"]], "verbs": ["get", "patch"],
        }
    ]  # fmt: skip
    named(documents, "MutatingWebhookConfiguration", given["webhook-configuration"])
    assert (given["service"], given["namespace"]) == (INJECTOR, NAMESPACE)
    account = deployment(documents, INJECTOR)["spec"]["template"]["spec"]["serviceAccountName"]
    for binding in of_kind(documents, "RoleBinding", "ClusterRoleBinding"):
        assert binding["subjects"] == [{"kind": "ServiceAccount", "name": account, "namespace": NAMESPACE}]


@pytest.mark.parametrize("name", ["cert-manager", "own certificate", "no injector"])
def test_who_signs_nothing_itself_has_no_rights(name: str) -> None:
    assert of_kind(chart(name), "Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding") == []


def test_cert_manager_makes_the_certificate_that_the_injector_shows() -> None:
    documents = chart("cert-manager")
    certificate = named(documents, "Certificate", INJECTOR)["spec"]
    volume = deployment(documents, INJECTOR)["spec"]["template"]["spec"]["volumes"][0]
    assert volume["secret"]["secretName"] == certificate["secretName"]
    assert f"{INJECTOR}.{NAMESPACE}.svc" in certificate["dnsNames"]
    configuration = named(documents, "MutatingWebhookConfiguration", INJECTOR)
    assert configuration["metadata"]["annotations"]["cert-manager.io/inject-ca-from"] == f"{NAMESPACE}/{INJECTOR}"
    named(documents, "Issuer", certificate["issuerRef"]["name"])
    other = named(chart("cert-manager's issuer"), "Certificate", INJECTOR)["spec"]["issuerRef"]
    assert other == {"group": "cert-manager.io", "kind": "ClusterIssuer", "name": "bank"}
    assert of_kind(chart("cert-manager's issuer"), "Issuer") == []
