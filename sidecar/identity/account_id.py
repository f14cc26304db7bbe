"""What an account id may look like, whichever resolver identified it."""

from __future__ import annotations

import re

#: The id is Lago's ``external_id``, OpenMeter's subject, a part of Valkey keys, of admin URLs and of log
#: lines. These characters need no escape in any of them; a comma or space would let a doubled header pass for
#: one id.
ACCOUNT_ID = re.compile(r"[A-Za-z0-9._:@+-]{1,128}")


def is_account_id(text: str) -> bool:
    """Tell whether ``text`` is 1 to 128 characters of ``A-Z a-z 0-9 . _ : @ + -``."""
    return ACCOUNT_ID.fullmatch(text) is not None
