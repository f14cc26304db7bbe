from __future__ import annotations

import pytest

from sidecar.identity.organisation import OrganisationRules, Scheme, is_organisation_identifier
from sidecar.identity.types import Identity
from tests.unit.identity.kit import reason_of

ALL: tuple[Scheme, ...] = ("PSD", "NTR", "VAT", "LEI")

GRAMMAR: list[tuple[Scheme | None, str]] = [
    ("PSD", "PSDGB-FCA-123456"),
    ("PSD", "PSDES-BDE-3DFD21"),  # the example of ETSI TS 119 495
    ("PSD", "PSDPL-PFSA-1234567890"),
    ("PSD", "PSDDE-BAFIN-CC1111"),
    ("PSD", "PSDGB-OB-Unknown0015800001HQQrZAAX"),
    ("PSD", "PSDHU-MNB-H EN-I 638/2013"),
    ("PSD", "PSDXX-ABCDEFGH-1"),
    ("NTR", "NTRGB-12345678"),
    ("NTR", "NTRUS+CA-12345"),
    ("VAT", "VATBE-0876866142"),
    ("LEI", "LEIXG-529900T8BM49AURSDO55"),
    (None, ""),
    (None, "123456"),
    (None, "psdgb-fca-123456"),
    (None, "PSDGB-fca-123456"),
    (None, "PSDgb-FCA-123456"),
    (None, "PSDGB-F-1"),
    (None, "PSDGB-ABCDEFGHI-1"),
    (None, "PSDGB-FC1-1"),
    (None, "PSDGB-FCA-"),
    (None, "PSDGB-FCA"),
    (None, "PSDGB--1"),
    (None, "PSDGBR-FCA-1"),
    (None, "PSDGB-FCA- 1"),
    (None, "PSDGB-FCA-1 "),
    (None, "PSDGB-FCA-1\n"),
    (None, "PSDGB-FCA-é"),
    (None, "PSDGB-FCA-" + "1" * 65),
    (None, " PSDGB-FCA-1"),
    (None, "LEIGB-529900T8BM49AURSDO55"),
    (None, "LEIXG-529900T8BM49AURSDO5"),
    (None, "NTRGB+LOND-1"),
]


@pytest.mark.parametrize(("scheme", "text"), GRAMMAR)
def test_an_identifier_follows_the_grammar_of_its_scheme_and_no_other(scheme: Scheme | None, text: str) -> None:
    assert [s for s in ALL if is_organisation_identifier(text, (s,))] == ([scheme] if scheme else [])


def rules(schemes: tuple[Scheme, ...] = ("PSD",), accounts: dict[str, str] | None = None) -> OrganisationRules:
    return OrganisationRules("mtls", schemes=schemes, accounts=accounts, challenge="C")


def test_without_a_table_the_identifier_is_the_account() -> None:
    assert rules().decide(["PSDGB-FCA-1"]) == Identity("PSDGB-FCA-1", "mtls")


def test_with_a_table_the_account_is_what_it_says() -> None:
    assert rules(accounts={"PSDGB-FCA-1": "tpp-1"}).decide(["PSDGB-FCA-1"]) == Identity("tpp-1", "mtls")


@pytest.mark.parametrize(
    ("identifiers", "accounts", "reason"),
    [
        ([], None, "has no organizationIdentifier"),
        (["VATBE-1"], None, "none of the accepted forms: PSD"),
        (["PSDGB-FCA-1", "PSDGB-FCA-2"], None, "several organizationIdentifiers"),
        (["PSDGB-FCA-2"], {"PSDGB-FCA-1": "tpp-1"}, "PSDGB-FCA-2 has no account here"),
        (["psdgb-fca-1"], {"PSDGB-FCA-1": "tpp-1"}, "none of the accepted forms"),
        (["PSDHU-MNB-H 6/3"], None, "needs an account id of its own"),
    ],
)
def test_an_identifier_without_an_account_is_refused(
    identifiers: list[str], accounts: dict[str, str] | None, reason: str
) -> None:
    assert reason in reason_of(rules(accounts=accounts).decide(identifiers))


def test_an_identifier_that_is_no_account_id_gets_one_from_the_table() -> None:
    assert rules(accounts={"PSDHU-MNB-H 6/3": "tpp-hu"}).decide(["PSDHU-MNB-H 6/3"]) == Identity("tpp-hu", "mtls")


def test_the_same_identifier_twice_is_one() -> None:
    assert rules().decide(["PSDGB-FCA-1", "PSDGB-FCA-1"]) == Identity("PSDGB-FCA-1", "mtls")


def test_identifiers_of_other_schemes_beside_the_accepted_one_do_not_matter() -> None:
    assert rules().decide(["VATGB-1", "PSDGB-FCA-1", "nonsense"]) == Identity("PSDGB-FCA-1", "mtls")


def test_other_schemes_count_once_they_are_configured() -> None:
    assert rules(("PSD", "VAT")).decide(["VATGB-1"]) == Identity("VATGB-1", "mtls")
    assert "several" in reason_of(rules(("PSD", "VAT")).decide(["VATGB-1", "PSDGB-FCA-1"]))
