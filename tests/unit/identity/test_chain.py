from __future__ import annotations

import asyncio

import pytest

from sidecar.identity.build import build_chain
from sidecar.identity.chain import IdentityChain
from sidecar.identity.settings import ApiKeySettings, MtlsSettings, TrustedHeaderSettings, XfccSettings
from sidecar.identity.types import Fields, Identity, IdentitySetupError, Outcome, Peer, Unidentified
from tests.unit.identity.kit import STRANGER, TRUSTED, MemoryKeyStore, certificate, der, reason_of, settled


class Fixed:
    """A resolver that answers what it was made with, and records what happens to it."""

    asks_for = ""

    def __init__(
        self, name: str, outcome: Outcome | None, log: list[str], start_error: Exception | None = None
    ) -> None:
        self.name = name
        self.outcome = outcome
        self.log = log
        self.start_error = start_error
        self.reads = frozenset({b"x-" + name.encode()})
        self.consumes = self.reads
        self.spoofable = frozenset({b"s-" + name.encode()})
        self.challenge = f'{name} realm="r"'

    def resolve(self, fields: Fields, peer: Peer) -> Outcome | asyncio.Future[Outcome] | None:
        self.log.append(f"ask {self.name}")
        return self.outcome

    async def start(self) -> None:
        self.log.append(f"start {self.name}")
        if self.start_error:
            raise self.start_error

    async def close(self) -> None:
        self.log.append(f"close {self.name}")


YES, NO = Identity("tpp-1", "x"), Unidentified("bad")


@pytest.mark.parametrize(
    ("outcomes", "decided", "asked"),
    [
        ([YES, NO], YES, 1),
        ([NO, YES], NO, 1),
        ([None, YES], YES, 2),
        ([None, None, NO, YES], NO, 3),
    ],
)
def test_the_first_resolver_with_a_credential_decides_for_good_or_ill(
    outcomes: list[Outcome | None], decided: Outcome, asked: int
) -> None:
    log: list[str] = []
    chain = IdentityChain([Fixed(str(number), outcome, log) for number, outcome in enumerate(outcomes)])
    assert chain.identify({}, STRANGER) == decided
    assert log == [f"ask {number}" for number in range(asked)]


def test_the_chain_reads_consumes_and_distrusts_what_any_resolver_does() -> None:
    chain = IdentityChain([Fixed("a", None, []), Fixed("b", None, [])], removed_from_untrusted_peers={b"n"})
    assert chain.reads == {b"x-a", b"x-b"}
    assert chain.consumes == {b"x-a", b"x-b"}
    assert chain.spoofable == {b"s-a", b"s-b", b"n"}


async def test_resolvers_start_in_order_and_close_in_reverse() -> None:
    log: list[str] = []
    chain = IdentityChain([Fixed("a", None, log), Fixed("b", None, log)])
    await chain.start()
    await chain.close()
    assert log == ["start a", "start b", "close b", "close a"]


async def test_when_one_cannot_start_those_before_it_are_closed() -> None:
    log: list[str] = []
    broken = Fixed("b", None, log, start_error=IdentitySetupError("no file"))
    chain = IdentityChain([Fixed("a", None, log), broken, Fixed("c", None, log)])
    with pytest.raises(IdentitySetupError, match="no file"):
        await chain.start()
    assert log == ["start a", "start b", "close b", "close a"]


STORE = MemoryKeyStore({"key-a": "alice"})
ALL = build_chain(
    [
        TrustedHeaderSettings(type="trusted_header"),
        XfccSettings(type="xfcc"),
        MtlsSettings(type="mtls"),
        ApiKeySettings(type="api_key"),
    ],
    STORE,
    realm="bank",
)


async def test_a_caller_without_credential_is_told_what_there_is() -> None:
    outcome = await settled(ALL.identify({}, STRANGER))
    assert outcome == Unidentified(
        "the request has no credential that the gateway accepts; send a client certificate or an API key in X-API-Key",
        'ClientCertificate realm="bank", ApiKey realm="bank", header="X-API-Key"',
    )


def test_a_chain_that_only_a_gateway_can_satisfy_still_sends_a_challenge() -> None:
    outcome = build_chain([TrustedHeaderSettings(type="trusted_header")]).identify({}, STRANGER)
    assert outcome == Unidentified(
        "the request has no credential that the gateway accepts", 'TrustedGateway realm="open-banking"'
    )


async def test_a_stranger_who_forges_the_header_is_who_his_key_says() -> None:
    fields = {b"x-tpp-id": b"victim", b"x-api-key": b"key-a"}
    assert await settled(ALL.identify(fields, STRANGER)) == Identity("alice", "api_key")
    assert await settled(ALL.identify(fields, TRUSTED)) == Identity("victim", "trusted_header")


async def test_a_bad_header_of_a_trusted_peer_is_not_rescued_by_a_good_key() -> None:
    outcome = await settled(ALL.identify({b"x-tpp-id": b"", b"x-api-key": b"key-a"}, TRUSTED))
    assert "not an account id" in reason_of(outcome)


async def test_a_bad_certificate_is_not_rescued_by_a_good_key() -> None:
    peer = Peer("203.0.113.9", trusted=False, certificate=der(certificate()))
    outcome = await settled(ALL.identify({b"x-api-key": b"key-a"}, peer))
    assert "no organizationIdentifier" in reason_of(outcome)


def test_identity_headers_of_strangers_are_dropped_even_if_no_resolver_reads_them() -> None:
    chain = build_chain([ApiKeySettings(type="api_key")], STORE)
    assert {b"x-tpp-id", b"x_tpp_id", b"x-forwarded-client-cert"} <= chain.spoofable
    assert chain.reads == {b"x-api-key"}
    assert {b"x-api-key", b"x-tpp-id", b"x_tpp_id", b"x-forwarded-client-cert"} <= chain.consumes


def test_a_header_that_strangers_are_asked_for_is_not_dropped_whatever_its_name() -> None:
    chain = build_chain([ApiKeySettings(type="api_key", header="X-TPP-Id", forward=True)], STORE)
    assert b"x-tpp-id" not in chain.spoofable
    assert b"x-forwarded-client-cert" in chain.spoofable


def test_keys_without_a_store_are_a_mistake_in_the_setup() -> None:
    with pytest.raises(IdentitySetupError, match="api_key"):
        build_chain([ApiKeySettings(type="api_key")])


@pytest.mark.parametrize("realm", ["", 'a"b', "é", "x" * 65, "a\r\nb"])
def test_a_realm_that_could_break_out_of_its_quotes_is_refused(realm: str) -> None:
    with pytest.raises(IdentitySetupError, match="realm"):
        build_chain([MtlsSettings(type="mtls")], realm=realm)


def test_a_chain_of_nothing_is_a_mistake_in_the_setup() -> None:
    with pytest.raises(IdentitySetupError, match="no resolver"):
        build_chain([])


def test_a_chain_shows_its_order() -> None:
    assert repr(ALL) == "IdentityChain(trusted_header, xfcc, mtls, api_key)"
