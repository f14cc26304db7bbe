from __future__ import annotations

import asyncio
import hashlib

import pytest

from sidecar.identity.api_key import ApiKeyResolver, key_digest
from sidecar.identity.settings import ApiKeySettings
from sidecar.identity.types import Identity, IdentityUnavailable, Outcome
from tests.unit.identity.kit import STRANGER, Clock, MemoryKeyStore, reason_of, settled

ALICE = Identity("alice", "api_key")


class World:
    """A resolver with its store and clock."""

    def __init__(self, **settings: object) -> None:
        self.clock = Clock()
        self.store = MemoryKeyStore({"key-a": "alice", "key-b": "bob"})
        model = ApiKeySettings.model_validate({"type": "api_key"} | settings)
        self.resolver = ApiKeyResolver(model, self.store, realm="bank", clock=self.clock)

    def resolve(self, key: str) -> Outcome | asyncio.Future[Outcome] | None:
        return self.resolver.resolve({b"x-api-key": key.encode("latin-1")}, STRANGER)

    async def ask(self, key: str) -> Outcome | None:
        return await settled(self.resolve(key))


async def test_a_key_in_the_store_names_its_account() -> None:
    world = World()
    assert await world.ask("key-a") == ALICE
    assert await world.ask("key-b") == Identity("bob", "api_key")


async def test_a_key_that_is_not_in_the_store_is_refused_with_a_challenge() -> None:
    outcome = await World().ask("key-x")
    assert reason_of(outcome) == "the API key is not known"
    assert outcome.challenge == 'ApiKey realm="bank", header="X-API-Key"'  # type: ignore[union-attr]


async def test_no_header_is_no_credential() -> None:
    assert World().resolver.resolve({b"authorization": b"x"}, STRANGER) is None


@pytest.mark.parametrize("key", ["", " ", "key-a, key-b", "key-a,key-b", "key a", "key\x00", "k\xe9y", "x" * 513])
async def test_a_value_that_can_be_no_key_is_refused_without_asking_the_store(key: str) -> None:
    world = World()
    assert reason_of(world.resolve(key)) == "the API key is malformed"
    assert world.store.asked == []


async def test_the_store_is_asked_by_the_digest_and_never_sees_the_key() -> None:
    world = World()
    await world.ask("key-a")
    assert world.store.asked == [hashlib.sha256(b"key-a").hexdigest()]


async def test_a_confirmed_key_is_answered_without_waiting_until_its_time_is_up() -> None:
    world = World(ttl_s=30)
    await world.ask("key-a")
    world.clock.advance(29.9)
    assert world.resolve("key-a") == ALICE
    assert len(world.store.asked) == 1
    world.clock.advance(0.1)
    assert isinstance(world.resolve("key-a"), asyncio.Future)
    assert await world.ask("key-a") == ALICE
    assert len(world.store.asked) == 2


async def test_a_revoked_key_ends_with_its_ttl() -> None:
    world = World(ttl_s=30)
    await world.ask("key-a")
    world.store.accounts.clear()
    world.clock.advance(29)
    assert await world.ask("key-a") == ALICE
    world.clock.advance(1)
    assert reason_of(await world.ask("key-a")) == "the API key is not known"


async def test_a_revoked_key_does_not_come_back_when_the_store_goes_away() -> None:
    world = World(ttl_s=30)
    await world.ask("key-a")
    world.store.accounts.clear()
    world.clock.advance(30)
    await world.ask("key-a")
    world.store.down = True
    world.clock.advance(5)
    with pytest.raises(IdentityUnavailable):
        await world.ask("key-a")


async def test_an_unknown_key_is_refused_without_asking_again_for_a_moment() -> None:
    world = World(negative_ttl_s=2)
    await world.ask("key-x")
    world.clock.advance(1.9)
    assert reason_of(world.resolve("key-x")) == "the API key is not known"
    assert len(world.store.asked) == 1


async def test_a_new_key_works_as_soon_as_its_refusal_is_forgotten() -> None:
    world = World(negative_ttl_s=2)
    await world.ask("key-x")
    world.store.accounts[key_digest("key-x")] = "carol"
    world.clock.advance(2)
    assert await world.ask("key-x") == Identity("carol", "api_key")


async def test_a_hundred_requests_with_a_new_key_are_one_look_up() -> None:
    world = World()
    world.store.gate = asyncio.Event()
    waiting = [world.resolve("key-a") for _ in range(100)]
    world.store.gate.set()
    assert [await settled(outcome) for outcome in waiting] == [ALICE] * 100
    assert len(world.store.asked) == 1


async def test_a_client_that_goes_away_does_not_cancel_the_look_up_of_others() -> None:
    world = World()
    world.store.gate = asyncio.Event()
    first, second = world.resolve("key-a"), world.resolve("key-a")
    assert isinstance(first, asyncio.Future)
    await asyncio.sleep(0)
    first.cancel()
    world.store.gate.set()
    assert await settled(second) == ALICE


async def test_with_the_store_down_a_known_key_goes_on_until_it_is_too_stale() -> None:
    world = World(ttl_s=30, max_stale_s=100)
    await world.ask("key-a")
    world.store.down = True
    world.clock.advance(99)
    assert await world.ask("key-a") == ALICE
    world.clock.advance(1)
    with pytest.raises(IdentityUnavailable, match="unreachable"):
        await world.ask("key-a")


async def test_with_the_store_down_a_stale_key_asks_it_at_most_once_a_second() -> None:
    world = World(ttl_s=30, max_stale_s=100)
    await world.ask("key-a")
    world.store.down = True
    world.clock.advance(30)
    await world.ask("key-a")
    asked = len(world.store.asked)
    world.clock.advance(0.9)
    assert world.resolve("key-a") == ALICE
    assert len(world.store.asked) == asked
    world.clock.advance(0.1)
    assert await world.ask("key-a") == ALICE
    assert len(world.store.asked) == asked + 1


async def test_with_the_store_down_a_key_that_becomes_too_stale_ends_at_once() -> None:
    world = World(ttl_s=30, max_stale_s=100)
    await world.ask("key-a")
    world.store.down = True
    world.clock.advance(99.5)
    assert await world.ask("key-a") == ALICE
    world.clock.advance(0.5)
    with pytest.raises(IdentityUnavailable):
        await world.ask("key-a")


async def test_when_the_store_is_back_a_stale_key_is_confirmed_at_once() -> None:
    world = World(ttl_s=30, max_stale_s=100)
    await world.ask("key-a")
    world.store.down = True
    world.clock.advance(30)
    await world.ask("key-a")
    world.store.down = False
    await world.ask("key-b")
    world.store.accounts.pop(key_digest("key-a"))
    assert reason_of(await world.ask("key-a")) == "the API key is not known"


async def test_with_the_store_down_a_key_never_seen_cannot_be_judged() -> None:
    world = World()
    world.store.down = True
    with pytest.raises(IdentityUnavailable):
        await world.ask("key-a")
    world.store.down = False
    assert await world.ask("key-a") == ALICE


async def test_without_staleness_a_key_ends_with_its_ttl_when_the_store_is_down() -> None:
    world = World(ttl_s=30, max_stale_s=0)
    await world.ask("key-a")
    world.store.down = True
    world.clock.advance(29)
    assert await world.ask("key-a") == ALICE
    world.clock.advance(1)
    with pytest.raises(IdentityUnavailable):
        await world.ask("key-a")


async def test_a_store_that_does_not_answer_counts_as_down() -> None:
    world = World(lookup_timeout_s=0.001)
    world.store.gate = asyncio.Event()
    with pytest.raises(IdentityUnavailable):
        await world.ask("key-a")
    assert world.resolver.failures == 1


async def test_invented_keys_do_not_push_known_ones_out() -> None:
    world = World(cache_entries=2)
    await world.ask("key-a")
    for number in range(10):
        await world.ask(f"invented-{number}")
    assert world.resolve("key-a") == ALICE
    assert "known BoundedCache(1 of 2), refused BoundedCache(2 of 2)" in repr(world.resolver)


async def test_the_raw_key_is_nowhere_in_the_resolver_once_it_has_answered() -> None:
    world = World()
    secret = "a-key-that-is-easy-to-find"
    await world.ask(secret)
    await world.ask("key-a")
    resolver = world.resolver
    kept = repr([resolver._known._entries, resolver._refused_until_s._entries, vars(resolver._flight), resolver])
    assert repr(ALICE) in kept
    assert secret not in kept
    assert "key-a" not in kept


async def test_the_counts_tell_look_ups_failures_and_stale_answers() -> None:
    world = World(ttl_s=30)
    await world.ask("key-a")
    await world.ask("key-a")
    world.store.down = True
    world.clock.advance(30)
    await world.ask("key-a")
    await world.ask("key-a")
    resolver = world.resolver
    assert (resolver.lookups, resolver.failures, resolver.stale_answers) == (2, 1, 2)


async def test_closing_answers_who_waits() -> None:
    world = World()
    world.store.gate = asyncio.Event()
    waiting = world.resolve("key-a")
    await world.resolver.close()
    with pytest.raises(IdentityUnavailable, match="shutting down"):
        await settled(waiting)


async def test_another_error_of_the_store_reaches_the_caller_instead_of_letting_it_wait() -> None:
    class Broken(MemoryKeyStore):
        async def account_of(self, sha256_hex: str) -> str | None:
            raise RuntimeError("a bug")

    settings = ApiKeySettings.model_validate({"type": "api_key"})
    resolver = ApiKeyResolver(settings, Broken({}), realm="bank")
    with pytest.raises(RuntimeError, match="a bug"):
        await settled(resolver.resolve({b"x-api-key": b"key"}, STRANGER))


@pytest.mark.parametrize(("forward", "consumed"), [(True, frozenset()), (False, frozenset({b"x-api-key"}))])
def test_the_key_is_kept_from_the_api_unless_configured_otherwise(forward: bool, consumed: frozenset[bytes]) -> None:
    settings = ApiKeySettings(type="api_key", forward=forward)
    assert ApiKeyResolver(settings, MemoryKeyStore({}), realm="bank").consumes == consumed


def test_the_digest_is_what_the_store_keeps() -> None:
    assert key_digest("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize("key", ["", "a b", "a,b", "é", "x" * 513, "\ud800"])
def test_no_digest_is_made_of_a_key_that_no_request_could_carry(key: str) -> None:
    with pytest.raises(ValueError, match="visible ASCII") as caught:
        key_digest(key)
    assert not key or key not in str(caught.value)
