"""The admission webhook over TLS, with what API servers send, and with what they never would."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import ssl
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import kubernetes_validate
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from structlog.testing import capture_logs

from sidecar.cli import build
from sidecar.kubernetes import admission, names, serving, webhook
from sidecar.kubernetes.admission import BODY_BYTES_MAX
from sidecar.kubernetes.certificate_sources import FromFiles
from sidecar.kubernetes.certificates import Bundle, renewed, service_names
from sidecar.kubernetes.injection import InjectionSettings
from sidecar.kubernetes.versions import Version
from sidecar.kubernetes.webhook import Injector, ListenAddresses
from tests.integration.kubernetes.client import Connection
from tests.support.processes import running, sidecar
from tests.unit.kubernetes.reviews import UID, pod, review_of

NAMES = service_names("injector", "quota")
NEWEST = ".".join(kubernetes_validate.latest_version().split(".")[:2])
NOW = datetime.now(UTC)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return renewed(None, NAMES, NOW)


@pytest.fixture
def files(bundle: Bundle, tmp_path: Path) -> FromFiles:
    return written(tmp_path, bundle.tls_crt, bundle.tls_key)


def written(place: Path, certificate: bytes, key: bytes) -> FromFiles:
    (place / "tls.crt").write_bytes(certificate)
    (place / "tls.key").write_bytes(key)
    return FromFiles(place / "tls.crt", place / "tls.key", every_s=0.02)


@asynccontextmanager
async def served(injector: Injector) -> AsyncIterator[tuple[int, int]]:
    """Both ports of one that is ready."""
    async with injector.serving(ListenAddresses("127.0.0.1", 0, 0)) as (port, health_port):
        await until_ready(health_port)
        yield port, health_port


async def health(port: int, path: str = "/readyz") -> tuple[int, str]:
    async with httpx.AsyncClient(verify=False) as client:  # which spares it reading certificates that it has no use for
        answer = await client.get(f"http://127.0.0.1:{port}{path}")
    return answer.status_code, answer.text


async def until_ready(port: int) -> None:
    async with asyncio.timeout(5):
        while (await health(port))[0] != 200:
            await asyncio.sleep(0.01)


async def counted(port: int) -> dict[str, int]:
    found = re.findall(r'sidecar_injector_requests_total\{result="(\w+)"\} (\d+)', (await health(port, "/metrics"))[1])
    assert [result for result, _ in found] == ["injected", "unchanged", "refused", "malformed", "error"]
    return {result: int(number) for result, number in found if number != "0"}


async def test_a_review_over_tls_is_answered_with_a_patch_that_makes_a_valid_pod(
    bundle: Bundle, files: FromFiles
) -> None:
    async with served(Injector(InjectionSettings(), files)) as (port, health_port):
        connection = await Connection.open(port, bundle.ca_crt)
        answer = await connection.post(review_of(pod()))
        assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
        assert "server" not in answer.headers
        response = json.loads(answer.body)["response"]
        assert (response["uid"], response["allowed"], response["patchType"]) == (UID, True, "JSONPatch")
        after = answer.patched(pod())
        assert after["spec"]["initContainers"][-1]["name"] == names.CONTAINER
        for version in ("1.29", NEWEST):
            kubernetes_validate.validate(after, version, strict=True)
        again = await connection.post(review_of(after))
        assert json.loads(again.body)["response"] == {"uid": UID, "allowed": True}
        refused = await connection.post(review_of(pod({"ports": "grpc"}), dryRun=True))
        assert json.loads(refused.body)["response"]["allowed"] is False
        assert await counted(health_port) == {"injected": 1, "unchanged": 1, "refused": 1}
        metrics = (await health(health_port, "/metrics"))[1]
        assert "sidecar_injector_request_duration_seconds_count 3.0" in metrics
        assert re.search(r"^process_resident_memory_bytes \S+$", metrics, re.M)
        (ends,) = re.findall(r"^sidecar_injector_certificate_expiry_timestamp_seconds (\S+)", metrics, re.M)
        assert float(ends) == int((NOW + timedelta(days=365)).timestamp())
        connection.close()


MALFORMED: dict[str, tuple[dict[str, Any], int, str]] = {
    "no JSON": ({"body": b"{"}, 400, "no JSON"),
    "not UTF-8": ({"body": b'{"kind": "\xff"}'}, 400, "no JSON"),
    "nothing": ({"body": b""}, 400, "no JSON"),
    "another object": ({"body": json.dumps(pod()).encode()}, 400, "not an AdmissionReview"),
    "the version before": (
        {"body": json.dumps(review_of(pod()) | {"apiVersion": "admission.k8s.io/v1beta1"}).encode()},
        400,
        "apiVersion should be admission.k8s.io/v1, not 'admission.k8s.io/v1beta1'",
    ),
    "far too deep": ({"body": b'{"a":' * 100_000}, 400, "no JSON"),
    "another content type": ({"body": b"{}", "kind": "text/yaml"}, 415, "should be application/json"),
    "compressed": ({"body": b"x", "extra": "Content-Encoding: gzip\r\n"}, 415, "should not be encoded"),
}


@pytest.mark.parametrize(("how", "status", "words"), MALFORMED.values(), ids=MALFORMED)
async def test_what_is_no_review_gets_a_clear_answer(
    how: dict[str, Any], status: int, words: str, bundle: Bundle, files: FromFiles
) -> None:
    async with served(Injector(InjectionSettings(), files)) as (port, health_port):
        connection = await Connection.open(port, bundle.ca_crt)
        connection.send(**how)
        answer = await connection.answer()
        assert answer.status == status
        assert words in answer.body.decode()
        assert "Traceback" not in answer.body.decode()
        assert await counted(health_port) == {"malformed": 1}
        connection.close()


async def test_what_is_too_large_is_refused_before_all_of_it_came(bundle: Bundle, files: FromFiles) -> None:
    injector = Injector(InjectionSettings(), files)
    async with served(injector) as (port, _):
        announced = await Connection.open(port, bundle.ca_crt)
        announced.send(b"", length=BODY_BYTES_MAX + 1)
        assert (await announced.answer()).status == 413
        streamed = await Connection.open(port, bundle.ca_crt)
        streamed.send(b"", extra="Transfer-Encoding: chunked\r\n")
        for _ in range(8):
            streamed.writer.write(b"100000\r\n" + b" " * 0x100000 + b"\r\n")
        answer = await streamed.answer()
        assert (answer.status, answer.body) == (413, b"the review has more than 7340032 bytes\n")
        assert repr(injector) == "Injector(ready, 0 bytes buffered)"
        announced.close()
        streamed.close()


async def test_the_largest_pods_do_not_keep_others_waiting(
    bundle: Bundle, files: FromFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = pod()
    large["spec"]["containers"][0]["env"] = [{"name": f"V{number}", "value": "x"} for number in range(20_000)]
    body = json.dumps(review_of(large)).encode()
    begun, others_are_done = threading.Event(), threading.Event()

    def slow(document: bytes, settings: InjectionSettings) -> admission.Answer:
        if len(document) == len(body):
            begun.set()
            assert others_are_done.wait(10)
        return admission.review(document, settings)

    monkeypatch.setattr(webhook, "review", slow)
    async with served(Injector(InjectionSettings(), files)) as (port, _):
        heavy, light = [await Connection.open(port, bundle.ca_crt) for _ in range(2)]
        heavy.send(body)
        waiting = asyncio.get_running_loop().create_task(heavy.answer())
        async with asyncio.timeout(5):
            while not begun.is_set():
                await asyncio.sleep(0.01)
            for _ in range(5):
                assert (await light.post(review_of(pod()))).status == 200
        assert not waiting.done()
        others_are_done.set()
        answer = await waiting
        assert answer.patched(large)["spec"]["containers"][0]["env"] == large["spec"]["containers"][0]["env"]
        heavy.close()
        light.close()


async def test_reviews_that_would_not_fit_in_memory_together_are_put_off(
    bundle: Bundle, files: FromFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook, "BUFFERED_BYTES_MAX", 3_000)
    injector = Injector(InjectionSettings(), files)
    async with served(injector) as (port, health_port):
        first, second = [await Connection.open(port, bundle.ca_crt) for _ in range(2)]
        first.send(b" " * 2_000, length=2_001)
        async with asyncio.timeout(5):
            while "2000 bytes" not in repr(injector):
                await asyncio.sleep(0.01)
        answer = await second.post(b" " * 2_000)
        assert (answer.status, answer.body) == (503, b"too many reviews at a time\n")
        assert await counted(health_port) == {"error": 1}
        first.close()
        second.close()


async def test_a_review_that_does_not_arrive_is_not_waited_for(bundle: Bundle, files: FromFiles) -> None:
    async with served(Injector(InjectionSettings(), files, read_timeout_s=0.1)) as (port, _):
        connection = await Connection.open(port, bundle.ca_crt)
        connection.send(b'{"kind"', length=1_000)
        answer = await connection.answer()
        assert (answer.status, answer.body) == (408, b"the review did not arrive within 0.1 s\n")
        connection.close()


async def test_a_client_that_leaves_in_the_middle_is_nobody_s_trouble(bundle: Bundle, files: FromFiles) -> None:
    injector = Injector(InjectionSettings(), files)
    async with served(injector) as (port, _):
        connection = await Connection.open(port, bundle.ca_crt)
        connection.send(b'{"kind"', length=1_000)
        async with asyncio.timeout(5):
            while "7 bytes" not in repr(injector):
                await asyncio.sleep(0.01)
            connection.close()
            while "ready, 0 bytes" not in repr(injector):
                await asyncio.sleep(0.01)


async def test_who_connects_and_says_nothing_is_sent_away(
    bundle: Bundle, files: FromFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "HANDSHAKE_TIMEOUT_S", 0.2)
    monkeypatch.setattr(serving, "FIRST_REQUEST_TIMEOUT_S", 0.2)
    async with served(Injector(InjectionSettings(), files)) as (port, _):
        without_handshake = Connection(*await asyncio.open_connection("127.0.0.1", port))
        without_request = await Connection.open(port, bundle.ca_crt)
        without_end = await Connection.open(port, bundle.ca_crt)
        without_end.writer.write(b"POST /mutate HTTP/1.1\r\nHost: x\r\n")
        used = await Connection.open(port, bundle.ca_crt)
        assert (await used.post(review_of(pod()))).status == 200
        for each in (without_handshake, without_request, without_end):
            assert await each.is_closed()
            each.close()
        assert (await used.post(review_of(pod()))).status == 200, "one that was used may be idle"
        used.close()


async def test_connections_beyond_the_limit_wait_for_a_place(
    bundle: Bundle, files: FromFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served(Injector(InjectionSettings(), files)) as (port, _):
        monkeypatch.setattr(serving, "CONNECTIONS_MAX", 2)
        first, second = [await Connection.open(port, bundle.ca_crt) for _ in range(2)]
        third = asyncio.get_running_loop().create_task(Connection.open(port, bundle.ca_crt))
        await asyncio.sleep(0.2)
        assert not third.done()
        first.close()
        async with asyncio.timeout(5):
            connection = await third
        assert (await connection.post(review_of(pod()))).status == 200
        second.close()
        connection.close()


@pytest.mark.parametrize("garbage", [b"\x16\x03garbage" * 20, b"GET / HTTP/1.1\r\n\r\n"], ids=["garbage", "plain HTTP"])
async def test_what_is_no_tls_ends_and_the_next_is_served(garbage: bytes, bundle: Bundle, files: FromFiles) -> None:
    async with served(Injector(InjectionSettings(), files)) as (port, _):
        with socket.create_connection(("127.0.0.1", port)) as sock:
            sock.sendall(garbage)
            sock.setblocking(False)
            reader, _ = await asyncio.open_connection(sock=sock.dup())
            async with asyncio.timeout(5):
                await reader.read()
        connection = await Connection.open(port, bundle.ca_crt)
        assert (await connection.post(review_of(pod()))).status == 200
        connection.close()


async def test_what_is_no_http_is_logged_in_a_line_without_a_traceback(
    bundle: Bundle, files: FromFiles, caplog: pytest.LogCaptureFixture
) -> None:
    with capture_logs() as lines:
        async with served(Injector(InjectionSettings(), files)) as (port, _):
            connection = await Connection.open(port, bundle.ca_crt)
            connection.writer.write(b"POST /mutate HTTP/1.1\r\nContent-Length: -1\r\n\r\n")
            assert (await connection.answer()).status == 400
            connection.close()
    (line,) = [each for each in lines if each["event"] == "cannot serve a request"]
    assert "Content-Length" in line["why"]
    assert "exc_info" not in line
    assert not caplog.records


async def test_what_is_not_the_webhook_is_not_there(bundle: Bundle, files: FromFiles) -> None:
    async with served(Injector(InjectionSettings(), files)) as (port, health_port):
        context = ssl.create_default_context(cadata=bundle.ca_crt.decode())
        async with httpx.AsyncClient(verify=context) as client:
            extensions = {"sni_hostname": NAMES[0]}
            url = f"https://127.0.0.1:{port}"
            assert (await client.get(f"{url}/mutate", extensions=extensions)).status_code == 405
            assert (await client.get(f"{url}/metrics", extensions=extensions)).status_code == 404
            assert (await client.post(f"http://127.0.0.1:{health_port}/mutate")).status_code == 404


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
async def test_tls_is_1_2_or_newer(bundle: Bundle, files: FromFiles) -> None:
    with capture_logs() as lines:
        async with served(Injector(InjectionSettings(), files)) as (port, _):
            connection = await Connection.open(port, bundle.ca_crt, ssl.TLSVersion.TLSv1_2)
            assert (await connection.post(review_of(pod()))).status == 200
            connection.close()
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            context.set_ciphers("ALL:@SECLEVEL=0")
            context.minimum_version = ssl.TLSVersion.TLSv1
            context.maximum_version = ssl.TLSVersion.TLSv1_1
            with pytest.raises(OSError):
                await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=NAMES[0])
    assert ["unsupported protocol" in line["error"] for line in lines if line["event"] == "TLS handshake failed"] == [
        True
    ]


async def test_a_defect_is_an_error_for_one_review_and_not_the_end_of_all(
    bundle: Bundle, files: FromFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise KeyError("spec")

    monkeypatch.setattr(webhook, "review", broken)
    async with served(Injector(InjectionSettings(), files)) as (port, health_port):
        connection = await Connection.open(port, bundle.ca_crt)
        answer = await connection.post(review_of(pod()))
        assert (answer.status, answer.body) == (
            500,
            b"the review failed; the injector's log has the reason\n",
        )
        monkeypatch.undo()
        assert (await connection.post(review_of(pod()))).status == 200
        assert await counted(health_port) == {"injected": 1, "error": 1}
        connection.close()


async def test_without_a_certificate_it_lives_but_is_not_ready_and_says_why(bundle: Bundle, tmp_path: Path) -> None:
    files = FromFiles(tmp_path / "tls.crt", tmp_path / "tls.key", every_s=0.02)
    injector = Injector(InjectionSettings(), files)
    async with injector.serving(ListenAddresses("127.0.0.1", 0, 0)) as (port, health_port):
        async with asyncio.timeout(5):
            while "No such file" not in (await health(health_port))[1]:
                await asyncio.sleep(0.01)
        assert (await health(health_port, "/livez"))[0] == 200
        assert await health(health_port) == (503, f"{tmp_path / 'tls.crt'}: No such file or directory\n")
        written(tmp_path, bundle.tls_crt, bundle.tls_key)
        await until_ready(health_port)
        (await Connection.open(port, bundle.ca_crt)).close()


async def test_a_renewed_certificate_is_shown_to_who_connects_and_open_connections_go_on(
    bundle: Bundle, tmp_path: Path
) -> None:
    # As the kubelet does it: a link to a directory of the day, which is swapped at once.
    later = renewed(bundle, NAMES, NOW + timedelta(days=300))
    assert later.ca_crt == bundle.ca_crt
    today = renewed(Bundle(bundle.ca_crt, bundle.ca_key, b"", b""), NAMES, NOW - timedelta(minutes=1))
    for name, each in (("1", bundle), ("2", today)):
        (tmp_path / name).mkdir()
        written(tmp_path / name, each.tls_crt, each.tls_key)
    (tmp_path / "..data").symlink_to("1")
    for name in ("tls.crt", "tls.key"):
        (tmp_path / name).symlink_to(f"..data/{name}")
    files = FromFiles(tmp_path / "tls.crt", tmp_path / "tls.key", every_s=0.02)
    async with served(Injector(InjectionSettings(), files)) as (port, health_port):
        before = await Connection.open(port, bundle.ca_crt)
        half = await Connection.open(port, bundle.ca_crt)
        body = json.dumps(review_of(pod())).encode()
        half.send(body[:100], length=len(body))
        (tmp_path / "..data_tmp").symlink_to("2")
        (tmp_path / "..data_tmp").rename(tmp_path / "..data")
        async with asyncio.timeout(5):
            while True:
                after = await Connection.open(port, bundle.ca_crt)
                after.close()
                if after.certificate() != before.certificate():
                    break
                await asyncio.sleep(0.01)
        assert (await before.post(review_of(pod()))).status == 200
        half.writer.write(body[100:])
        assert (await half.answer()).status == 200
        assert (await health(health_port))[0] == 200
        before.close()
        half.close()


def encrypted() -> bytes:
    """A key that OpenSSL would ask the terminal for a password for."""
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
    )


@pytest.mark.parametrize("broken", ["cut", "of another", "gone", "empty", "encrypted"])
async def test_half_of_a_renewal_is_logged_once_and_what_was_good_stays(
    broken: str, bundle: Bundle, files: FromFiles, tmp_path: Path
) -> None:
    another = renewed(None, NAMES, NOW)
    with capture_logs() as lines:
        async with served(Injector(InjectionSettings(), files)) as (port, health_port):
            shown = (await Connection.open(port, bundle.ca_crt)).certificate()
            if broken == "gone":
                (tmp_path / "tls.key").unlink()
            else:
                key = {
                    "cut": another.tls_key[:60],
                    "of another": another.tls_key,
                    "empty": b"",
                    "encrypted": encrypted(),
                }
                (tmp_path / "tls.key").write_bytes(key[broken])
            await asyncio.sleep(0.15)
            connection = await Connection.open(port, bundle.ca_crt)
            assert connection.certificate() == shown
            assert (await connection.post(review_of(pod()))).status == 200
            assert (await health(health_port))[0] == 200
            connection.close()
    (line,) = [each for each in lines if each["log_level"] == "error"]
    assert str(tmp_path / "tls.key") in line["error"]
    assert b"".join(another.tls_key.split(b"\n")[1:2]).decode() not in str(lines)


async def test_until_the_cluster_s_version_is_known_there_is_no_answer_and_an_upgrade_is_followed(
    bundle: Bundle, files: FromFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook, "VERSION_EVERY_S", 0.02)
    known: asyncio.Future[Version] = asyncio.get_running_loop().create_future()

    async def version() -> Version:
        return await asyncio.shield(known)

    injector = Injector(InjectionSettings(), files, version)
    async with injector.serving(ListenAddresses("127.0.0.1", 0, 0)) as (port, health_port):
        async with asyncio.timeout(5):
            while "certificate" in (await health(health_port))[1]:
                await asyncio.sleep(0.01)
        assert await health(health_port) == (503, "the cluster's version is not known yet\n")
        connection = await Connection.open(port, bundle.ca_crt)
        assert (await connection.post(review_of(pod()))).status == 503
        known.set_result((1, 32))
        await until_ready(health_port)
        plain = (await connection.post(review_of(pod()))).patched(pod())
        assert plain["spec"]["containers"][-1]["name"] == names.CONTAINER
        known = asyncio.get_running_loop().create_future()
        known.set_result((1, 33))
        async with asyncio.timeout(5):
            while "initContainers" not in (await connection.post(review_of(pod()))).patched(pod())["spec"]:
                await asyncio.sleep(0.01)
        connection.close()


async def test_an_end_waits_for_reviews_under_way(bundle: Bundle, files: FromFiles) -> None:
    injector = Injector(InjectionSettings(), files)
    body = json.dumps(review_of(pod())).encode()
    async with served(injector) as (port, health_port):
        half = await Connection.open(port, bundle.ca_crt)
        half.send(body[:100], length=len(body))
        idle = await Connection.open(port, bundle.ca_crt)
        assert (await idle.post(review_of(pod()))).headers.get("connection") is None
        injector.begin_shutdown()
        assert await health(health_port) == (503, "the injector is stopping\n")
        last = await idle.post(review_of(pod()))
        assert (last.status, last.headers["connection"]) == (200, "close")

        async def rest() -> int:
            await asyncio.sleep(0.1)
            half.writer.write(body[100:])
            return (await half.answer()).status

        finishing = asyncio.get_running_loop().create_task(rest())
    assert await finishing == 200
    with pytest.raises(OSError):
        await Connection.open(port, bundle.ca_crt)
    half.close()
    idle.close()


def arguments(place: Path, *more: str) -> list[str]:
    files = ("--tls-cert-file", str(place / "tls.crt"), "--tls-key-file", str(place / "tls.key"))
    return ["injector", *files, "--host", "127.0.0.1", "--port", "0", "--health-port", "0", "--json", *more]


async def test_the_command_serves_until_it_is_told_to_end_and_finishes_what_it_began(
    bundle: Bundle, files: FromFiles, tmp_path: Path
) -> None:
    variables = {"QUOTA_INJECTOR_IMAGE": "registry.example/sidecar:7", "QUOTA_INJECTOR_MEMORY_LIMIT": "none"}
    variables["QUOTA_INJECTOR_KUBERNETES_VERSION"] = "v1.33.2+k3s1"
    body = json.dumps(review_of(pod())).encode()
    with running(*arguments(tmp_path, "--drain-delay", "0.5"), environment=variables) as made:
        port, health_port = made.ready["port"], made.ready["health_port"]
        await until_ready(health_port)
        first, half = [await Connection.open(port, bundle.ca_crt) for _ in range(2)]
        container = (await first.post(review_of(pod()))).patched(pod())["spec"]["initContainers"][-1]
        assert container["image"] == "registry.example/sidecar:7"
        assert "limits" not in container["resources"]
        half.send(body[:100], length=len(body))
        made.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(2):
            while (await health(health_port))[0] == 200:
                await asyncio.sleep(0.01)
        late = await Connection.open(port, bundle.ca_crt)
        assert (await late.post(review_of(pod()))).status == 200
        await asyncio.sleep(0.7)
        half.writer.write(body[100:])
        assert (await half.answer()).status == 200
        assert await asyncio.to_thread(made.process.wait, 5) == 0
    lines = [json.loads(line) for line in made.errors]
    assert [line["event"] for line in lines if line["event"] in ("listening", "stopping")] == ["listening", "stopping"]
    assert [line["pod"] for line in lines if line["event"] == "gateway injected into the pod"] == [
        "bank/accounts-api-7d4b9c6f5d-*"
    ] * 3


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ([], "KUBERNETES_SERVICE_HOST"),
        (
            ["--self-signed"],
            "--self-signed needs --service, --namespace, --certificate-secret, --webhook-configuration",
        ),
        (["--tls-cert-file", "x"], "give both --tls-cert-file and --tls-key-file"),
        (["--tls-cert-file", "x", "--tls-key-file", "y", "--memory-request", "1Q"], "memory-request"),
        (["--tls-cert-file", "x", "--tls-key-file", "y", "--cpu-limit", "1m"], "cpu request of 100m is above"),
        (["--kubernetes-version", "new"], "'new' is not a version"),
    ],
)
def test_what_is_missing_or_wrong_is_said_at_the_start(
    more: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    has_source = {"--self-signed", "--tls-cert-file"} & set(more)
    files = [] if has_source else ["--tls-cert-file", "x", "--tls-key-file", "y"]
    known = ["--kubernetes-version", "1.31"] if more and "--kubernetes-version" not in more else []
    with pytest.raises(SystemExit) as caught:
        build(["injector"])(["injector", *files, *more, *known])
    assert caught.value.code == 2
    assert words in capsys.readouterr().err


def test_a_port_that_is_taken_is_said_without_a_traceback(files: FromFiles, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = sidecar(*arguments(tmp_path, "--kubernetes-version", "1.31", "--port", str(port)))
    assert done.returncode == 1
    assert f"port {port} is in use on 127.0.0.1; set --port" in done.stderr
    assert "Traceback" not in done.stderr
