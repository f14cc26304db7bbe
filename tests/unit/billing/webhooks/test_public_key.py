"""A key that many ask for and that is fetched seldom."""

from __future__ import annotations

import asyncio

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from sidecar.billing.webhooks.public_key import (
    AGE_S_MAX,
    COOL_DOWN_S,
    PublicKey,
    PublicKeyError,
    parse_public_key,
)
from tests.unit.billing.webhooks.kit import HandClock, SigningKey


@pytest.fixture(scope="module")
def signing() -> SigningKey:
    return SigningKey()


class Slow:
    """Answers when it is let."""

    def __init__(self, pem: bytes) -> None:
        self.pem = pem
        self.asked = 0
        self.go = asyncio.Event()

    async def __call__(self) -> bytes:
        self.asked += 1
        await self.go.wait()
        return self.pem


async def test_all_who_ask_meanwhile_share_one_fetch(signing: SigningKey) -> None:
    slow = Slow(signing.pem)
    keys = PublicKey(slow, HandClock())
    asking = [asyncio.create_task(keys.current()) for _ in range(50)]
    await asyncio.sleep(0)
    slow.go.set()
    found = await asyncio.gather(*asking)
    assert (slow.asked, len(set(map(id, found)))) == (1, 1)
    assert found[0] is not None


async def test_one_who_stops_waiting_does_not_end_the_fetch_for_the_others(signing: SigningKey) -> None:
    slow = Slow(signing.pem)
    keys = PublicKey(slow, HandClock())
    first, second = asyncio.create_task(keys.current()), asyncio.create_task(keys.current())
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    slow.go.set()
    assert await second is not None


async def test_an_old_key_is_fetched_again_while_it_stays_in_use(signing: SigningKey) -> None:
    clock, slow = HandClock(), Slow(signing.pem)
    slow.go.set()
    keys = PublicKey(slow, clock)
    await keys.current()
    slow.go.clear()
    newer = SigningKey()
    slow.pem = newer.pem

    clock.at_s += AGE_S_MAX - 1
    await keys.current()
    assert slow.asked == 1

    clock.at_s += 1
    stale = await asyncio.wait_for(keys.current(), 1)  # waits for nothing
    assert stale is not None
    assert stale.public_numbers() == signing.private.public_key().public_numbers()

    slow.go.set()
    await keys.refresh()
    fresh = await keys.current()
    assert fresh is not None
    assert fresh.public_numbers() == newer.private.public_key().public_numbers()
    assert (slow.asked, keys.fetches, keys.failures) == (2, 2, 0)


async def test_a_fetch_that_answers_nonsense_keeps_the_key(signing: SigningKey) -> None:
    clock, slow = HandClock(), Slow(signing.pem)
    slow.go.set()
    keys = PublicKey(slow, clock)
    known = await keys.current()
    slow.pem = b"<html>502</html>"
    clock.at_s += COOL_DOWN_S
    assert await keys.refresh() is known
    assert keys.failures == 1


async def test_closing_ends_a_fetch_under_way(signing: SigningKey) -> None:
    keys = PublicKey(Slow(signing.pem), HandClock())
    asking = asyncio.create_task(keys.current())
    await asyncio.sleep(0)
    await keys.close()
    await asyncio.wait({asking}, timeout=1)
    assert asking.done()
    assert len(asyncio.all_tasks()) == 1


def _elliptic() -> bytes:
    return (
        ec.generate_private_key(ec.SECP256R1())
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )


@pytest.mark.parametrize(
    ("pem", "reason"),
    [
        (b"", "not a public key in PEM"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "not a public key in PEM"),
        (b"x" * 65_537, "larger than"),
        (SigningKey(1024).pem, "1024 bits"),
        (_elliptic(), "not an RSA key"),
    ],
)
def test_what_is_no_key_for_rs256_is_not_used(pem: bytes, reason: str) -> None:
    with pytest.raises(PublicKeyError, match=reason):
        parse_public_key(pem)
