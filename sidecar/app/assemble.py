"""From the configuration to what the parts are made with. Nothing is opened here but files with keys and
certificates.
"""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sidecar.app.configuration import Config
from sidecar.app.tls_files import client_context, load_authorities, load_pair
from sidecar.config.path_template import parse_template
from sidecar.gateway.admission.descriptors import Allotment, allot
from sidecar.gateway.http1.limits import Limits
from sidecar.gateway.parameters import OriginalDestinations, ProxySettings, UpstreamTarget
from sidecar.gateway.route_settings import DefaultRouteSettings, IdempotencySettings, RouteSettings
from sidecar.gateway.routes import IdempotencyRule, Route, RouteTable
from sidecar.gateway.settings import ListenTlsSettings, UpstreamTlsSettings
from sidecar.ledger.client.link_settings import LinkSettings
from sidecar.ledger.keys import Keys
from sidecar.ledger.spool.spool import SpoolSettings
from sidecar.valkey.url import Embedded

DEFAULT_ROUTE = "(other)"
"""Name of the route for requests that no other matches: their paths are the callers' to choose, so they are no
label.
"""
_KEY_HEADERS = {"obie": "x-idempotency-key"}
"""Fields that have idempotency keys, by the dialect of errors."""
_BROKEN = {"auto": None, "charge": True, "release": False}


def keys(config: Config) -> Keys:
    return Keys(config.ledger.prefix, config.ledger.partitions)


def link_settings(config: Config) -> LinkSettings:
    ledger = config.ledger
    return LinkSettings(
        hold_budget_s=ledger.hold_budget_ms / 1000,
        settle_delay_s=ledger.settle_delay_ms / 1000,
        breaker_failures=ledger.breaker_failures,
        breaker_open_s=ledger.breaker_open_ms / 1000,
        operations_max=ledger.batch_operations_max,
        idempotency_ttl_ms=ledger.idempotency_ttl_s * 1000,
        unpaid_per_second=config.limits.unpaid_per_second,
        unpaid_burst=config.limits.unpaid_burst,
        create=ledger.expect == "any",
        create_again=ledger.expect == "any" and config.lago.url is not None,
        window_bytes=ledger.window_bytes_max,
        chain_key=chain_key(config),
    )


def chain_key(config: Config) -> bytes:
    """Key of the chain through the outbox entries; b"" without one."""
    secret = config.ledger.chain_key
    return secret.get_secret_value().encode() if secret is not None else b""


def spool_settings(config: Config) -> SpoolSettings | None:
    """None without a directory. An allowance only where the gateway fails open."""
    ledger = config.ledger
    place = spool_place(config)
    if place is None:
        return None
    return SpoolSettings(
        place,
        ledger.open.allowance_units if ledger.on_ledger_failure == "open" else None,
        ledger.spool_bytes,
        float(ledger.idempotency_ttl_s),
        is_default=ledger.spool_place is None,
    )


def spool_place(config: Config) -> Path | None:
    """The configured directory, or one in the service's state directory: systemd sets ``STATE_DIRECTORY``
    (systemd.exec, "StateDirectory="), and so does the image. Or one beside the data of an embedded Valkey."""
    state = os.environ.get("STATE_DIRECTORY", "").partition(":")[0]
    if config.ledger.spool_place is not None:
        return config.ledger.spool_place
    if state.startswith("/"):
        return Path(state) / "spool"
    return config.valkey.directory / "spool" if isinstance(config.valkey, Embedded) else None


def proxy_settings(config: Config) -> ProxySettings:
    limits, upstream = config.limits, config.upstream
    return ProxySettings(
        limits=Limits(
            method_bytes_max=limits.method_bytes_max,
            target_bytes_max=limits.target_bytes_max,
            head_bytes_max=limits.head_bytes_max,
            fields_max=limits.fields_max,
            body_bytes_max=limits.body_bytes_max,
            chunk_extension_bytes_max=limits.chunk_extension_bytes_max,
            trailer_bytes_max=limits.trailer_bytes_max,
            trailer_fields_max=limits.trailer_fields_max,
        ),
        answer_head_bytes_max=limits.answer_head_bytes_max or 0,
        header_timeout_s=limits.header_timeout_ms / 1000,
        idle_timeout_s=limits.idle_timeout_ms / 1000,
        body_timeout_s=limits.body_timeout_ms / 1000,
        connect_timeout_s=upstream.connect_timeout_ms / 1000,
        response_timeout_s=upstream.response_timeout_ms / 1000,
        upstream_idle_timeout_s=upstream.idle_timeout_ms / 1000,
        write_timeout_s=limits.write_timeout_ms / 1000,
        stream_idle_timeout_s=limits.stream_idle_timeout_ms / 1000,
        body_deadline_s=limits.body_deadline_ms / 1000,
        answer_deadline_s=limits.answer_deadline_ms / 1000,
        bytes_per_second_min=limits.min_bytes_per_second,
        request_buffer_bytes=limits.request_buffer_bytes,
        request_buffers_bytes=limits.request_buffers_bytes,
        keepalive_s=upstream.keepalive_ms / 1000,
        upstream_age_s=upstream.connection_age_ms / 1000,
        upstream_connections_max=upstream.connections_max,
        admission_timeout_s=upstream.admission_timeout_ms / 1000,
        connections_max=limits.connections_max,
        handshakes_max=limits.handshakes_max,
        handshake_timeout_s=limits.handshake_timeout_ms / 1000,
        head_buffers_bytes=limits.head_buffers_bytes,
        free_per_second=limits.free_per_second,
        free_burst=limits.free_burst,
        buffer_bytes_high=limits.buffer_bytes_high,
        buffer_bytes_low=limits.buffer_bytes_low,
        requests_per_connection_max=limits.requests_per_connection_max or 0,
        credit_headers=config.credit_headers.credits,
        rate_limit_headers=config.credit_headers.rate_limit,
        forwarded_headers=upstream.forwarded,
        forward_identity=upstream.forward_identity,
        drop_fields=tuple(name.lower().encode() for name in upstream.drop_fields),
        via_on_requests=upstream.via,
        via_on_answers=upstream.via_on_answers,
        error_format=config.error_format,
        error_documentation_url=config.error_documentation_url or "",
        access_log=config.log.access,
        log_lines_max=config.log.lines_max,
    )


def allotment(config: Config, descriptors: int) -> Allotment:
    """What there is room for with so many file descriptors."""
    upstream = config.upstream
    pools = max(2, len(upstream.ports or ())) if upstream.original_destination else 1 + len(config.listeners)
    return allot(descriptors, config.limits.connections_max, upstream.connections_max, pools)


def route_table(config: Config) -> RouteTable:
    default = config.default_route
    header = _KEY_HEADERS.get(config.error_format, "idempotency-key")
    fallback = Route(DEFAULT_ROUTE, deny=True) if isinstance(default, str) else _route(default, DEFAULT_ROUTE, header)
    free = [Route(path, free=True, charged=frozenset(), template=parse_template(path)) for path in config.free_paths]
    return RouteTable(
        [*free, *(_route(route, route.path, header) for route in config.routes)],
        fallback,
        exact=config.matching == "exact",
        extensions=config.path_extensions,
        weights=config.metric_weights,
    )


def _idempotency_rule(settings: IdempotencySettings | None, header: str) -> IdempotencyRule | None:
    """``header``: where the key is if the settings do not say it."""
    if settings is None:
        return None
    return IdempotencyRule(
        header=(settings.header or header).lower().encode(),
        required=settings.required,
        repeats_max=settings.repeats_max,
        refuse_conflicts=settings.on_conflict == "refuse",
    )


def _route(settings: DefaultRouteSettings, name: str, key_header: str) -> Route:
    place = settings if isinstance(settings, RouteSettings) else None
    return Route(
        name=name,
        metric=settings.metric,
        units=settings.units,
        free=settings.free,
        charged=settings.charged_statuses,
        charged_if_unsafe=settings.charged_if_unsafe,
        timeout_charged=settings.on_response_timeout == "charge",
        broken_charged=_BROKEN[settings.on_broken_answer],
        buffered=settings.request_buffering,
        idempotency=_idempotency_rule(settings.idempotency, key_header),
        template=place.template if place else None,
        methods=frozenset(m.encode() for m in place.methods) if place and place.methods else None,
        encoded_slash=settings.encoded_slash == "allow",
        cors=settings.cors == "pass",
        method_override=settings.method_override == "price",
    )


def upstream_target(config: Config) -> UpstreamTarget | OriginalDestinations:
    """Where requests of the first port go. Raises `SetupError`: a certificate or key cannot be read."""
    upstream = config.upstream
    if upstream.original_destination:
        own = {config.listen.port, config.admin.listening_port, config.health.port or 0}
        return OriginalDestinations(frozenset(upstream.ports) if upstream.ports else None, frozenset(own))
    assert upstream.url is not None, "it was asked for when the configuration was read"
    return target_of(upstream.url, upstream.tls)


def target_of(url: str, settings: UpstreamTlsSettings) -> UpstreamTarget:
    """Raises `SetupError`: a certificate or key cannot be read."""
    parts = urlsplit(url)
    if parts.scheme == "unix+http":
        return UpstreamTarget(path=unquote(parts.path), host="localhost")
    assert parts.hostname, "the configuration asks for it"
    secure = parts.scheme == "https"
    return UpstreamTarget(
        host=parts.hostname,
        port=parts.port or (443 if secure else 80),
        tls=_client_context(settings) if secure else None,
        server_hostname=settings.server_name or parts.hostname,
    )


def _client_context(settings: UpstreamTlsSettings) -> ssl.SSLContext:
    context = client_context(settings.ca_file, "upstream.tls.ca_file")
    if settings.certificate_file is not None and settings.key_file is not None:
        load_pair(context, "upstream.tls", settings.certificate_file, settings.key_file)
    if not settings.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context


def listen_tls(config: Config) -> ssl.SSLContext | None:
    """Raises `SetupError`: a certificate or key cannot be read."""
    settings = config.listen.tls
    if settings is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3 if settings.minimum_version == "1.3" else ssl.TLSVersion.TLSv1_2
    load_pair(context, "listen.tls", settings.certificate_file, settings.key_file, _key_password(settings))
    if settings.client_certificates != "off":
        assert settings.client_ca_file is not None, "the configuration asks for it"
        load_authorities(context, settings.client_ca_file, "listen.tls.client_ca_file")
        required = settings.client_certificates == "required"
        context.verify_mode = ssl.CERT_REQUIRED if required else ssl.CERT_OPTIONAL
    context.set_alpn_protocols(["http/1.1"])
    context.options |= ssl.OP_NO_RENEGOTIATION
    return context


def _key_password(settings: ListenTlsSettings) -> str | None:
    return settings.key_password.get_secret_value() if settings.key_password is not None else None
