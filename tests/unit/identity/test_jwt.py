from __future__ import annotations

import asyncio

import pytest

from sidecar.identity.jwt import JwtResolver
from sidecar.identity.jwt_token import NO_JWT
from sidecar.identity.key_ring import KeyRing
from sidecar.identity.settings import JwtSettings
from sidecar.identity.types import Identity, IdentityUnavailable, Outcome, Unidentified
from tests.unit.identity.kit import (
    AUDIENCE,
    ISSUER,
    NOW_S,
    STRANGER,
    Clock,
    MemoryKeySource,
    bearer,
    es_key,
    key_set,
    reason_of,
    rs_key,
    settled,
)

OLD, NEW = es_key("old"), es_key("new")
TPP = Identity("tpp-1", "jwt")
UNKNOWN_KEY = "the token is signed with a key that the issuer does not publish"


class World:
    """A resolver with its keys, its clock of caches and its clock on the wall."""

    def __init__(self, *keys: object, ttl_s: float = 300, max_stale_s: float | None = 3600, **settings: object) -> None:
        self.clock, self.wall = Clock(), Clock(NOW_S)
        self.source = MemoryKeySource(key_set(*(keys or (OLD,))))  # type: ignore[arg-type]
        self.ring = KeyRing(self.source, ttl_s=ttl_s, cool_down_s=10, max_stale_s=max_stale_s, clock=self.clock)
        fixed = {"type": "jwt", "issuer": ISSUER, "audience": [AUDIENCE], "jwks_url": "https://id.bank.example/jwks"}
        model = JwtSettings.model_validate(fixed | settings)
        self.resolver = JwtResolver(model, self.ring, realm="bank", wall=self.wall)

    def resolve(self, token: str) -> Outcome | asyncio.Future[Outcome] | None:
        return self.resolver.resolve(bearer(token), STRANGER)

    async def ask(self, token: str) -> Outcome | None:
        return await settled(self.resolve(token))

    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.wall.advance(seconds)


async def started(*keys: object, **settings: object) -> World:
    world = World(*keys, **settings)  # type: ignore[arg-type]
    await world.resolver.start()
    return world


async def test_once_the_keys_are_there_a_token_is_judged_without_waiting() -> None:
    world = await started()
    assert world.resolve(OLD.token()) == TPP


async def test_before_the_keys_are_there_the_first_token_waits_for_them() -> None:
    world = World()
    waiting = [world.resolve(OLD.token()) for _ in range(50)]
    assert all(isinstance(outcome, asyncio.Future) for outcome in waiting)
    assert [await settled(outcome) for outcome in waiting] == [TPP] * 50
    assert world.ring.readings == 1


@pytest.mark.parametrize("value", [b"Basic YTpi", b"Bearerx y", b"Digest a=b", b"", b"Bear", b"Basic x, Bearer y"])
async def test_credentials_of_another_scheme_are_not_of_this_kind(value: bytes) -> None:
    assert World().resolver.resolve({b"authorization": value}, STRANGER) is None
    assert World().resolver.resolve({}, STRANGER) is None


@pytest.mark.parametrize("scheme", ["Bearer ", "bearer ", "BEARER ", "Bearer   "])
async def test_the_scheme_ignores_case_and_takes_several_spaces(scheme: str) -> None:
    world = await started()
    value = (scheme + OLD.token()).encode()
    assert world.resolver.resolve({b"authorization": value}, STRANGER) == TPP


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"Bearer", NO_JWT),
        (b"Bearer ", NO_JWT),
        (b"Bearer x", NO_JWT),
        (b"Bearer \xff.b.c", NO_JWT),
        (b"Bearer a.b.c, Bearer a.b.c", NO_JWT),
        (b"Bearer " + b"a" * 8193, "the token is too long"),
    ],
)
async def test_a_bearer_that_is_no_token_is_refused_without_reading_keys(value: bytes, reason: str) -> None:
    world = World()
    assert reason_of(world.resolver.resolve({b"authorization": value}, STRANGER)) == reason
    assert world.ring.readings == 0


async def test_a_refusal_carries_the_challenge_of_rfc_6750() -> None:
    world = await started()
    assert world.resolve(OLD.token(exp=1)) == Unidentified(
        "the token has expired",
        'Bearer realm="bank", error="invalid_token", error_description="the token has expired"',
    )
    assert world.resolver.challenge == 'Bearer realm="bank"'


async def test_a_verified_token_is_not_verified_again() -> None:
    world = await started()
    token = OLD.token()
    assert [world.resolve(token) for _ in range(10)] == [TPP] * 10
    assert world.resolver.verifications == 1


async def test_a_remembered_token_ends_when_it_expires() -> None:
    world = await started(leeway_s=5, cache_ttl_s=3600, ttl_s=7200, max_stale_s=7200)
    token = OLD.token(exp=NOW_S + 60)
    assert world.resolve(token) == TPP
    world.pass_time(64)
    assert world.resolve(token) == TPP
    world.pass_time(1)
    assert reason_of(world.resolve(token)) == "the token has expired"


async def test_a_remembered_token_is_verified_again_after_its_time_in_memory() -> None:
    world = await started(cache_ttl_s=20)
    token = OLD.token()
    world.resolve(token)
    world.pass_time(20)
    assert world.resolve(token) == TPP
    assert world.resolver.verifications == 2


async def test_a_bad_token_is_not_remembered_as_a_good_one() -> None:
    world = await started()
    for _ in range(2):
        assert reason_of(world.resolve(es_key("old").token())) == "the signature of the token is wrong"
    assert "BoundedCache(0 of 10000)" in repr(world.resolver)


async def test_the_memory_of_tokens_is_bounded() -> None:
    world = await started(cache_entries=3)
    for number in range(10):
        assert world.resolve(OLD.token(client_id=f"tpp-{number}")) == Identity(f"tpp-{number}", "jwt")
    assert "BoundedCache(3 of 3)" in repr(world.resolver)


async def test_a_rotated_key_is_found_at_its_first_use() -> None:
    world = await started()
    world.source.document = key_set(OLD, NEW)
    world.pass_time(10)
    assert await world.ask(NEW.token()) == TPP
    assert world.ring.readings == 2


async def test_unknown_keys_lead_to_one_reading_per_cool_down_however_many_there_are() -> None:
    world = await started()
    world.pass_time(10)
    waiting = [world.resolve(es_key(f"invented-{number}").token()) for number in range(20)]
    assert [reason_of(await settled(outcome)) for outcome in waiting] == [UNKNOWN_KEY] * 20
    assert world.ring.readings == 2
    world.pass_time(9.9)
    assert reason_of(world.resolve(NEW.token())) == UNKNOWN_KEY
    world.pass_time(0.1)
    assert isinstance(world.resolve(NEW.token()), asyncio.Future)


async def test_tokens_with_a_known_key_do_not_wait_for_a_reading_on_behalf_of_an_unknown_one() -> None:
    world = await started()
    world.pass_time(10)
    world.source.gate = asyncio.Event()
    unknown = world.resolve(NEW.token())
    assert isinstance(unknown, asyncio.Future)
    assert world.resolve(OLD.token()) == TPP
    world.source.gate.set()
    assert reason_of(await unknown) == UNKNOWN_KEY


async def test_a_withdrawn_key_ends_with_the_ttl_even_for_tokens_that_are_remembered() -> None:
    world = await started(cache_ttl_s=300, ttl_s=300)
    remembered = OLD.token(exp=NOW_S + 9000)
    assert world.resolve(remembered) == TPP
    world.source.document = key_set(NEW)
    world.pass_time(299)
    assert world.resolve(remembered) == TPP
    world.pass_time(1)
    assert reason_of(await world.ask(remembered)) == UNKNOWN_KEY


async def test_remembered_tokens_are_forgotten_as_soon_as_a_reading_shows_a_key_withdrawn() -> None:
    world = await started(cache_ttl_s=3600)
    remembered = OLD.token()
    assert world.resolve(remembered) == TPP
    world.source.document = key_set(NEW)
    world.pass_time(10)
    assert await world.ask(NEW.token()) == TPP
    assert reason_of(await world.ask(remembered)) == UNKNOWN_KEY


async def test_a_key_that_is_added_makes_nothing_forgotten() -> None:
    world = await started()
    token = OLD.token()
    world.resolve(token)
    world.source.document = key_set(OLD, NEW)
    world.pass_time(10)
    await world.ask(NEW.token())
    world.resolve(token)
    assert world.resolver.verifications == 2


async def test_with_the_issuer_down_known_keys_go_on_and_only_the_first_caller_waits() -> None:
    world = await started(ttl_s=300, max_stale_s=3600)
    world.source.down = True
    world.pass_time(300)
    first = world.resolve(OLD.token(exp=NOW_S + 9000))
    assert isinstance(first, asyncio.Future)
    assert await first == TPP
    assert world.ring.failures == 1
    for number in range(5):
        world.pass_time(100)
        assert world.resolve(OLD.token(client_id=f"tpp-{number}", exp=NOW_S + 9000)) == Identity(f"tpp-{number}", "jwt")
        await asyncio.sleep(0)
    assert world.ring.failures > 1
    assert world.ring.failing


async def test_with_the_issuer_back_the_keys_are_read_behind_the_next_request() -> None:
    world = await started(ttl_s=300)
    world.source.down = True
    world.pass_time(300)
    await world.ask(OLD.token())
    world.source.down = False
    world.source.document = key_set(NEW)
    world.pass_time(10)
    assert world.resolve(OLD.token(client_id="tpp-2")) == Identity("tpp-2", "jwt")
    while world.ring.failing:
        await asyncio.sleep(0)
    assert world.resolve(NEW.token()) == TPP
    assert reason_of(await world.ask(OLD.token(client_id="tpp-3"))) == UNKNOWN_KEY


@pytest.mark.parametrize(("max_stale_s", "goes_on"), [(3600.0, False), (None, True)])
async def test_with_the_issuer_down_for_too_long_known_keys_end_unless_configured_otherwise(
    max_stale_s: float | None, goes_on: bool
) -> None:
    world = await started(ttl_s=300, max_stale_s=max_stale_s)
    world.source.down = True
    world.pass_time(300)
    await world.ask(OLD.token())
    world.pass_time(3300)
    token = OLD.token(exp=NOW_S + 9000)
    if goes_on:
        assert await world.ask(token) == TPP
    else:
        with pytest.raises(IdentityUnavailable):
            await world.ask(token)
        with pytest.raises(IdentityUnavailable):
            await world.ask(token)
        assert world.ring.failures == 2


async def test_with_the_issuer_down_an_unknown_key_cannot_be_judged() -> None:
    world = await started()
    world.source.down = True
    world.pass_time(10)
    with pytest.raises(IdentityUnavailable):
        await world.ask(NEW.token())
    with pytest.raises(IdentityUnavailable):
        await world.ask(NEW.token())
    assert world.ring.failures == 1
    assert world.resolve(OLD.token()) == TPP


async def test_a_broken_key_set_counts_as_an_issuer_that_is_down() -> None:
    world = await started()
    world.source.document = b'{"keys": []}'
    world.pass_time(300)
    assert await world.ask(OLD.token()) == TPP
    assert world.ring.failures == 1


async def test_without_key_id_the_only_key_that_fits_is_taken() -> None:
    nameless = es_key(None)
    world = await started(nameless, rs_key("r1"))
    assert world.resolve(nameless.token()) == TPP
    world = await started(nameless, es_key("other"))
    assert reason_of(world.resolve(nameless.token())) == UNKNOWN_KEY


async def test_an_issuer_out_of_reach_at_start_only_delays_its_tokens() -> None:
    world = World()
    world.source.down = True
    await world.resolver.start()
    with pytest.raises(IdentityUnavailable):
        await world.ask(OLD.token())
    world.source.down = False
    world.pass_time(10)
    assert await world.ask(OLD.token()) == TPP


async def test_a_client_that_goes_away_does_not_cancel_the_reading_for_others() -> None:
    world = World()
    world.source.gate = asyncio.Event()
    first, second = world.resolve(OLD.token()), world.resolve(OLD.token())
    assert isinstance(first, asyncio.Future)
    await asyncio.sleep(0)
    first.cancel()
    world.source.gate.set()
    assert await settled(second) == TPP


async def test_closing_answers_who_waits() -> None:
    world = World()
    world.source.gate = asyncio.Event()
    waiting = world.resolve(OLD.token())
    await asyncio.sleep(0)
    await world.resolver.close()
    with pytest.raises(IdentityUnavailable, match="shutting down"):
        await settled(waiting)


async def test_a_token_is_nowhere_in_what_the_resolver_shows() -> None:
    world = await started()
    token = OLD.token()
    refused = world.resolve(token[:-4] + "AAAA")
    world.resolve(token)
    shown = repr(world.resolver) + repr(vars(world.resolver)) + repr(refused)
    assert all(part not in shown for part in token.split("."))


@pytest.mark.parametrize(("forward", "consumed"), [(True, frozenset()), (False, frozenset({b"authorization"}))])
def test_the_token_reaches_the_api_unless_configured_otherwise(forward: bool, consumed: frozenset[bytes]) -> None:
    assert World(forward=forward).resolver.consumes == consumed
