from __future__ import annotations

import pytest

from sidecar.identity.settings import TrustedHeaderSettings
from sidecar.identity.trusted_header import TrustedHeaderResolver
from sidecar.identity.types import Identity
from tests.unit.identity.kit import STRANGER, TRUSTED, reason_of


def resolver(**settings: object) -> TrustedHeaderResolver:
    return TrustedHeaderResolver(
        TrustedHeaderSettings.model_validate({"type": "trusted_header"} | settings), realm="bank"
    )


@pytest.mark.parametrize("value", ["a", "tpp-1", "PSDGB-FCA-123456", "Tpp_1.x:y@z+w", "x" * 128])
def test_a_trusted_peer_names_the_account(value: str) -> None:
    assert resolver().resolve({b"x-tpp-id": value.encode()}, TRUSTED) == Identity(value, "trusted_header")


@pytest.mark.parametrize("value", ["tpp-1", "", "tpp 1"])
def test_whatever_a_stranger_sends_it_is_as_if_it_were_not_there(value: str) -> None:
    assert resolver().resolve({b"x-tpp-id": value.encode()}, STRANGER) is None


def test_no_header_is_no_credential() -> None:
    assert resolver().resolve({}, TRUSTED) is None


@pytest.mark.parametrize(
    "value",
    ["", " ", "tpp-1 ", "tpp-1, tpp-2", "tpp-1,tpp-2", "tpp/1", "tpp\t1", "tpp\n", "\xe9", "x" * 129, "tpp\x00", "ſ"],
)
def test_a_value_that_is_no_account_id_is_refused_and_not_repaired(value: str) -> None:
    outcome = resolver().resolve({b"x-tpp-id": value.encode()}, TRUSTED)
    assert reason_of(outcome) == "the value of X-TPP-Id is not an account id"


def test_another_header_can_be_configured() -> None:
    other = resolver(header="X-Partner")
    assert other.reads == {b"x-partner"}
    assert other.resolve({b"x-partner": b"tpp-1"}, TRUSTED) == Identity("tpp-1", "trusted_header")
    assert other.resolve({b"x-tpp-id": b"tpp-1"}, TRUSTED) is None


def test_the_header_of_a_stranger_is_spoofable_in_every_spelling_that_cgi_confuses() -> None:
    assert resolver().spoofable == {b"x-tpp-id", b"x_tpp_id", b"x-tpp_id", b"x_tpp-id"}


@pytest.mark.parametrize(("forward", "consumed"), [(True, frozenset()), (False, frozenset({b"x-tpp-id"}))])
def test_the_header_of_a_trusted_peer_is_forwarded_unless_configured_otherwise(
    forward: bool, consumed: frozenset[bytes]
) -> None:
    assert resolver(forward=forward).consumes == consumed
