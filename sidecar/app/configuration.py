"""The whole configuration, composed of the parts' sections, and read from a file and the environment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field, SecretStr, model_validator

from sidecar.app.health_settings import HealthSettings
from sidecar.app.settings import ADMIN_PORTS, AdminSettings, LogSettings, ProofSettings
from sidecar.billing.settings import LagoSettings
from sidecar.config.document import Node
from sidecar.config.environment import overlay
from sidecar.config.errors import ConfigError, Origin, Problem, dotted
from sidecar.config.fields import FilePath, Model, Whole, conflict
from sidecar.config.reading import empty, read_document
from sidecar.config.secret_files import with_secrets
from sidecar.config.validation import validate_texts
from sidecar.gateway.route_settings import (
    METRIC,
    ROUTES_MAX,
    DefaultRoute,
    DefaultRouteSettings,
    Extension,
    RoutePath,
    Routes,
)
from sidecar.gateway.settings import (
    CreditHeadersSettings,
    LimitsSettings,
    ListenerSettings,
    ListenSettings,
    UpstreamSettings,
    check_documentation_url,
)
from sidecar.identity.settings import ApiKeySettings, IdentitySettings, MtlsSettings, TrustedPeersSettings
from sidecar.ledger.settings import LedgerSettings
from sidecar.metering.settings import MeteringSettings
from sidecar.valkey.settings import ValkeyEmbeddedSettings, ValkeyTlsSettings, ValkeyUrl
from sidecar.valkey.url import Credentials, Embedded, Sentinel, Tls, Topology

Command = Literal["run", "control"]
HEADER_RESOLVERS: Final = ("trusted_header", "xfcc")
"""Those that take what a trusted peer says of the caller."""
NO_FILE: Final = "give -c FILE (or set SIDECAR_CONFIG)"


class Config(Model):
    """Everything that can be configured. Frozen; a changed configuration is a new process."""

    listen: ListenSettings = Field(default=ListenSettings(), description="Where clients connect.")
    listeners: Annotated[tuple[ListenerSettings, ...], Field(max_length=16)] = Field(
        default=(), description="Further ports, each with an API of its own."
    )
    upstream: UpstreamSettings = Field(default=UpstreamSettings(), description="The API behind the gateway.")
    limits: LimitsSettings = Field(
        default=LimitsSettings(), description="What clients and the API may ask of this process."
    )
    valkey: ValkeyUrl = Field(
        description="Where the ledger is: `embedded:///directory`, `valkey://`, `valkeys://` (TLS), `valkey+unix://`, "
        "`valkey+sentinel://h1,h2/name`, `valkey+cluster://h1,h2`, with `user:password@` before the "
        "hosts; or the redis spellings."
    )
    valkey_password: SecretStr | None = Field(
        default=None, description="Password for Valkey, instead of one in the URL."
    )
    valkey_password_file: FilePath | None = Field(default=None, description="File with that password.")
    valkey_sentinel_username: str | None = Field(default=None, min_length=1, max_length=256, description=
        "User at the Sentinels, if they ask for one.")  # fmt: skip
    valkey_sentinel_password: SecretStr | None = Field(default=None, description="Password at the Sentinels.")
    valkey_sentinel_password_file: FilePath | None = Field(default=None, description="File with that password.")
    valkey_tls: ValkeyTlsSettings = Field(default=ValkeyTlsSettings(), description="TLS, for the schemes that use it.")
    valkey_embedded: ValkeyEmbeddedSettings = Field(
        default=ValkeyEmbeddedSettings(), description="For an `embedded://` URL."
    )
    ledger: LedgerSettings = Field(default=LedgerSettings(), description="How holds and settles are made.")
    identity: IdentitySettings = (ApiKeySettings.model_validate({"type": "api_key"}),)
    trusted_peers: TrustedPeersSettings = ()
    routes: Routes = Field(
        default=(), max_length=ROUTES_MAX, description="What requests cost. The first route that matches decides."
    )
    free_paths: Annotated[tuple[RoutePath, ...], Field(max_length=256)] = Field(
        default=(),
        description="Paths, written as in routes, that pass without identity and charge. The gateway looks at them "
        "before it looks at routes.",
    )
    default_route: DefaultRoute = Field(
        default=DefaultRouteSettings(),
        description="For requests that match no route. `deny`: the gateway answers them with 404.",
    )
    matching: Literal["variants", "exact"] = Field(
        default="variants",
        description="How paths and routes are compared. `variants`: also as servers do that ignore letter case or a "
        "final slash, and the dearest result is charged. `exact`: as spelled, for an API that is strict.",
    )
    path_extensions: Annotated[tuple[Extension, ...], Field(max_length=16)] = Field(
        default=(),
        description="Extensions that the API cuts off, such as `json` of `/accounts.json`. Such a path costs the "
        "dearer of both readings.",
    )
    metric_weights: Annotated[
        dict[Annotated[str, Field(pattern=METRIC, max_length=64)], Annotated[Whole, Field(ge=1, le=1_000_000_000)]],
        Field(max_length=1_000),
    ] = Field(
        default={},
        description="What a unit of a metric is worth beside a unit of another. It says which variant of a path is the "
        "dearest if their metrics differ; without it such a path is refused with 400.",
    )
    metering: MeteringSettings = Field(
        default=MeteringSettings.model_validate({}), description="Delivery of usage events to OpenMeter."
    )
    lago: LagoSettings = Field(default=LagoSettings.model_validate({}), description="Billing: accounts, funds, usage.")
    audit: ProofSettings = Field(default=ProofSettings(), description="Proof for auditors.")
    admin: AdminSettings = Field(default=AdminSettings(), description="Health, metrics and the state of accounts.")
    health: HealthSettings = Field(
        default=HealthSettings(), description="A port for whatever looks after the process, such as a kubelet."
    )
    log: LogSettings = Field(default=LogSettings(), description="Lines on standard error.")
    credit_headers: CreditHeadersSettings = Field(
        default=CreditHeadersSettings(), description="Header fields that tell callers how much credit they have left."
    )
    error_format: Literal["problem", "obie", "berlin_group"] = Field(
        default="problem",
        description="Body of refusals: `problem` is RFC 9457, `obie` is UK Open Banking, `berlin_group` is "
        "NextGenPSD2.",
    )
    error_documentation_url: Annotated[str, AfterValidator(check_documentation_url)] | None = Field(
        default=None, max_length=2048, description="Page that explains errors. Refusals have its address."
    )

    @model_validator(mode="after")
    def _sections_agree(self) -> Config:
        problems = [
            *self._valkey_problems(), *self._identity_problems(), *self._lago_problems(), *self._listener_problems(),
            *self._port_problems(), *self._matching_problems(), *self._proxy_protocol_problems(),
        ]  # fmt: skip
        if problems:
            raise conflict(problems)
        return self

    def _matching_problems(self) -> list[tuple[str, str]]:
        if self.matching == "exact" and self.path_extensions:
            return [("path_extensions", "has no effect with matching: exact")]
        return []

    def _proxy_protocol_problems(self) -> list[tuple[str, str]]:
        if self.listen.proxy_protocol == "off" or self.trusted_peers:
            return []
        message = "would refuse every connection: trusted_peers, who may send such headers, is empty"
        return [("listen.proxy_protocol", message)]

    def _listener_problems(self) -> list[tuple[str, str]]:
        problems = []
        if self.listeners and self.upstream.original_destination:
            problems.append(("listeners", "has no effect with upstream.original_destination, which serves all ports"))
        for index, listener in enumerate(self.listeners):
            if not listener.port and self.listen.workers > 1:
                problems.append((f"listeners.{index}.port", "cannot be 0 with several workers"))
        return problems

    def _port_problems(self) -> list[tuple[str, str]]:
        """Two settings with one port, where both could not be listened on."""
        places: list[tuple[str, str, int]] = []
        if self.upstream.url is not None or self.upstream.original_destination:  # a control plane has no clients
            places.append(("listen.port", self.listen.host, self.listen.port))
            places += [(f"listeners.{i}.port", self.listen.host, each.port) for i, each in enumerate(self.listeners)]
        places.append(("admin.port", self.admin.host, self.admin.listening_port))
        if self.health.port is not None:
            places.append(("health.port", self.health.host, self.health.port))
        problems = []
        for number, (name, host, port) in enumerate(places):
            for earlier, other_host, other_port in places[:number]:
                if port and port == other_port and _same_address(host, other_host):
                    problems.append(self._port_twice(name, earlier, port))
                    break
        return problems

    def _port_twice(self, name: str, earlier: str, port: int) -> tuple[str, str]:
        if "admin.port" in (name, earlier) and self.admin.port is None:
            other = earlier if name == "admin.port" else name
            return other, f"{port} is the port of the admin side too (admin.port is not set)"
        return name, f"{port} is the port of {dotted(tuple(_parts(earlier)))} too"

    def _valkey_problems(self) -> list[tuple[str, str]]:
        problems = []
        password = "valkey_password" if self.valkey_password else "valkey_password_file"
        if self.valkey_password or self.valkey_password_file:
            if isinstance(self.valkey, Embedded):
                problems.append((password, "is set, but an embedded Valkey has no password"))
            elif self.valkey.credentials.password is not None:
                problems.append((password, "is set, but the URL has a password too"))
        sentinel = ("valkey_sentinel_username", "valkey_sentinel_password", "valkey_sentinel_password_file")
        if not isinstance(self.valkey, Sentinel):
            problems += [(name, "is set, but valkey names no Sentinels") for name in sentinel if getattr(self, name)]
        secure = not isinstance(self.valkey, Embedded) and self.valkey.tls is not None
        if self.valkey_tls.model_fields_set and not secure:
            problems.append(
                ("valkey_tls", "is set, but the URL's scheme uses no TLS (valkeys://, valkeys+cluster://, …)")
            )
        return problems

    def _lago_problems(self) -> list[tuple[str, str]]:
        webhooks, problems = self.lago.webhooks, []
        if self.lago.url is None and (webhooks.jwt or webhooks.hmac_key or webhooks.hmac_key_file):
            problems.append(("lago.webhooks", "is set, but lago.url is not set"))
        sync = self.lago.sync
        if self.lago.url is not None and sync.enabled and sync.source == "openmeter" and self.metering.url is None:
            problems.append(("lago.sync", "needs metering.url, or source: ledger: the sync reads usage from OpenMeter"))
        return problems

    def _identity_problems(self) -> list[tuple[str, str]]:
        tls = self.listen.tls
        asked = tls is not None and tls.client_certificates != "off"
        problems = []
        for index, resolver in enumerate(self.identity):
            if isinstance(resolver, MtlsSettings) and not asked:
                problems.append(
                    (f"identity.{index}", "needs listen.tls with client_certificates: optional or required")
                )
            elif resolver.type in HEADER_RESOLVERS and not self.trusted_peers:
                message = "has no effect: it takes a header from trusted peers, and trusted_peers is empty"
                problems.append((f"identity.{index}", message))
        reads = [resolver.type for resolver in self.identity if resolver.type in HEADER_RESOLVERS]
        for index in everybody(self.trusted_peers) if reads else ():
            message = (
                f"trusts every address, and identity takes a header ({' and '.join(reads)}) from trusted peers: "
                "every client could call as any account; name the addresses of your gateways"
            )
            problems.append((f"trusted_peers.{index}", message))
        return problems


def everybody(trusted_peers: Sequence[str]) -> list[int]:
    """Indexes of the networks that hold every address."""
    return [index for index, network in enumerate(trusted_peers) if network.endswith("/0")]


def _same_address(one: str, other: str) -> bool:
    return one == other or bool({one, other} & {"0.0.0.0", "::"})  # noqa: S104  # compared with, not bound to


def _parts(path: str) -> Iterator[str | int]:
    return (int(part) if part.isdecimal() else part for part in path.split("."))


def load_config(path: Path | None, environ: Mapping[str, str], *, command: Command | None = None) -> Config:
    """Read the file (None: the environment alone), lay ``SIDECAR_…`` variables over it, read secrets from their files.

    The ``valkey`` of the answer is complete: with its password and TLS files, wherever they were set. ``command`` is
    what the configuration is for: a gateway needs to know where its API is, and each has an admin port of its own.

    Raises:
        ConfigError: everything that is wrong, each with file and line, or with the variable's name.
    """
    written = Node(Origin("environment"), {}) if path is None else read_document(path)
    root = overlay(written, environ)
    if path is not None and written.content == {} and root.child("valkey") is None:
        raise ConfigError([empty(written.origin.source, "valkey")])
    if path is None and root.child("valkey") is None:
        rest = ": the SIDECAR_… variables do not set valkey" if root.content else ""
        raise ConfigError([Problem(Origin(""), "", NO_FILE + rest)])
    root = with_secrets(Config, root)
    config = validate_texts(Config, root, lambda origin: origin.line is None)
    if command == "run" and config.upstream.url is None and not config.upstream.original_destination:
        above = root.child("upstream") or root
        hint = f"; set SIDECAR_UPSTREAM__URL, or {NO_FILE}" if path is None else ""
        raise ConfigError([Problem(above.origin, "upstream.url", f"is missing: a gateway needs it{hint}")])
    port = config.admin.port if config.admin.port is not None else ADMIN_PORTS[command or "run"]
    admin = config.admin.model_copy(update={"port": port})
    return config.model_copy(update={"valkey": _complete(config), "admin": admin})


def _complete(config: Config) -> Topology:
    topology = config.valkey
    if isinstance(topology, Embedded):
        return topology
    if config.valkey_password is not None:
        password = config.valkey_password.get_secret_value()
        topology = replace(topology, credentials=replace(topology.credentials, password=password))
    if topology.tls is not None:
        files = config.valkey_tls
        topology = replace(topology, tls=Tls(files.ca_file, files.certificate_file, files.key_file, files.verify))
    if isinstance(topology, Sentinel) and (config.valkey_sentinel_username or config.valkey_sentinel_password):
        secret = config.valkey_sentinel_password
        login = Credentials(config.valkey_sentinel_username, secret.get_secret_value() if secret else None)
        topology = replace(topology, sentinel_credentials=login)
    return topology
