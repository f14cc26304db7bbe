"""The eIDAS organisation identifier: its grammar, and which account it stands for.

ETSI TS 119 495 section 5.2.1 (GEN-5.2.1-3) for payment service providers, ETSI EN 319 412-1 section 5.1.4 for
the rest.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Final, Literal

from sidecar.identity.account_id import is_account_id
from sidecar.identity.types import Outcome, Unidentified, identified

#: X.520 ``organizationIdentifier``.
OID: Final = "2.5.4.97"

Scheme = Literal["PSD", "NTR", "VAT", "LEI"]

#: The numbers come from registers with rules of their own, so any printable ASCII may be in them; blanks at
#: the ends are a mistake, and would make two names of one.
_NUMBER = r"[!-~](?:[ -~]{0,62}[!-~])?"

GRAMMAR: Final[Mapping[Scheme, re.Pattern[str]]] = {
    # "PSD", country of the authority (ISO 3166), authority of 2 to 8 capitals, authorisation number
    "PSD": re.compile(rf"PSD[A-Z]{{2}}-[A-Z]{{2,8}}-{_NUMBER}"),
    # national trade register; a subdivision after "+" is allowed by the CA/Browser Forum EV Guidelines,
    # section 9.2.8
    "NTR": re.compile(rf"NTR[A-Z]{{2}}(?:\+[A-Z0-9]{{1,3}})?-{_NUMBER}"),
    # value added tax number; EL stands for Greece
    "VAT": re.compile(rf"VAT[A-Z]{{2}}-{_NUMBER}"),
    # legal entity identifier, ISO 17442; the country is always XG
    "LEI": re.compile(r"LEIXG-[A-Z0-9]{18}[0-9]{2}"),
}


def is_organisation_identifier(text: str, schemes: Collection[Scheme]) -> bool:
    """Tell whether ``text`` follows the grammar of one of ``schemes``. Case counts."""
    return any(GRAMMAR[scheme].fullmatch(text) for scheme in schemes)


class OrganisationRules:
    """Turns the organisation identifiers found in one certificate into an outcome."""

    def __init__(
        self, via: str, *, schemes: Collection[Scheme], accounts: Mapping[str, str] | None, challenge: str
    ) -> None:
        self._via = via
        self._schemes = tuple(schemes)
        self._accounts = accounts
        self._challenge = challenge

    def refuse(self, reason: str) -> Unidentified:
        """Answer a refusal with this resolver's challenge."""
        return Unidentified(reason, self._challenge)

    def decide(self, identifiers: Sequence[str]) -> Outcome:
        """Answer the account of the one identifier among ``identifiers`` that belongs to a configured scheme.

        Two that differ are refused: which of them the certificate's holder goes by is not for us to guess.
        Without a table the identifier is the account id; with one, an identifier that it lacks is refused.
        """
        if not identifiers:
            return self.refuse("the certificate has no organizationIdentifier (OID 2.5.4.97)")
        fitting = {text for text in identifiers if is_organisation_identifier(text, self._schemes)}
        if not fitting:
            forms = ", ".join(self._schemes)
            return self.refuse(f"the certificate's organizationIdentifier is of none of the accepted forms: {forms}")
        if len(fitting) > 1:
            return self.refuse("the certificate has several organizationIdentifiers")
        identifier = fitting.pop()
        if self._accounts is not None:
            account = self._accounts.get(identifier)
            if account is None:
                return self.refuse(f"the organisation {identifier} has no account here")
            return identified(account, self._via, identifier)
        if not is_account_id(identifier):
            return self.refuse(f"the organisation {identifier} needs an account id of its own here")
        return identified(identifier, self._via, identifier)
