"""How long the admission webhook takes: ``python -m loadtests.injector [--reviews 2000] [--connections 4] [--large]``.

Real reviews, over TLS on kept connections, to ``sidecar injector`` in a process of its own. With ``--large`` one more
connection has a pod of a megabyte reviewed all the while: nobody else should have to wait for that.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import json
import re
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import yaml

from loadtests.kit.processes import RigError, cpu_s
from sidecar.kubernetes.certificates import renewed, service_names

NAMES = service_names("injector", "quota")
EXAMPLE = Path(__file__).parents[1] / "examples" / "kubernetes" / "accounts-api.yaml"
LARGE_VARIABLES = 18_000


def pod() -> dict[str, Any]:
    """The example's pod, as the API server completes it."""
    deployment = next(each for each in yaml.safe_load_all(EXAMPLE.read_text()) if each["kind"] == "Deployment")
    template: dict[str, Any] = deployment["spec"]["template"]
    owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "api-7d4b9c6f5d", "uid": "0b0a", "controller": True}
    fields: dict[str, Any] = {f"f:field-{number}": {".": {}, "f:value": {}} for number in range(60)}
    managed = {"manager": "kube-controller-manager", "operation": "Update", "apiVersion": "v1", "fieldsV1": fields}
    metadata = {**template["metadata"], "generateName": "api-7d4b9c6f5d-", "ownerReferences": [owner]}
    return {"apiVersion": "v1", "kind": "Pod", **template, "metadata": {**metadata, "managedFields": [managed]}}


def request(number: int, obj: dict[str, Any]) -> bytes:
    kind = {"group": "", "version": "v1", "kind": "Pod"}
    document = {
        "kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1",
        "request": {
            "uid": f"705ab4f5-6393-11e8-b7cc-{number:012}", "kind": kind, "requestKind": kind, "namespace": "bank",
            "resource": {"group": "", "version": "v1", "resource": "pods"}, "operation": "CREATE", "object": obj,
            "userInfo": {"username": "system:serviceaccount:kube-system:replicaset-controller"}, "dryRun": False,
            "oldObject": None, "options": {"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"},
        },
    }  # fmt: skip
    body = json.dumps(document).encode()
    head = f"POST /mutate?timeout=5s HTTP/1.1\r\nHost: {NAMES[0]}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


class Client:
    """One connection. ``took`` has milliseconds."""

    def __init__(self) -> None:
        self.took: list[float] = []

    async def run(self, port: int, context: ssl.SSLContext, requests: list[bytes]) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=NAMES[0])
        try:
            for each in requests:
                sent = time.perf_counter()
                writer.write(each)
                head = await reader.readuntil(b"\r\n\r\n")
                length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
                body = await reader.readexactly(int(length))
                self.took.append((time.perf_counter() - sent) * 1000)
                if b'"patch":' not in body:
                    raise RigError(f"a review was not answered with a patch: {body[:300]!r}")
        finally:
            writer.close()


async def measure(port: int, context: ssl.SSLContext, reviews: int, connections: int, large: bool) -> None:
    small = pod()
    requests = [request(number, small) for number in range(reviews)]
    warm = Client()
    await warm.run(port, context, requests[:50])
    clients = [Client() for _ in range(connections)]
    heavy = Client()
    tasks = []
    if large:
        big = copy.deepcopy(small)
        variables = [{"name": f"VARIABLE_{number}", "value": "of some length"} for number in range(LARGE_VARIABLES)]
        big["spec"]["containers"][0]["env"] = variables
        tasks.append(asyncio.get_running_loop().create_task(heavy.run(port, context, [request(0, big)] * reviews)))
        await asyncio.sleep(0.2)
    began = time.perf_counter()
    await asyncio.gather(*(each.run(port, context, requests[at::connections]) for at, each in enumerate(clients)))
    wall_s = time.perf_counter() - began
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    took = sorted(ms for each in clients for ms in each.took)
    marks = statistics.quantiles(took, n=1000)
    print(f"{len(took)} reviews of {len(requests[0]):,} bytes, {connections} connections: {len(took) / wall_s:,.0f}/s")
    print(f"p50 {marks[499]:.2f} ms, p99 {marks[989]:.2f} ms, p99.9 {marks[998]:.2f} ms, most {took[-1]:.2f} ms")
    if large:
        shown = f"{len(heavy.took)} meanwhile, {statistics.median(heavy.took):.0f} ms each" if heavy.took else "none"
        print(f"pods of a megabyte: {shown}")


def within(health_port: int) -> str:
    """What the injector says itself: a client's time has that of other clients' reviews, and of this process, in it."""
    text = httpx.get(f"http://127.0.0.1:{health_port}/metrics").text
    found = dict(re.findall(r'duration_seconds_bucket\{le="([^"]+)"\} (\S+)', text))
    shares = [f"{float(found[le]) / float(found['+Inf']):.2%} ≤ {float(le) * 1e3:g} ms" for le in ("0.005", "0.02")]
    return ", ".join(shares)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reviews", type=int, default=2_000)
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--large", action="store_true")
    options = parser.parse_args()
    bundle = renewed(None, NAMES, datetime.now(UTC))
    context = ssl.create_default_context(cadata=bundle.ca_crt.decode())
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "tls.crt").write_bytes(bundle.tls_crt)
        (Path(place) / "tls.key").write_bytes(bundle.tls_key)
        process = subprocess.Popen(
            [
                sys.executable, "-m", "sidecar", "injector", "--tls-cert-file", f"{place}/tls.crt",
                "--tls-key-file", f"{place}/tls.key", "--kubernetes-version", "1.31", "--host", "127.0.0.1",
                "--port", "0", "--health-port", "0", "--drain-delay", "0", "--json",
            ],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            assert process.stdout is not None
            ready = json.loads(process.stdout.readline())
            before = cpu_s([process.pid])
            asyncio.run(measure(ready["port"], context, options.reviews, options.connections, options.large))
            print(
                f"CPU of the injector: {(cpu_s([process.pid]) - before) * 1e3:.0f} ms; {within(ready['health_port'])}"
            )
        finally:
            process.terminate()
            process.wait(30)


if __name__ == "__main__":
    main()
