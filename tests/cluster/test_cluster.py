"""What only a cluster can show: an API server that asks the webhook, kubelets that probe and stop pods, Services."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.kit import (
    FUNDS,
    INJECT,
    PYTHON,
    Installed,
    Refused,
    container,
    deployment,
    pod,
    service,
    until,
)

PROXY_PORT = 15701
PATH = "/open-banking/v3.1/aisp/accounts"
MODE, EXCLUDED = "quota.openova.io/mode", "quota.openova.io/exclude-ports"


@pytest.fixture(scope="module")
def api(installed: Installed) -> Iterator[str]:
    """A Deployment of two pods and its Service, written by somebody who knows of no quotas; answers HOST:PORT."""
    name = "accounts-api"
    objects = [deployment(name, installed.image, 2), service(name, name, 80, "http")]
    installed.cluster.kubectl("-n", installed.api, "apply", "-f", "-", given=objects)
    installed.cluster.kubectl("-n", installed.api, "rollout", "status", f"deployment/{name}", "--timeout=120s")
    address = f"{name}.{installed.api}.svc:80"
    until(lambda: isinstance(installed.fetch(f"http://{address}/", key=False)[0], int), "the Service leads there")
    yield address
    installed.cluster.kubectl("-n", installed.api, "delete", "deployment,service", name)


def test_pods_of_a_labelled_namespace_are_metered_and_their_service_leads_to_the_sidecar(
    installed: Installed, api: str
) -> None:
    pods = installed.ready_pods("accounts-api")
    assert len(pods) == 2
    for each in pods:
        native = [c["name"] for c in each["spec"].get("initContainers", ()) if c.get("restartPolicy") == "Always"]
        plain = [c["name"] for c in each["spec"]["containers"]]
        assert "quota-sidecar" in [*native, *plain]
    slices = installed.cluster.get(
        "-n", installed.api, "endpointslices", "-l", "kubernetes.io/service-name=accounts-api"
    )  # fmt: skip
    assert {port["port"] for each in slices["items"] for port in each["ports"]} == {PROXY_PORT}
    inside = ("-n", installed.api, "exec", pods[0]["metadata"]["name"], "-c", "quota-sidecar", "--")
    assert installed.cluster.kubectl(*inside, "ls", "/var/run/secrets/kubernetes.io/serviceaccount") == "", "no token"
    assert "failed" not in installed.cluster.kubectl(*inside, "sidecar", "check")

    assert installed.fetch(f"http://{api}{PATH}", key=False)[0] == 401
    before = installed.settled()
    status, fields, body = installed.fetch(f"http://{api}{PATH}")
    assert (status, json.loads(body)["path"]) == (200, PATH)
    assert float(fields["x-credits-remaining"]) == pytest.approx(FUNDS - (before + 1) / 100)
    until(lambda: installed.settled() == before + 1, "the charge is settled", 10)


def test_a_rollout_under_load_loses_no_request_and_every_answer_is_charged_once(installed: Installed, api: str) -> None:
    before = installed.settled()
    answered: dict[str, Any] = {}
    calling = threading.Thread(target=lambda: answered.update(installed.calls(api, 50)))
    calling.start()
    time.sleep(5)
    for _ in range(2):
        installed.cluster.kubectl("-n", installed.api, "rollout", "restart", "deployment/accounts-api")
        installed.cluster.kubectl(
            "-n", installed.api, "rollout", "status", "deployment/accounts-api", "--timeout=120s"
        )  # fmt: skip
    calling.join()
    assert answered.pop("trouble") == {}
    assert set(answered) == {"200"}
    until(lambda: installed.settled() == before + answered["200"], "every answer is charged, once", 20)
    until(lambda: installed.metered() == installed.settled(), "OpenMeter has what the ledger has", 30)


def test_while_the_ledger_is_away_pods_stay_ready_and_say_so(installed: Installed, api: str) -> None:
    def signalled(name: str) -> None:
        code = f"import os, signal; os.kill(1, signal.{name})"
        installed.cluster.kubectl("-n", installed.platform, "exec", "valkey", "--", PYTHON, "-c", code)

    signalled("SIGUSR1")
    try:
        until(lambda: installed.fetch(f"http://{api}{PATH}")[0] == 503, "refused")
        time.sleep(6)  # more than the readiness probe needs to fail
        assert len(installed.ready_pods("accounts-api")) == 2
        status, fields, _ = installed.fetch(f"http://{api}{PATH}")
        assert (status, "retry-after" in fields) == (503, True)
    finally:
        signalled("SIGUSR2")
    until(lambda: installed.fetch(f"http://{api}{PATH}")[0] == 200, "charged again")


def test_a_sidecar_that_ends_is_started_again_while_its_application_runs_on(installed: Installed, api: str) -> None:
    name = installed.ready_pods("accounts-api")[0]["metadata"]["name"]

    def restarts() -> int:
        status = installed.cluster.get("-n", installed.api, "pod", name)["status"]
        every = [*status.get("initContainerStatuses", ()), *status["containerStatuses"]]
        return int(next(each["restartCount"] for each in every if each["name"] == "quota-sidecar"))

    # The first process of a container cannot be killed from inside, but it ends by itself when it is asked to.
    code = "import os, signal; os.kill(1, signal.SIGTERM)"
    installed.cluster.kubectl("-n", installed.api, "exec", name, "-c", "quota-sidecar", "--", PYTHON, "-c", code)
    until(lambda: restarts() == 1, "started again")
    until(lambda: len(installed.ready_pods("accounts-api")) == 2, "ready again")


def test_in_redirect_mode_the_applications_port_leads_to_the_sidecar_whatever_the_address(installed: Installed) -> None:
    of_two = pod(
        "redirected", container(installed.image, "api", {"http": 8080}),
        container(installed.image, "api", {}, PORT="9000") | {"name": "other"},
        annotations={MODE: "redirect", EXCLUDED: "9000"},
    )  # fmt: skip
    of_two["spec"]["containers"][0]["readinessProbe"] = {"httpGet": {"path": "/healthz", "port": 8080}}
    of_two["spec"]["containers"][0]["livenessProbe"] = {"tcpSocket": {"port": 8080}}
    installed.cluster.kubectl("-n", installed.api, "apply", "-f", "-", given=of_two)
    installed.cluster.kubectl("-n", installed.api, "wait", "--for=condition=Ready", "pod/redirected", "--timeout=90s")
    addresses = installed.cluster.get("-n", installed.api, "pod", "redirected")["status"]["podIPs"]
    for address in (each["ip"] for each in addresses):
        host = f"[{address}]" if ":" in address else address
        assert installed.fetch(f"http://{host}:8080{PATH}", key=False)[0] == 401
        assert installed.fetch(f"http://{host}:8080{PATH}")[0] == 200
        assert installed.fetch(f"http://{host}:9000{PATH}", key=False)[0] == 200, "excluded"
        assert installed.fetch(f"http://{host}:{PROXY_PORT}{PATH}")[0] not in (200, 401), "no way past the redirection"
    installed.cluster.kubectl("-n", installed.api, "delete", "pod", "redirected")


def test_a_job_ends_though_it_has_a_sidecar(installed: Installed) -> None:
    work = container(installed.image, "work", {"http": 8080}) | {"command": [PYTHON, "-c", "print('done')"]}
    template = pod("once", work)
    job = {
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "once"},
        "spec": {"template": {"metadata": {}, "spec": {**template["spec"], "restartPolicy": "Never"}}},
    }  # fmt: skip
    installed.cluster.kubectl("-n", installed.api, "apply", "-f", "-", given=job)
    installed.cluster.kubectl("-n", installed.api, "wait", "--for=condition=complete", "job/once", "--timeout=120s")
    installed.cluster.kubectl("-n", installed.api, "delete", "job", "once")


def changed(of: dict[str, Any], **spec: Any) -> dict[str, Any]:
    return {**of, "spec": {**of["spec"], **spec}}


def test_what_cannot_have_a_sidecar_is_refused_with_the_reason_and_who_opts_out_is_left_alone(
    installed: Installed,
) -> None:
    def made(of: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(
            installed.cluster.kubectl(
                "-n", installed.api, "create", "--dry-run=server", "-o", "json", "-f", "-", given=of
            )
        )
        return answer

    usual = pod("p", container(installed.image, "api", {"http": 8080}))
    assert made(usual)["metadata"]["labels"]["quota.openova.io/injected"] == "true"
    with pytest.raises(Refused, match="hostNetwork is true"):
        made(changed(usual, hostNetwork=True))
    with pytest.raises(Refused, match=r"mod is not known; did you mean quota\.openova\.io/mode"):
        made({**usual, "metadata": {"name": "p", "annotations": {"quota.openova.io/mod": "redirect"}}})
    optout = made({**usual, "metadata": {"name": "p", "labels": {INJECT: "false"}}})
    assert [each["name"] for each in optout["spec"]["containers"]] == ["api"]
    assert "initContainers" not in optout["spec"]
    # What was injected before, as after a backup's restore, comes out as it went in.
    again = made(usual)
    for field in ("uid", "creationTimestamp", "resourceVersion", "generation"):
        again["metadata"].pop(field, None)
    assert made(again)["spec"]["containers"] == again["spec"]["containers"]


def test_a_namespace_that_allows_no_privileges_takes_injected_pods_but_no_redirection(installed: Installed) -> None:
    cluster, strict = installed.cluster, f"{installed.release}-strict"
    cluster.kubectl("create", "namespace", strict)
    try:
        level = "pod-security.kubernetes.io/enforce=restricted"
        cluster.kubectl("label", "namespace", strict, level, f"{INJECT}=true")
        allowed = container(installed.image, "api", {"http": 8080}) | {
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        }
        secure = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
        usual = changed(pod("p", allowed), securityContext=secure)
        cluster.kubectl("-n", strict, "create", "--dry-run=server", "-f", "-", given=usual)
        redirected = {**usual, "metadata": {"name": "p", "annotations": {MODE: "redirect"}}}
        with pytest.raises(Refused, match='violates PodSecurity "restricted'):
            cluster.kubectl("-n", strict, "create", "--dry-run=server", "-f", "-", given=redirected)
    finally:
        cluster.kubectl("delete", "namespace", strict, "--wait=false")


def test_pods_are_injected_while_injectors_are_replaced(installed: Installed) -> None:
    usual = pod("p", container(installed.image, "api", {"http": 8080}))
    injector = f"deployment/{installed.release}-quota-sidecar-injector"
    installed.cluster.kubectl("-n", installed.system, "rollout", "restart", injector)
    end = time.monotonic() + 20
    while time.monotonic() < end:
        made = installed.cluster.kubectl(
            "-n", installed.api, "create", "--dry-run=server", "-o", "json", "-f", "-", given=usual
        )  # fmt: skip
        assert json.loads(made)["metadata"]["labels"]["quota.openova.io/injected"] == "true"
    installed.cluster.kubectl("-n", installed.system, "rollout", "status", injector, "--timeout=60s")
