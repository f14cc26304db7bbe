"""Rendered manifests, and what is asked of them: each set of values and each kustomization is rendered once."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.kustomize.__main__ import CHART, NAMESPACE, helm
from tests.deploy.schemas import Manifest

DEPLOY = Path(__file__).parents[2] / "deploy"
CONTROL, INJECTOR, GATEWAY = (f"quota-sidecar-{name}" for name in ("control", "injector", "gateway"))
IMAGE = "ghcr.io/openova/quota-sidecar"
DIGEST = "sha256:" + "0" * 64

EVERYTHING: dict[str, Any] = {
    "image": {"digest": DIGEST},
    "imagePullSecrets": [{"name": "registry"}],
    "commonLabels": {"team": "payments"},
    "config": {"lago": {"plan_policies": [{"code": "api_pro", "mode": "overage", "spending_cap": "500.00"}]}},
    "secrets": {"openmeterToken": True},
    "dataPlane": {
        "namespaces": ["accounts", "payments", NAMESPACE],
        "config": {
            "trusted_peers": ["10.0.0.0/8"],
            "identity": [{"type": "xfcc"}, {"type": "jwt", "issuer": "https://as.bank.example", "audience": ["api"],
                                            "jwks_url": "https://as.bank.example/jwks"}],
            "routes": [{"path": "/accounts/{id}", "methods": ["GET"], "units": 2}],
            "default_route": "deny",
            "limits": {"body_bytes_max": 104857600},
            "log": {"access": "off"},
        },
    },
    "controlPlane": {
        "config": {"lago": {"sync": {"final_flush_s": 2678400}}},
        "env": {"SIDECAR_LOG__LEVEL": "debug"},
        "autoscaling": {"enabled": True},
        "ingress": {"enabled": True, "host": "control.bank.example", "className": "nginx", "tlsSecret": "control-tls"},
        "antiAffinity": "hard",
        "tolerations": [{"key": "dedicated", "operator": "Exists", "effect": "NoSchedule"}],
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "priorityClassName": "system-cluster-critical",
        "podAnnotations": {"a": "b"},
        "podLabels": {"c": "d"},
    },
    "injector": {"antiAffinity": "off", "env": {"QUOTA_INJECTOR_DRAIN_DELAY": "5"}},
    "gateway": {"enabled": True, "upstream": {"url": "http://api.shop.svc:8080"}},
    "networkPolicy": {
        "enabled": True, "clientNamespaces": ["ingress-nginx"], "nodeCidrs": ["10.1.0.0/16"],
        "injected": {"applicationPorts": [8080], "restrictEgress": True, "egressPorts": [5432]},
    },
    "monitoring": {
        "interval": "30s", "labels": {"release": "prometheus"},
        "serviceMonitor": {"enabled": True}, "podMonitor": {"enabled": True}, "prometheusRule": {"enabled": True},
        "dashboards": {"enabled": True, "annotations": {"grafana_folder": "Quota"}},
    },
}  # fmt: skip
SETS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "everything": EVERYTHING,
    "cert-manager": {
        "injector": {"certificate": {"from": "cert-manager"}, "kubernetesVersion": "1.31"},
        "networkPolicy": {"enabled": True, "monitoringNamespaces": []},
    },
    "own certificate": {
        "injector": {"certificate": {"from": "existing", "existingSecret": "webhook-tls", "caBundle": "LS0t"}},
    },
    "cert-manager's issuer": {
        "injector": {"certificate": {"from": "cert-manager", "issuer": "bank", "issuerKind": "ClusterIssuer"}},
    },
    "no injector": {"injector": {"enabled": False}, "networkPolicy": {"enabled": True}},
    "gateway only": {
        "controlPlane": {"enabled": False}, "injector": {"enabled": False}, "secrets": {"valkeyPassword": False},
        "config": {"lago": None}, "monitoring": {"serviceMonitor": {"enabled": True}},
        "gateway": {"enabled": True, "upstream": {"url": "http://api:8080"}, "autoscaling": {"enabled": False},
                    "serviceAccount": {"create": False}},
    },
    "platform": yaml.safe_load((DEPLOY / "platform" / "quota-sidecar-values.yaml").read_text()),
}  # fmt: skip
KUSTOMIZATIONS = (
    "kustomize/base", "kustomize/data-plane", "kustomize/overlays/dev", "kustomize/overlays/production",
    "platform", "platform/catalog",
)  # fmt: skip


def load_all(text: str) -> Iterator[Manifest]:
    """Documents of a stream, read by libyaml where it is there."""
    return iter(yaml.load_all(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


def run_helm(*arguments: str, values: dict[str, Any] | None = None) -> subprocess.CompletedProcess[str]:
    """Runs Helm with these values of the chart."""
    return subprocess.run(
        [helm(), *arguments, "--values", "-"],
        input=yaml.safe_dump(values or {}), capture_output=True, text=True, check=False,
    )  # fmt: skip


def template(values: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """``helm template`` of the chart."""
    return run_helm("template", "quota-sidecar", str(CHART), "--namespace", NAMESPACE, values=values)


@cache
def chart(name: str) -> tuple[Manifest, ...]:
    """The chart's manifests with one of ``SETS``."""
    done = template(SETS[name])
    assert done.returncode == 0, done.stderr
    return tuple(each for each in load_all(done.stdout) if each)


@cache
def kustomization(name: str) -> tuple[Manifest, ...]:
    """What ``kubectl kustomize`` makes of a folder of deploy/."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed: kustomizations are not built")
    command = ["kubectl", "kustomize", str(DEPLOY / name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return tuple(each for each in load_all(done.stdout) if each)


def manifests(name: str) -> tuple[Manifest, ...]:
    """A set of the chart's, or a kustomization."""
    return chart(name) if name in SETS else kustomization(name)


def of_kind(documents: Iterable[Manifest], *kinds: str) -> list[Manifest]:
    """Those of some kinds."""
    return [each for each in documents if each["kind"] in kinds]


def named(documents: Iterable[Manifest], kind: str, name: str, namespace: str | None = None) -> Manifest:
    """The only one of this kind and name."""
    found = [
        each for each in of_kind(documents, kind)
        if each["metadata"]["name"] == name and namespace in (None, each["metadata"].get("namespace"))
    ]  # fmt: skip
    assert len(found) == 1, f"{len(found)} of {kind} {name}"
    return found[0]


def deployment(documents: Iterable[Manifest], name: str) -> Manifest:
    """The only Deployment of this name."""
    return named(documents, "Deployment", name)


def arguments(documents: Iterable[Manifest], name: str) -> list[str]:
    """What the first container of a Deployment is started with."""
    return [str(each) for each in deployment(documents, name)["spec"]["template"]["spec"]["containers"][0]["args"]]


def pods(documents: Iterable[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """Pod templates, by ``kind name``."""
    for each in of_kind(documents, "Deployment", "StatefulSet", "Job"):
        yield f"{each['kind']} {each['metadata']['name']}", each["spec"]["template"]


def containers(pod: Manifest) -> list[Manifest]:
    """All of a pod's containers."""
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


def ports_of(pod: Manifest) -> dict[str, int]:
    """Names and numbers of declared ports."""
    return {port["name"]: port["containerPort"] for each in containers(pod) for port in each.get("ports", [])}


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """A label selector of Kubernetes, applied."""
    for expression in selector.get("matchExpressions", []):
        value, values = labels.get(expression["key"]), expression.get("values", [])
        holds = {
            "In": value in values, "NotIn": value not in values,
            "Exists": value is not None, "DoesNotExist": value is None,
        }[expression["operator"]]  # fmt: skip
        if not holds:
            return False
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())
