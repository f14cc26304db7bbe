"""A cluster as its users see it: kubectl, Helm, and the documented steps from nothing to a metered API."""

from __future__ import annotations

import hashlib
import json
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

ROOT: Final = Path(__file__).parents[2]
PODS: Final = Path(__file__).parent / "pods"
TIMEOUT_S: Final = 180.0
PYTHON: Final = "/opt/quota-sidecar/bin/python"
LAGO_KEY, HMAC_KEY, PASSWORD = (f"{whose}-secret-of-the-test" for whose in ("lago", "webhooks", "valkey"))
ACCOUNT: Final = "tpp-of-the-test"
FUNDS: Final = 100_000
INJECT: Final = "quota.openova.io/inject"


class Refused(Exception):
    """The API server, or a command, said no. The message is what it said."""


@dataclass(frozen=True)
class Cluster:
    """The cluster of kubectl's current context."""

    def kubectl(self, *arguments: str, given: object = None, seconds: float = TIMEOUT_S) -> str:
        """Runs kubectl to its end; its output. ``given``: an object or a list of them, or text, for standard input.

        Raises:
            Refused: it failed.
        """
        text = given if isinstance(given, str) else yaml.safe_dump_all(given if isinstance(given, list) else [given])
        return _ran("kubectl", *arguments, given=None if given is None else text, seconds=seconds)

    def get(self, *arguments: str) -> Any:
        return json.loads(self.kubectl("get", *arguments, "-o", "json"))

    def helm(self, *arguments: str, given: str | None = None) -> str:
        """Runs the Helm that is installed with the tests."""
        return _ran(str(Path(sys.executable).with_name("helm")), *arguments, given=given)


def _ran(*command: str, given: str | None = None, seconds: float = TIMEOUT_S) -> str:
    done = subprocess.run(
        command, input=given, capture_output=True, text=True, timeout=seconds, check=False, cwd=ROOT
    )  # fmt: skip
    if done.returncode:
        raise Refused(f"{' '.join(command[:6])}: {done.stderr.strip()}{done.stdout.strip()}")
    return done.stdout


def until(condition: Callable[[], object], what: str, seconds: float = 60.0) -> None:
    """Looks twice a second until it is so."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.5)


@dataclass(frozen=True)
class Installed:
    """The chart in namespace ``system``; an API's namespace ``api``; ``platform`` has Valkey, Lago and OpenMeter."""

    cluster: Cluster
    image: str
    release: str
    system: str
    api: str
    platform: str
    key: str

    def sidecar(self, *arguments: str, given: object = None) -> str:
        """A command of the program, where the control plane runs, as the documentation has it."""
        deployment = f"deploy/{self.release}-quota-sidecar-control"
        return self.cluster.kubectl(
            "-n", self.system, "exec", "-i", deployment, "--", "sidecar", *arguments, given=given
        )

    def _client(self, *arguments: str, seconds: float = TIMEOUT_S) -> Any:
        """What Python prints, with these arguments, in the client's pod."""
        command = ("-n", self.platform, "exec", "client", "--", PYTHON)
        return json.loads(self.cluster.kubectl(*command, *arguments, seconds=seconds))

    def calls(self, host: str, seconds: float) -> dict[str, Any]:
        """What became of the requests of clients that call for so long."""
        answered: dict[str, Any] = self._client(
            "/scripts/calls.py", host, self.key, str(seconds), seconds=seconds + TIMEOUT_S
        )
        return answered

    def fetch(self, url: str, *, key: bool = True) -> tuple[int | str, dict[str, str], str]:
        """Status, fields and body of a GET in the client's pod; the status is the reason if there was no answer."""
        code = (
            "import json, sys, urllib.request, urllib.error\n"
            "request = urllib.request.Request(sys.argv[1], headers=json.loads(sys.argv[2]))\n"
            "try:\n    answer = urllib.request.urlopen(request, timeout=10)\n"
            "except urllib.error.HTTPError as error:\n    answer = error\n"
            "except OSError as error:\n    print(json.dumps([repr(error), {}, '']))\n    sys.exit()\n"
            "fields = {name.lower(): value for name, value in answer.headers.items()}\n"
            "print(json.dumps([answer.status, fields, answer.read().decode()]))"
        )
        fields = json.dumps({"X-API-Key": self.key} if key else {})
        status, headers, body = self._client("-c", code, url, fields)
        return status, headers, body

    def settled(self) -> int:
        """Units that the ledger has charged the account; none are held."""
        shown = json.loads(self.sidecar("account", "show", ACCOUNT, "--json"))
        assert not sum(each["held"] for each in shown["metrics"]), shown
        return int(sum(each["settled"] for each in shown["metrics"]))

    def metered(self) -> int:
        """Units that OpenMeter has."""
        rows = json.loads(self.fetch(f"http://openmeter.{self.platform}.svc:3001/api/v1/meters/api_calls/query")[2])
        return int(sum(row["value"] for row in rows["data"]))

    def ready_pods(self, app: str) -> list[dict[str, Any]]:
        pods = self.cluster.get("-n", self.api, "pods", "-l", f"app={app}")["items"]
        return [pod for pod in pods if is_ready(pod) and "deletionTimestamp" not in pod["metadata"]]


def is_ready(pod: dict[str, Any]) -> bool:
    conditions = pod.get("status", {}).get("conditions", ())
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def container(image: str, script: str, ports: dict[str, int], **environment: str) -> dict[str, Any]:
    """Runs one of the scripts of ``pods``, from a ConfigMap that the pod mounts."""
    return {
        "name": script, "image": image, "command": [PYTHON, f"/scripts/{script}.py"],
        "ports": [{"name": name, "containerPort": port} for name, port in ports.items()],
        "env": [{"name": name, "value": value} for name, value in environment.items()],
        "volumeMounts": [{"name": "scripts", "mountPath": "/scripts"}],
        "resources": {"requests": {"cpu": "10m", "memory": "48Mi"}},
    }  # fmt: skip


def scripts() -> dict[str, Any]:
    return {
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "scripts"},
        "data": {file.name: file.read_text() for file in PODS.glob("*.py")},
    }  # fmt: skip


def pod(name: str, *containers: dict[str, Any], **metadata: Any) -> dict[str, Any]:
    volume = {"name": "scripts", "configMap": {"name": "scripts"}}
    return {
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}, **metadata},
        "spec": {"containers": list(containers), "volumes": [volume], "terminationGracePeriodSeconds": 30},
    }  # fmt: skip


def service(name: str, app: str, port: int, target: int | str) -> dict[str, Any]:
    return {
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"selector": {"app": app}, "ports": [{"name": "http", "port": port, "targetPort": target}]},
    }  # fmt: skip


def deployment(name: str, image: str, replicas: int) -> dict[str, Any]:
    template = pod(name, container(image, "api", {"http": 8080}))
    template["spec"]["containers"][0]["readinessProbe"] = {
        "httpGet": {"path": "/healthz", "port": "http"},
        "periodSeconds": 1,
    }
    return {
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {
            "replicas": replicas, "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": template["metadata"] | {"name": ""}, "spec": template["spec"]},
        },
    }  # fmt: skip


def catalog(key: str, control: str) -> dict[str, Any]:
    """One metric, one plan, one customer who has bought credits and calls with that key; webhooks go to ``control``."""
    return {
        "webhook_endpoint": {"webhook_url": f"http://{control}:9090/webhooks/lago", "signature_algo": "hmac"},
        "metrics": [{"name": "Calls", "code": "api_calls", "aggregation_type": "sum_agg", "field_name": "calls"}],
        "plans": [
            {
                "name": "Prepaid", "code": "prepaid", "amount_cents": 0, "amount_currency": "GBP",
                "charges": [{"billable_metric_code": "api_calls", "charge_model": "standard", "amount": "0.01"}],
            }
        ],
        "customers": [
            {
                "external_id": ACCOUNT, "currency": "GBP", "plan": "prepaid",
                "metadata": {"quota_mode": "prepaid", "quota_api_key": hashlib.sha256(key.encode()).hexdigest()},
                "wallets": [{"code": "main", "rate_amount": "1", "granted_credits": str(FUNDS)}],
            }
        ],
    }  # fmt: skip


@contextmanager
def installed_into(cluster: Cluster, image: str) -> Iterator[Installed]:
    """The documented steps. Everything has a name of its own, and is removed at the end."""
    webhooks = cluster.get("mutatingwebhookconfigurations")["items"]
    others = [each["metadata"]["name"] for each in webhooks if INJECT in json.dumps(each)]
    assert not others, f"this cluster has an injector already, which would see the pods of these tests: {others}"
    name = f"quota-test-{secrets.token_hex(3)}"
    everything = Installed(
        cluster, image, name, f"{name}-system", f"{name}-api", f"{name}-platform", f"key-{secrets.token_hex(16)}"
    )
    with ExitStack() as undo:
        for namespace in (everything.system, everything.api, everything.platform):
            cluster.kubectl("create", "namespace", namespace)
            undo.callback(cluster.kubectl, "delete", "namespace", namespace, "--wait=false")
        _platform(everything)
        # Also of what failed: a webhook that stays keeps pods of the whole cluster from starting.
        undo.callback(cluster.helm, "uninstall", name, "--namespace", everything.system, "--ignore-not-found")
        _chart(everything)
        control = f"{name}-quota-sidecar-control.{everything.system}.svc"
        sold = yaml.safe_dump(catalog(everything.key, control))
        everything.sidecar("catalog", "apply", "/dev/stdin", "--yes", given=sold)
        until(lambda: ACCOUNT in everything.sidecar("account", "list"), "the customer has an account")
        cluster.kubectl("label", "namespace", everything.api, f"{INJECT}=true")
        cluster.kubectl("-n", everything.api, "apply", "-f", "-", given=scripts())
        yield everything


def _platform(everything: Installed) -> None:
    cluster, platform, image = everything.cluster, everything.platform, everything.image
    standins = container(image, "standins", {"lago": 3000, "openmeter": 3001}, LAGO_API_KEY=LAGO_KEY, HMAC_KEY=HMAC_KEY)
    client = container(image, "client", {}) | {"command": [PYTHON, "-c", "import signal; signal.pause()"]}
    cluster.kubectl(
        "-n", platform, "apply", "-f", "-",
        given=[
            scripts(), pod("valkey", container(image, "ledger", {"valkey": 6379}, PASSWORD=PASSWORD)),
            pod("standins", standins), pod("client", client), service("valkey", "valkey", 6379, "valkey"),
            service("lago", "standins", 3000, "lago"), service("openmeter", "standins", 3001, "openmeter"),
        ],
    )  # fmt: skip
    cluster.kubectl("-n", platform, "wait", "--for=condition=Ready", "pod", "--all", "--timeout=120s")


def _chart(everything: Installed) -> None:
    cluster, platform = everything.cluster, everything.platform
    repository, _, tag = everything.image.rpartition(":")
    cluster.kubectl(
        "-n", everything.system, "create", "secret", "generic", "quota-sidecar-control",
        f"--from-literal=admin-token={secrets.token_hex(32)}", f"--from-literal=lago-api-key={LAGO_KEY}",
        f"--from-literal=lago-webhook-hmac-key={HMAC_KEY}", f"--from-literal=valkey-password={PASSWORD}",
    )  # fmt: skip
    cluster.kubectl(
        "-n", everything.api, "create", "secret", "generic", "quota-sidecar",
        f"--from-literal=valkey-password={PASSWORD}",
    )  # fmt: skip
    values = {
        "image": {"repository": repository, "tag": tag},
        "config": {
            "valkey": f"valkey://valkey.{platform}.svc:6379",
            "metering": {"url": f"http://openmeter.{platform}.svc:3001"},
            "lago": {"url": f"http://lago.{platform}.svc:3000"},
        },
        "dataPlane": {"namespaces": [everything.api]},
        "networkPolicy": {
            "enabled": True, "webhookNamespaces": [platform], "billingPorts": [3000, 3001],
            "injected": {"applicationPorts": [8080, 9000]},
        },
        "controlPlane": {"replicas": 1},
    }  # fmt: skip
    cluster.helm(
        "upgrade", "--install", everything.release, "deploy/chart/quota-sidecar", "--namespace", everything.system,
        "--wait", "--timeout", "150s", "--values", "-", given=yaml.safe_dump(values),
    )  # fmt: skip
