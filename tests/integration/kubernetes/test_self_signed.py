"""Certificates of the webhook's own, with a stand-in for the API server that keeps them."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from sidecar.kubernetes import cluster as cluster_module
from sidecar.kubernetes.certificate_sources import CertificateFault, SelfSigned
from sidecar.kubernetes.certificates import AUTHORITY_VALID, trusts
from sidecar.kubernetes.cluster import Cluster, ClusterError
from sidecar.kubernetes.injection import InjectionSettings
from sidecar.kubernetes.webhook import Injector, ListenAddresses
from tests.integration.kubernetes.api_server import CONFIGURATION, SECRET, SECRETS, ApiServer, api_server, configuration
from tests.integration.kubernetes.client import Connection
from tests.integration.kubernetes.test_injector import health, served, until_ready
from tests.unit.kubernetes.reviews import pod, review_of

NOW = datetime.now(UTC)


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[ApiServer]:
    async with api_server(tmp_path) as made:
        made.put(CONFIGURATION, configuration("injector", "injector"))
        yield made


def source(
    api: ApiServer, clock: Callable[[], datetime] = lambda: NOW, spread_s: float = 0.0, timeout_s: float = 5.0
) -> SelfSigned:
    return SelfSigned(
        Cluster(api.url, api.account, timeout_s=timeout_s), service="injector", namespace="quota",
        secret="injector-tls", configuration="injector", clock=clock, every_s=0.02, spread_s=spread_s,
    )  # fmt: skip


def context() -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)


async def test_it_makes_a_certificate_that_api_servers_trust_before_it_is_ready(api: ApiServer) -> None:
    api.objects.pop(CONFIGURATION)
    injector = Injector(InjectionSettings(), source(api))
    async with injector.serving(ListenAddresses("127.0.0.1", 0, 0)) as (port, health_port):
        async with asyncio.timeout(5):
            while "mutatingwebhookconfigurations/injector answered 404" not in (await health(health_port))[1]:
                await asyncio.sleep(0.01)
        with pytest.raises(OSError):  # what nobody trusts is not shown
            await Connection.open(port, api.secret()["ca.crt"])
    api.put(CONFIGURATION, configuration("injector", "injector"))
    async with served(Injector(InjectionSettings(), source(api))) as (port, _):
        first, second = api.ca_bundles()
        assert first == second == api.secret()["ca.crt"]
        connection = await Connection.open(port, first)
        assert (await connection.post(review_of(pod()))).status == 200
        connection.close()


async def test_two_replicas_that_begin_at_once_show_the_same_certificate(api: ApiServer) -> None:
    api.meeting = asyncio.Barrier(2)  # both see that there is none
    replicas = [Injector(InjectionSettings(), source(api)) for _ in range(2)]
    addresses = ListenAddresses("127.0.0.1", 0, 0)
    async with replicas[0].serving(addresses) as one, replicas[1].serving(addresses) as other:
        for _, health_port in (one, other):
            await until_ready(health_port)
        connections = [await Connection.open(port, api.ca_bundles()[0]) for port, _ in (one, other)]
        assert connections[0].certificate() == connections[1].certificate()
        for each in connections:
            each.close()
    assert api.requests.count(f"POST {SECRETS}") == 2, "one was too late, and took what the other had made"
    assert f"PUT {SECRET}" not in api.requests


async def test_two_replicas_that_renew_at_once_show_the_same_certificate(api: ApiServer) -> None:
    await source(api).refresh(context())
    before = api.secret()
    later = NOW + timedelta(days=300)
    replicas = [source(api, lambda: later) for _ in range(2)]
    api.meeting = asyncio.Barrier(2)
    await asyncio.gather(*(each.refresh(context()) for each in replicas))
    after = api.secret()
    assert (after["ca.crt"], after["tls.crt"] != before["tls.crt"]) == (before["ca.crt"], True)
    assert api.requests.count(f"PUT {SECRET}") == 2
    for each in replicas:
        assert await each.refresh(context()) is None, "both have the one that is kept"


async def test_a_renewal_needs_no_new_trust_and_open_connections_go_on(api: ApiServer) -> None:
    times = [NOW - timedelta(days=300)]
    async with served(Injector(InjectionSettings(), source(api, lambda: times[-1]))) as (port, _):
        authorities = api.ca_bundles()[0]
        before = await Connection.open(port, authorities)
        times.append(NOW)
        async with asyncio.timeout(5):
            while True:
                after = await Connection.open(port, authorities)
                after.close()
                if after.certificate() != before.certificate():
                    break
                await asyncio.sleep(0.01)
        assert after.certificate().not_valid_after_utc == (NOW + timedelta(days=365)).replace(microsecond=0)
        assert (await before.post(review_of(pod()))).status == 200
        before.close()
    assert api.requests.count(f"PATCH {CONFIGURATION}") == 1


async def test_a_new_authority_is_trusted_beside_the_old_one_before_it_is_used(api: ApiServer) -> None:
    old = NOW - AUTHORITY_VALID + timedelta(days=400)
    times = [old]
    made = source(api, lambda: times[-1], spread_s=0.3)
    shown = context()
    await made.refresh(shown)
    before = api.secret()
    times.append(NOW)
    refreshing = asyncio.get_running_loop().create_task(made.refresh(shown))
    async with asyncio.timeout(5):
        while api.requests.count(f"PATCH {CONFIGURATION}") < 2:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    assert not refreshing.done(), "API servers are given time to hear of it"
    assert await refreshing == (NOW + timedelta(days=365)).replace(microsecond=0).timestamp()
    (bundle, _) = api.ca_bundles()
    assert bundle == api.secret()["ca.crt"]
    assert bundle.count(b"BEGIN CERTIFICATE") == 2
    assert trusts(bundle, before["ca.crt"])


async def test_a_replica_that_read_before_the_change_does_not_take_the_new_authority_back(api: ApiServer) -> None:
    cluster = Cluster(api.url, api.account)
    await source(api, lambda: NOW - AUTHORITY_VALID + timedelta(days=400)).refresh(context())
    old = api.secret()["ca.crt"]
    await source(api).refresh(context())
    assert await cluster.trust("injector", old, service="injector", namespace="quota") is False
    assert api.ca_bundles()[0] == api.secret()["ca.crt"] != old


async def test_what_is_good_is_not_written_again(api: ApiServer) -> None:
    await source(api).refresh(context())
    api.requests.clear()
    assert await source(api).refresh(context()) is not None
    assert api.requests == [f"GET {SECRET}", f"GET {CONFIGURATION}"]


async def test_a_secret_that_was_made_beforehand_is_filled_and_keeps_its_labels(api: ApiServer) -> None:
    labels = {"app.kubernetes.io/managed-by": "Helm"}
    api.put(SECRET, {"kind": "Secret", "metadata": {"name": "injector-tls", "labels": labels}, "type": "Opaque"})
    await source(api).refresh(context())
    assert api.objects[SECRET]["metadata"]["labels"] == labels
    assert set(api.secret()) == {"ca.crt", "ca.key", "tls.crt", "tls.key"}


async def test_somebody_else_s_secret_and_webhooks_are_not_overwritten(api: ApiServer) -> None:
    theirs = {"kind": "Secret", "metadata": {"name": "injector-tls"}, "data": {"tls.crt": "eA==", "tls.key": "eA=="}}
    api.put(SECRET, theirs)
    with pytest.raises(CertificateFault, match="the Secret quota/injector-tls has other contents"):
        await source(api).refresh(context())
    assert api.objects[SECRET]["data"] == theirs["data"]
    api.objects.pop(SECRET)
    api.put(CONFIGURATION, configuration("another", "injector"))
    await source(api).refresh(context())
    assert api.ca_bundles() == [b"", api.secret()["ca.crt"]]
    api.put(CONFIGURATION, configuration("another"))
    with pytest.raises(CertificateFault, match="has no webhook that calls the service quota/injector"):
        await source(api).refresh(context())


async def test_a_configuration_that_somebody_else_writes_meanwhile_is_read_again(api: ApiServer) -> None:
    stale = {**configuration("injector"), "metadata": {"resourceVersion": "1"}}
    api.answers[f"GET {CONFIGURATION}"] = [(200, stale)]
    await source(api).refresh(context())
    assert api.requests.count(f"PATCH {CONFIGURATION}") == 2
    assert len(api.ca_bundles()) == 2
    assert api.ca_bundles()[1] == api.secret()["ca.crt"]
    api.put(CONFIGURATION, configuration("injector"))
    api.answers[f"GET {CONFIGURATION}"] = [(200, stale)] * cluster_module.ATTEMPTS_MAX
    with pytest.raises(CertificateFault, match=r"PATCH .* answered 422: .*, 5 times"):
        await source(api).refresh(context())


async def test_the_token_is_the_one_of_now(api: ApiServer) -> None:
    made = source(api)
    await made.refresh(context())
    api.give_token("token-2")
    assert await made.refresh(context()) is None
    (api.account / "token").write_text("token-1")
    with pytest.raises(CertificateFault, match=f"GET {SECRET} answered 401: Unauthorized"):
        await made.refresh(context())


@pytest.mark.parametrize("token", ["", "a secret\nof two lines", "sécret-of-another-alphabet"])
async def test_what_is_no_token_is_not_sent_and_not_shown(token: str, api: ApiServer) -> None:
    (api.account / "token").write_text(token)
    with pytest.raises(ClusterError) as caught:
        await Cluster(api.url, api.account).version()
    assert str(caught.value) == f"{api.account}/token: holds no token"


async def test_keys_are_in_no_log_and_no_message_whatever_the_api_server_says(
    api: ApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with capture_logs() as lines:
        await source(api).refresh(context())
        api.objects[SECRET]["type"] = "kubernetes.io/tls"
        api.answers[f"GET {SECRET}"] = [(200, {**api.objects[SECRET], "type": "Opaque"})]
        with pytest.raises(CertificateFault) as caught:
            await source(api, lambda: NOW + timedelta(days=300)).refresh(context())
    assert str(caught.value) == f"PUT {SECRET} answered 422"
    assert [line["event"] for line in lines] == ["certificate made"]
    said = f"{lines} {caplog.text} {caught.value!r}"
    for name, value in api.secret().items():
        if name.endswith(".key"):
            assert value.split(b"\n")[1].decode() not in said
            assert api.objects[SECRET]["data"][name][:60] not in said
    assert api.token not in said


async def test_an_api_server_that_does_not_answer_is_not_waited_for(api: ApiServer) -> None:
    api.delay_s = 0.3
    with pytest.raises(CertificateFault, match=f"GET {SECRET}: no answer within 0.1 s"):
        await source(api, timeout_s=0.1).refresh(context())


@pytest.mark.parametrize(
    ("status", "document", "words"),
    [
        (200, [], "answered 200: that is no object"),
        (403, {"message": "secrets is forbidden: User cannot get"}, "answered 403: secrets is forbidden: User cannot"),
        (503, None, "answered 503"),
    ],
)
async def test_what_the_api_server_says_is_passed_on(status: int, document: object, words: str, api: ApiServer) -> None:
    api.answers[f"GET {SECRET}"] = [(status, document)]
    with pytest.raises(CertificateFault, match=f"GET {SECRET} {words}"):
        await source(api).refresh(context())


async def test_an_api_server_with_another_authority_is_not_talked_to(api: ApiServer, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    async with api_server(other):
        (api.account / "ca.crt").write_bytes((other / "ca.crt").read_bytes())
    with pytest.raises(ClusterError, match=r"GET /version: the certificate is not accepted"):
        await Cluster(api.url, api.account).version()
    assert api.requests == []


@pytest.mark.parametrize(("minor", "version"), [("29", (1, 29)), ("30+", (1, 30)), ("28-gke.1", (1, 28))])
async def test_the_version_is_read_as_clouds_write_it(minor: str, version: tuple[int, int], api: ApiServer) -> None:
    api.minor = minor
    assert await Cluster(api.url, api.account).version() == version


async def test_a_version_that_is_none_is_a_fault(api: ApiServer) -> None:
    api.minor = "new"
    with pytest.raises(ClusterError, match="GET /version answered without a version"):
        await Cluster(api.url, api.account).version()


@pytest.mark.parametrize(
    ("host", "shown"), [("10.96.0.1", "https://10.96.0.1:443"), ("fd00::1", "https://[fd00::1]:443")]
)
def test_the_address_comes_from_the_pod_s_environment(host: str, shown: str) -> None:
    environment = {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": "443"}
    assert repr(Cluster.of_pod(environment)) == f"Cluster({shown})"


async def test_readiness_waits_for_the_first_certificate_and_outlives_the_api_server(api: ApiServer) -> None:
    async with served(Injector(InjectionSettings(), source(api))) as (port, health_port):
        api.token = "another"
        await asyncio.sleep(0.1)
        assert (await health(health_port))[0] == 200
        connection = await Connection.open(port, api.ca_bundles()[0])
        assert (await connection.post(review_of(pod()))).status == 200
        connection.close()
        await until_ready(health_port)
