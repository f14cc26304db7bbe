from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sidecar.identity.cache import BoundedCache
from tests.unit.identity.kit import fuzz


def test_the_entry_that_was_not_used_for_longest_makes_room() -> None:
    cache: BoundedCache[str, int] = BoundedCache(2)
    cache.put("a", 1)
    cache.put("b", 2)
    assert cache.get("a") == 1
    cache.put("c", 3)
    assert (cache.get("a"), cache.get("b"), cache.get("c")) == (1, None, 3)


def test_a_new_value_takes_the_place_of_the_old_one() -> None:
    cache: BoundedCache[str, int] = BoundedCache(2)
    cache.put("a", 1)
    cache.put("a", 2)
    assert cache.get("a") == 2
    assert len(cache) == 1


def test_dropped_and_cleared_entries_are_gone() -> None:
    cache: BoundedCache[str, int] = BoundedCache(3)
    for key in "abc":
        cache.put(key, 1)
    cache.drop("a")
    cache.drop("never there")
    assert cache.get("a") is None
    assert len(cache) == 2
    cache.clear()
    assert len(cache) == 0


def test_keys_do_not_show_because_they_may_be_digests_of_secrets() -> None:
    cache: BoundedCache[str, str] = BoundedCache(3)
    cache.put("secret", "value")
    assert repr(cache) == "BoundedCache(1 of 3)"


@fuzz
@given(st.lists(st.integers(0, 20)), st.integers(1, 5))
def test_it_holds_the_last_used_keys_and_never_more_than_its_limit(keys: list[int], limit: int) -> None:
    cache: BoundedCache[int, int] = BoundedCache(limit)
    for key in keys:
        cache.put(key, key + 1)
    recent = list(dict.fromkeys(reversed(keys)))[:limit]
    assert len(cache) == len(recent)
    assert all(cache.get(key) == key + 1 for key in recent)
