"""The versions of Lago that work, and how one is told.

``GET /health`` says the version: ``v1.51.0`` in released images, a date in those built from a commit, ``development``
in a checkout (lago-api ``app/controllers/application_controller.rb``, ``lib/lago_utils/lago_utils/version.rb``). A
proxy may not let it through. What the code needs is looked for too.
"""

from __future__ import annotations

import re
from typing import Final

from sidecar.billing.lago.errors import LagoTooOld, excerpt
from sidecar.billing.lago.models import Invoice

OLDEST: Final = (1, 19, 0)
"""Of 2025-01-21, the first whose invoices say which periods they bill (lago-api PR #3064). Without them no period of
the ledger would ever count as billed."""

OLDEST_TEXT: Final = "v" + ".".join(map(str, OLDEST))
OLDEST_DATE: Final = "2025-01-17"
"""When that change came, for images built from a commit."""

_RELEASE: Final = re.compile(r"v?([0-9]{1,6})\.([0-9]{1,6})(?:\.([0-9]{1,6}))?(?![0-9])")
_DATE: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


def is_known(version: str) -> bool:
    """Whether it can be compared with :data:`OLDEST`."""
    return bool(_RELEASE.match(version) or _DATE.fullmatch(version))


def check_version(version: str) -> None:
    """Raises ``LagoTooOld`` for a version that is known to be older than :data:`OLDEST`."""
    if _DATE.fullmatch(version):
        is_old = version < OLDEST_DATE
    else:
        found = _RELEASE.match(version)
        is_old = found is not None and tuple(int(part or 0) for part in found.groups()) < OLDEST
    if is_old:
        raise LagoTooOld(f"GET /health: Lago is {excerpt(version, 40)}; the oldest that works is {OLDEST_TEXT}")


def check_invoice(endpoint: str, invoice: Invoice) -> Invoice:
    """A whole invoice. Raises ``LagoTooOld`` if it does not say which periods it bills."""
    if invoice.periods is None and invoice.type == "subscription":
        raise LagoTooOld(
            f"{endpoint}: the invoice has no billing_periods; Lago is older than {OLDEST_TEXT}, the oldest that works"
        )
    return invoice
