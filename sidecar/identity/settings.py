"""Configuration of identity: the resolvers in their order, and the peers whose headers are trusted."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from sidecar.identity.account_id import is_account_id
from sidecar.identity.field_names import check_field_name
from sidecar.identity.organisation import GRAMMAR, Scheme, is_organisation_identifier
from sidecar.identity.peers import UNIX, parse_network

#: Asymmetric ones only: with HS* whoever can verify a token can also make one (RFC 8725 section 3.1).
Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]


def _account_id(text: str) -> str:
    if not is_account_id(text):
        raise ValueError(f"{text!r} is not an account id: 1 to 128 characters of A-Z a-z 0-9 . _ : @ + -")
    return text


def _organisation_identifier(text: str) -> str:
    if not is_organisation_identifier(text, tuple(GRAMMAR)):
        raise ValueError(f"{text!r} is not an organisation identifier like PSDGB-FCA-123456")
    return text


FieldName = Annotated[str, AfterValidator(check_field_name)]
AccountId = Annotated[str, AfterValidator(_account_id)]
OrganisationId = Annotated[str, AfterValidator(_organisation_identifier)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, defer_build=True)


class TrustedHeaderSettings(_Model):
    """The account id in a header that a trusted gateway sets."""

    type: Literal["trusted_header"] = Field(description="Identity from a header that a trusted gateway sets.")
    header: FieldName = Field(default="X-TPP-Id", description="Name of the header with the account id.")
    forward: bool = Field(default=True, description="Whether the API sees the header, if the peer is trusted.")


class _OrganisationSettings(_Model):
    schemes: tuple[Scheme, ...] = Field(
        default=("PSD",),
        min_length=1,
        description="Accepted kinds of organisation identifier: PSD (ETSI TS 119 495), NTR, VAT, LEI (ETSI EN 319 "
        "412-1).",
    )
    accounts: dict[OrganisationId, AccountId] | None = Field(
        default=None,
        description="Account id for each organisation identifier. Without this table the identifier is the account "
        "id. With it the gateway refuses an organisation that is not in the table.",
    )
    cache_entries: int = Field(
        default=1024, ge=1, le=100_000, description="Certificates whose parsed content is cached."
    )

    @model_validator(mode="after")
    def _accounts_follow_schemes(self) -> _OrganisationSettings:
        for identifier in self.accounts or ():
            if not is_organisation_identifier(identifier, self.schemes):
                forms = ", ".join(self.schemes)
                raise ValueError(f"accounts: {identifier!r} can never match: schemes has only {forms}")
        return self


class XfccSettings(_OrganisationSettings):
    """Envoy's X-Forwarded-Client-Cert."""

    type: Literal["xfcc"] = Field(description="Identity from Envoy's X-Forwarded-Client-Cert.")
    element_from_right: int = Field(
        default=1,
        ge=1,
        le=16,
        description="How many Envoys write an element: 1 for the one that the caller connects to (SANITIZE_SET), and "
        "one for each behind it that appends its own (APPEND_FORWARD). A header with more or fewer elements is "
        "refused.",
    )
    forward: bool = Field(default=True, description="Whether the API sees the header, if the peer is trusted.")
    bytes_max: int = Field(
        default=16_384, ge=256, le=262_144, description="Longest header that the gateway reads, in bytes."
    )
    elements_max: int = Field(default=16, ge=1, le=64, description="Most elements that the gateway reads.")

    @model_validator(mode="after")
    def _element_is_within_limit(self) -> XfccSettings:
        if self.element_from_right > self.elements_max:
            raise ValueError("element_from_right is larger than elements_max")
        return self


class MtlsSettings(_OrganisationSettings):
    """The client certificate of TLS that ends in the gateway."""

    type: Literal["mtls"] = Field(description="Identity from the client certificate of direct mutual TLS.")


class ApiKeySettings(_Model):
    """API keys, stored as SHA-256."""

    type: Literal["api_key"] = Field(description="Identity from an API key.")
    header: FieldName = Field(default="X-API-Key", description="Name of the header with the key.")
    forward: bool = Field(default=False, description="Whether the API sees the key.")
    ttl_s: float = Field(
        default=30.0,
        gt=0,
        le=3600,
        description="Seconds for which the gateway accepts a known key without a lookup in the store. A revoked key "
        "works no longer than this, unless the store is unreachable.",
    )
    max_stale_s: float = Field(
        default=3600.0,
        ge=0,
        le=604_800,
        description="Seconds since its last confirmation for which the gateway accepts a key while the store is "
        "unreachable. If it is below ttl_s, ttl_s counts.",
    )
    negative_ttl_s: float = Field(
        default=2.0,
        ge=0,
        le=60,
        description="Seconds for which the gateway refuses an unknown key without a lookup in the store.",
    )
    cache_entries: int = Field(
        default=10_000, ge=1, le=1_000_000, description="Known keys in the cache, and as many unknown ones."
    )
    lookup_timeout_s: float = Field(
        default=1.0, gt=0, le=60, description="Seconds that a lookup in the store may take."
    )


class JwtSettings(_Model):
    """Bearer tokens (RFC 6750) that are JWTs (RFC 7519), verified against a JWKS (RFC 7517)."""

    type: Literal["jwt"] = Field(description="Identity from a verified JWT in Authorization: Bearer.")
    issuer: str = Field(min_length=1, max_length=512, description="The iss that a token must have.")
    audience: tuple[Annotated[str, Field(min_length=1)], ...] | None = Field(
        min_length=1,
        description="A token's aud must contain one of these names. null, which you must write explicitly: the "
        "gateway does not check aud.",
    )
    algorithms: tuple[Algorithm, ...] = Field(
        default=("RS256", "PS256", "ES256"), min_length=1, description="Accepted signature algorithms."
    )
    token_types: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="Accepted values of typ in the header of the token, such as at+jwt (RFC 9068).",
    )
    account_claim: str = Field(
        default="client_id",
        pattern=r"^\S{1,256}$",
        description="Claim with the account id. A dotted path names a nested claim.",
    )
    leeway_s: float = Field(
        default=30.0, ge=0, le=300, description="Seconds by which the issuer's clock may differ (exp and nbf)."
    )
    certificate_binding: Literal["if_bound", "required"] = Field(
        default="if_bound",
        description="Tokens that are bound to a client certificate (cnf, RFC 8705) are accepted only with it. "
        "`required`: tokens that are bound to none are refused, as FAPI 1 has it.",
    )
    certificate_from_xfcc: int | None = Field(
        default=None,
        ge=1,
        le=16,
        description="For tokens that are bound to a client certificate, behind Envoy: how many Envoys write an element "
        "of X-Forwarded-Client-Cert (see `element_from_right` of xfcc). null: only the certificate of TLS that ends in "
        "the gateway counts.",
    )
    forward: bool = Field(default=True, description="Whether the API sees the Authorization header.")
    jwks_url: str | None = Field(default=None, max_length=2048, description="URL of the issuer's keys; https.")
    jwks_file: Path | None = Field(
        default=None, description="File with the issuer's keys, instead of jwks_url. You may replace it at any time."
    )
    jwks_allow_http: bool = Field(
        default=False,
        description="Accept http in jwks_url. An attacker on the network path can then act as any caller.",
    )
    jwks_ca_file: Path | None = Field(
        default=None,
        description="PEM file with the authorities for jwks_url. Without it the system's authorities count.",
    )
    jwks_ttl_s: float = Field(
        default=300.0, gt=0, le=86_400, description="Seconds after which the gateway reads the keys again."
    )
    jwks_cool_down_s: float = Field(
        default=10.0,
        gt=0,
        le=3600,
        description="Least seconds between two readings, however many tokens have unknown key ids.",
    )
    jwks_max_stale_s: float | None = Field(
        default=86_400.0,
        gt=0,
        description="Seconds since the last successful reading for which the gateway uses the keys while their source "
        "is unreachable. null: no limit.",
    )
    jwks_timeout_s: float = Field(default=5.0, gt=0, le=60, description="Seconds that one reading may take.")
    jwks_bytes_max: int = Field(default=262_144, ge=1024, le=4_194_304, description="Largest key set, in bytes.")
    cache_entries: int = Field(default=10_000, ge=1, le=1_000_000, description="Verified tokens in the cache.")
    cache_ttl_s: float = Field(
        default=300.0,
        ge=0,
        le=3600,
        description="Most seconds for which the gateway accepts a token without verifying it again.",
    )

    @model_validator(mode="after")
    def _keys_have_one_source(self) -> JwtSettings:
        if (self.jwks_url is None) == (self.jwks_file is None):
            raise ValueError("exactly one of jwks_url and jwks_file is needed")
        if self.jwks_url is not None:
            _check_url(self.jwks_url, allow_http=self.jwks_allow_http)
        if self.jwks_cool_down_s > self.jwks_ttl_s:
            raise ValueError("jwks_cool_down_s is longer than jwks_ttl_s")
        if self.jwks_max_stale_s is not None and self.jwks_max_stale_s < self.jwks_ttl_s:
            raise ValueError("jwks_max_stale_s is shorter than jwks_ttl_s")
        return self


def _check_url(url: str, *, allow_http: bool) -> None:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"jwks_url: {error}") from None
    if parts.scheme == "http" and not allow_http:
        raise ValueError("jwks_url is http; it must be https unless jwks_allow_http is set")
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ValueError("jwks_url is not an https URL with a host")
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise ValueError("jwks_url must have neither user nor password nor fragment")


ResolverSettings = Annotated[
    TrustedHeaderSettings | XfccSettings | MtlsSettings | ApiKeySettings | JwtSettings,
    Field(discriminator="type"),
]


def _none_is_shadowed(resolvers: tuple[ResolverSettings, ...]) -> tuple[ResolverSettings, ...]:
    """Refuse a resolver that could never decide, because one before it answers for the same field."""
    seen: set[str] = set()
    for settings in resolvers:
        source = _source_of(settings)
        if source in seen:
            raise ValueError(f"two resolvers read {source}: the second would never be used")
        seen.add(source)
    return resolvers


def _source_of(settings: ResolverSettings) -> str:
    match settings:
        case TrustedHeaderSettings() | ApiKeySettings():
            return settings.header.lower()
        case XfccSettings():
            return "x-forwarded-client-cert"
        case JwtSettings():
            return "authorization"
        case MtlsSettings():
            return "the client certificate"


IdentitySettings = Annotated[
    tuple[ResolverSettings, ...],
    Field(
        min_length=1,
        max_length=8,
        description="Resolvers that identify the caller, in order. The first one whose credential is present decides.",
    ),
    AfterValidator(_none_is_shadowed),
]


def _networks(entries: tuple[str, ...]) -> tuple[str, ...]:
    for entry in entries:
        if entry != UNIX:
            parse_network(entry)
    return entries


TrustedPeersSettings = Annotated[
    tuple[str, ...],
    Field(
        max_length=256,
        description="Networks (CIDR) whose identity headers the gateway accepts, and unix for a Unix socket. Loopback "
        "is not included unless you list it.",
    ),
    AfterValidator(_networks),
]
