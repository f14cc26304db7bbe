"""Redirected traffic for real: a client's host, a pod's with rules and gateway, an application that knows nothing."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sidecar.kubernetes import names
from sidecar.kubernetes.injection import InjectionSettings, inject
from sidecar.ledger.accounts.api_keys import digest_of
from tests.host.kit import CLIENT, POD, Host, hosts

KEY = "this-is-the-key-of-tpp-0"
SHOW = ("-H", f"X-API-Key: {KEY}")
ACCOUNTS = f"""
accounts:
  - id: tpp
    mode: postpaid
    currency: GBP
    period: {{every: month}}
    prices: {{api_calls: {{model: standard, amount: "0.01"}}}}
    api_keys: [{{sha256: {digest_of(KEY)}}}]
"""
FAMILIES = pytest.mark.parametrize("address", [POD[0], f"[{POD[1]}]"], ids=["IPv4", "IPv6"])
SERVED, ONLY_HERE, EXCLUDED = 8080, 8081, 9090


@dataclass
class Pod:
    """What runs, and who looks at it from outside."""

    client: Host
    host: Host

    def ask(self, address: str, port: int, *options: str, path: str = "/accounts") -> tuple[int, dict[str, str], Any]:
        return self.client.curl(f"http://{address}:{port}{path}", *options)

    @property
    def status(self) -> dict[str, Any]:
        document: dict[str, Any] = self.host.curl("http://127.0.0.1:15721/v1/status")[2]
        return document

    def charged(self) -> int:
        """Events in the outbox, once all holds are settled."""
        while self.status["ledger"]["backlog_operations"]:
            pass
        return int(self.status["outbox"]["events"])


@pytest.fixture(scope="module", params=["nft", "iptables"])
def pod(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pod]:
    directory = tmp_path_factory.mktemp("pod")
    config, accounts = directory / "gateway.yaml", directory / "accounts.yaml"
    config.write_text(json.dumps({"valkey": f"embedded://{directory}/valkey"}))
    accounts.write_text(ACCOUNTS)
    steps, sidecar = injected()
    arguments = [str(config) if each == names.CONFIG_FILE else each for each in sidecar["args"]]
    environment = {each["name"]: each.get("value", POD[0]) for each in sidecar["env"]}  # the rest is the pod's address
    with hosts() as (client, host):
        host.run(sys.executable, "-m", "sidecar", "account", "load", str(accounts), "-c", str(config))
        for _ in range(2):  # an init container may run again
            for step in steps:
                host.run(sys.executable, "-m", "sidecar", *step["args"], "--backend", request.param)
        places = (f":{SERVED}", f"{POD[0]}:{ONLY_HERE}", f"[{POD[1]}]:{ONLY_HERE}", f":{EXCLUDED}")
        with (
            host.running("tests.host.application", *places),
            host.running("sidecar", *arguments, "--json", **environment),
        ):
            yield Pod(client, host)


def injected() -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """What injection makes of the application's pod: the steps before it, and the gateway's container."""
    ports = f"{SERVED},{ONLY_HERE}"
    api = {
        "name": "app",
        "image": "app:1",
        "ports": [{"name": "http", "containerPort": SERVED}, {"name": "metrics", "containerPort": EXCLUDED}],
        "readinessProbe": {"httpGet": {"path": "/healthz", "port": "http"}, "timeoutSeconds": 5},
    }
    annotations = {names.MODE: "redirect", names.PORTS: ports}
    made = inject(
        {"metadata": {"annotations": annotations}, "spec": {"containers": [api]}}, InjectionSettings(drain_s=0)
    )
    probe = made.pod["spec"]["containers"][0]["readinessProbe"]["httpGet"]
    assert probe == {"path": "/app/app/readyz", "port": names.HEALTH_PORT}
    *steps, sidecar = made.pod["spec"]["initContainers"]
    return steps, sidecar


def redirect(host: Host, backend: str, *arguments: str) -> None:
    host.run(sys.executable, "-m", "sidecar", "redirect", "--to", "15701", "--backend", backend, *arguments)


@FAMILIES
@pytest.mark.parametrize("port", [SERVED, ONLY_HERE])
def test_a_call_on_the_application_s_port_is_charged_and_arrives_on_that_port(
    pod: Pod, address: str, port: int
) -> None:
    before = pod.charged()
    status, fields, said = pod.ask(address, port, *SHOW)
    assert (status, said["port"], said["path"]) == (200, port, "/accounts")
    assert fields["x-credits-charged"] == "0.01"
    assert said["forwarded_for"] == CLIENT[0 if "." in address else 1]
    assert pod.charged() == before + 1


@FAMILIES
@pytest.mark.parametrize("port", [SERVED, ONLY_HERE])
def test_the_application_cannot_be_reached_except_through_the_gateway(pod: Pod, address: str, port: int) -> None:
    status, _, said = pod.ask(address, port)
    assert (status, said["type"]) == (401, "urn:quota-sidecar:unidentified")


@FAMILIES
def test_the_application_hears_from_its_own_pod_alone_and_over_few_connections(pod: Pod, address: str) -> None:
    first = pod.ask(address, SERVED, *SHOW)[2]["connections"]
    answers = [pod.ask(address, SERVED, *SHOW)[2] for _ in range(5)]
    assert {each["peer"] for each in answers} == {address.strip("[]")}
    assert answers[-1]["connections"] <= first + 1, "the gateway keeps its connections, and none goes round in circles"


@FAMILIES
def test_a_port_that_is_not_redirected_is_untouched(pod: Pod, address: str) -> None:
    before = pod.charged()
    status, fields, said = pod.ask(address, EXCLUDED)
    assert (status, said["port"], said["peer"]) == (200, EXCLUDED, CLIENT[0 if "." in address else 1])
    assert "x-credits-charged" not in fields
    assert pod.charged() == before


@FAMILIES
def test_who_connects_to_the_gateway_s_own_port_is_sent_nowhere(pod: Pod, address: str) -> None:
    status, _, said = pod.ask(address, 15701, *SHOW)
    assert (status, "Empty reply" in said or "reset" in said) == (0, True), said
    assert pod.status["connections"] == 0
    assert not any(place.endswith(":15701") for place in pod.status["upstream"].split(", "))


@pytest.mark.parametrize("address", ["127.0.0.1", "[::1]", POD[0], f"[{POD[1]}]"])
def test_within_the_pod_the_application_is_reached_directly(pod: Pod, address: str) -> None:
    status, _, said = pod.host.curl(f"http://{address}:{SERVED}/x")
    assert (status, said["port"], said["forwarded_for"]) == (200, SERVED, None)


@FAMILIES
def test_a_probe_reaches_the_application_past_the_gateway_and_is_not_charged(pod: Pod, address: str) -> None:
    before = pod.charged()
    assert pod.ask(address, 15720, path="/app/app/readyz")[0] == 200
    assert pod.ask(address, 15720, path="/readyz")[0] == 200
    assert pod.charged() == before


def test_the_admin_side_is_not_reached_from_outside(pod: Pod) -> None:
    assert pod.ask(POD[0], 15721, path="/v1/status")[0] == 0


@pytest.mark.parametrize("backend", ["nft", "iptables"])
def test_with_a_star_all_ports_are_redirected_but_the_excluded(backend: str, tmp_path: Path) -> None:
    config = tmp_path / "gateway.yaml"
    config.write_text(json.dumps({
        "valkey": f"embedded://{tmp_path}/valkey", "listen": {"host": "::", "port": 15701}, "admin": {"port": 15721},
        "upstream": {"original_destination": True},
    }))  # fmt: skip
    with hosts() as (client, host):
        redirect(host, backend, "--ports", "*", "--exclude", f"{EXCLUDED}")
        places = [f":{port}" for port in (SERVED, ONLY_HERE, EXCLUDED)]
        with (
            host.running("tests.host.application", *places),
            host.running("sidecar", "run", "-c", str(config), "--json"),
        ):
            for address in (POD[0], f"[{POD[1]}]"):
                statuses = [client.curl(f"http://{address}:{port}/")[0] for port in (SERVED, ONLY_HERE, EXCLUDED)]
                assert statuses == [401, 401, 200]
                assert client.curl(f"http://{address}:15701/", *SHOW)[0] == 0, "that leads nowhere but here"
            redirect(host, backend, "--remove")
            assert client.curl(f"http://{POD[0]}:{SERVED}/")[0] == 200


@pytest.mark.parametrize("backend", ["nft", "iptables"])
def test_where_the_tools_may_not_change_the_network_the_message_says_what_is_needed(backend: str) -> None:
    with hosts() as (_, host):
        without = ("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin")
        command = (*without, sys.executable, "-m", "sidecar", "redirect", "--ports", "8080", "--backend", backend)
        done = host.run(*command, check=False)
    assert done.returncode == 1
    assert "CAP_NET_ADMIN" in done.stderr
    assert "Traceback" not in done.stderr
