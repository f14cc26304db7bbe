"""``sidecar injector``: the mutating admission webhook."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from sidecar.app import logs
from sidecar.app.signals import stop_event
from sidecar.basics.logger import get_logger
from sidecar.cli.inject import SINCE, settings_of
from sidecar.cli.output import between, fail, run_async
from sidecar.kubernetes.certificate_sources import Certificates, FromFiles, SelfSigned
from sidecar.kubernetes.cluster import Cluster, ClusterError
from sidecar.kubernetes.injection import InjectionRefused, InjectionSettings
from sidecar.kubernetes.injection_options import injection_options
from sidecar.kubernetes.serving import InjectorFault
from sidecar.kubernetes.webhook import Injector, ListenAddresses

SWITCH_INTERVAL_S = 0.0005
"""A tenth of Python's: the event loop waits so long for its turn, several times a review, while a large pod is reviewed
in a thread."""
log = get_logger("sidecar.injector")


def _option(name: str, text: str, metavar: str = "NAME", **more: Any) -> Any:
    variable = f"QUOTA_INJECTOR_{name.upper().replace('-', '_')}"
    # The help says how the variables are called; a table of 80 columns would cut off their names.
    return typer.Option(f"--{name}", envvar=variable, show_envvar=False, help=text, metavar=metavar, **more)


def register(app: typer.Typer) -> None:
    app.command()(injector)


def injector(
    host: Annotated[str, _option("host", "Address to listen on.", "ADDRESS")] = "::",
    port: Annotated[int, _option("port", "Port for reviews, HTTPS.", "PORT", callback=between(0, 65_535))] = 8443,
    health_port: Annotated[
        int, _option("health-port", "Port for /livez, /readyz and /metrics, HTTP.", "PORT", callback=between(0, 65_535))
    ] = 8080,
    tls_cert_file: Annotated[
        Path | None, _option("tls-cert-file", "Certificate. It is read again when it changes.", "FILE")
    ] = None,
    tls_key_file: Annotated[Path | None, _option("tls-key-file", "Private key of the certificate.", "FILE")] = None,
    self_signed: Annotated[
        bool,
        typer.Option(
            "--self-signed",
            envvar="QUOTA_INJECTOR_SELF_SIGNED",
            show_envvar=False,
            help="Make the certificates itself.",
        ),
    ] = False,
    service: Annotated[str, _option("service", "With --self-signed: Service that the API server calls.")] = "",
    namespace: Annotated[
        str, _option("namespace", "With --self-signed: namespace of the Service and the Secret.")
    ] = "",
    certificate_secret: Annotated[
        str, _option("certificate-secret", "With --self-signed: Secret with the certificates, for all replicas.")
    ] = "",
    webhook_configuration: Annotated[
        str,
        _option("webhook-configuration", "With --self-signed: webhook configuration that gets the caBundle."),
    ] = "",
    image: Annotated[str | None, _option("image", "Image of the sidecars.", "IMAGE")] = None,
    image_pull_policy: Annotated[
        str | None, _option("image-pull-policy", "Always, IfNotPresent or Never.", "POLICY")
    ] = None,
    config: Annotated[
        str | None, _option("config", "Name of the ConfigMap with gateway.yaml, in each namespace.")
    ] = None,
    config_secret: Annotated[
        str | None, _option("config-secret", "Name of the Secret that gateway.yaml refers to.")
    ] = None,
    cpu_request: Annotated[str | None, _option("cpu-request", "CPU request of a sidecar.", "AMOUNT")] = None,
    memory_request: Annotated[str | None, _option("memory-request", "Memory request of a sidecar.", "AMOUNT")] = None,
    cpu_limit: Annotated[str | None, _option("cpu-limit", 'CPU limit of a sidecar, or "none".', "AMOUNT")] = None,
    memory_limit: Annotated[
        str | None, _option("memory-limit", 'Memory limit of a sidecar, or "none".', "AMOUNT")
    ] = None,
    kubernetes_version: Annotated[
        str | None,
        _option(
            "kubernetes-version",
            f"Version of the oldest node. {SINCE} Without it the webhook asks the API server every hour.",
            "VERSION",
        ),
    ] = None,
    drain_delay: Annotated[
        float,
        _option(
            "drain-delay",
            "Seconds for which the webhook still answers reviews after SIGTERM.",
            "SECONDS",
            callback=between(0, 300),
        ),
    ] = 3.0,
    json: Annotated[bool, typer.Option("--json", help="Print one line of JSON with the ports when listening.")] = False,
) -> None:
    """Run the admission webhook that adds the gateway to the pods of labelled namespaces.

    Each option has an environment variable: QUOTA_INJECTOR_TLS_CERT_FILE is the one of --tls-cert-file. SIGTERM ends
    the webhook. Its readiness fails, it answers reviews for some seconds more, and it exits with 0.

    Example: [bold]sidecar injector --tls-cert-file tls.crt --tls-key-file tls.key --kubernetes-version 1.31[/bold]
    """
    usual = InjectionSettings()
    given = {
        "image": image, "image_pull_policy": image_pull_policy, "config_map": config, "secret": config_secret,
        "cpu_request": cpu_request, "memory_request": memory_request, "cpu_limit": cpu_limit,
        "memory_limit": memory_limit,
    }  # fmt: skip
    changes: dict[str, Any] = {name: value for name, value in given.items() if value}
    changes |= {name: None for name in ("cpu_limit", "memory_limit") if given[name] == "none"}
    if kubernetes_version:
        usual = settings_of(kubernetes_version, "--kubernetes-version")
    settings = replace(usual, **changes)
    try:
        injection_options({}, settings)  # what no pod could have is an operator's mistake, not every pod's
    except InjectionRefused as error:
        fail(f"the defaults of sidecars: {error}", 2)
    needed = {"--service": service, "--namespace": namespace, "--certificate-secret": certificate_secret,
              "--webhook-configuration": webhook_configuration}  # fmt: skip
    lacking = [option for option, value in needed.items() if not value]
    if self_signed == (tls_cert_file is not None or tls_key_file is not None):
        fail("give --self-signed, or --tls-cert-file and --tls-key-file", 2)
    if self_signed and lacking:
        fail(f"--self-signed needs {', '.join(lacking)}", 2)
    try:
        cluster = Cluster.of_pod() if self_signed or not kubernetes_version else None
    except ClusterError as error:
        fail(f"{error}; outside of a cluster give --tls-cert-file, --tls-key-file and --kubernetes-version", 2)
    certificates: Certificates
    if tls_cert_file is not None and tls_key_file is not None:
        certificates = FromFiles(tls_cert_file, tls_key_file)
    elif cluster is not None and self_signed:
        certificates = SelfSigned(
            cluster,
            service=service,
            namespace=namespace,
            secret=certificate_secret,
            configuration=webhook_configuration,
        )
    else:
        fail("give both --tls-cert-file and --tls-key-file", 2)

    logs.configure("info", "json", waits=False)
    made = Injector(settings, certificates, None if kubernetes_version or cluster is None else cluster.version)
    try:
        run_async(_serve(made, ListenAddresses(host, port, health_port), settings.image, drain_delay, json))
    except InjectorFault as error:
        fail(f"{error}; set {'--health-port' if error.port == health_port != port else '--port'}", 1)


async def _serve(injector: Injector, addresses: ListenAddresses, image: str, drain_delay_s: float, json: bool) -> None:
    stop = stop_event()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    async with injector.serving(addresses) as (port, health_port):
        log.info("listening", port=port, health_port=health_port, image=image)
        if json:
            typer.echo(orjson.dumps({"port": port, "health_port": health_port}).decode())
            sys.stdout.flush()
        await stop.wait()
        log.info("stopping")
        injector.begin_shutdown()
        if not stop.at_once:
            await asyncio.sleep(drain_delay_s)
