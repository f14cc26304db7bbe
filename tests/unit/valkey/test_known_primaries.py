"""Of several servers that disagree on who is the primary, the newest configuration counts."""

from __future__ import annotations

from sidecar.valkey import cluster_primaries, sentinel_primary
from sidecar.valkey.cluster_primaries import ClusterPrimaries
from sidecar.valkey.sentinel_primary import SentinelPrimary, Told
from sidecar.valkey.slot_map import SLOTS, SlotMap, SlotRange, keyslot, read_slots
from sidecar.valkey.url import Address, Cluster, Sentinel

A, B, C = (Address(f"10.0.0.{n}", 6379) for n in (1, 2, 3))
KEY = "{p00}x"


def sentinel_primary_of(changes: list[Address | None]) -> SentinelPrimary:
    known = SentinelPrimary(Sentinel((Address("s", 26379),), "ledger"))
    known.on_change = lambda: changes.append(known.address)
    return known


def test_a_sentinel_that_is_cut_off_is_not_believed() -> None:
    changes: list[Address | None] = []
    known = sentinel_primary_of(changes)
    assert known.is_current("anything", 1)
    for _ in range(3 * sentinel_primary.OLDER_MAX):
        known.note(Told(B, 7, is_up=True))
        known.note(Told(A, 6, is_up=True))
    assert known.address == B
    assert known.is_current(B.host, B.port)
    assert not known.is_current(A.host, A.port)
    assert changes == []


def test_an_older_answer_of_the_same_primary_does_not_make_another_old_one_believable() -> None:
    known = sentinel_primary_of([])
    for told in (Told(A, 5, is_up=True), Told(A, 3, is_up=True), Told(B, 4, is_up=True)):
        known.note(told)
    assert known.address == A


def test_a_failover_is_a_change_once() -> None:
    changes: list[Address | None] = []
    known = sentinel_primary_of(changes)
    for told in (Told(A, 6, is_up=True), Told(B, 7, is_up=True), Told(B, 7, is_up=True), Told(A, 6, is_up=True)):
        known.note(told)
    assert changes == [B]


def test_sentinels_that_were_set_up_anew_are_believed_after_a_while() -> None:
    changes: list[Address | None] = []
    known = sentinel_primary_of(changes)
    known.note(Told(B, 7, is_up=True))
    for _ in range(sentinel_primary.OLDER_MAX):
        assert known.address == B
        known.note(Told(A, 0, is_up=True))
    assert changes == [A]


def slots(*owners: tuple[int, int, Address, int]) -> SlotMap:
    return SlotMap(tuple(SlotRange(*owner) for owner in owners))


def test_of_each_slot_the_newer_owner_counts() -> None:
    known = slots((0, 99, A, 5), (100, 199, B, 6))
    read = slots((0, 49, A, 5), (50, 149, C, 7), (150, 199, A, 4))
    merged = known.updated_by(read)
    assert merged == slots((0, 49, A, 5), (50, 149, C, 7), (150, 199, B, 6))
    assert [each.epoch for each in merged.ranges] == [5, 7, 6]
    assert known.updated_by(slots((150, 160, C, 6))).primary_of(155) == C
    assert known.updated_by(slots((300, 300, C, 1))).primary_of(300) == C
    assert known.updated_by(slots((0, 99, A, 5))) == known


def cluster_primaries_of(changes: list[int]) -> ClusterPrimaries:
    known = ClusterPrimaries(Cluster((A, B)))
    known.on_change = lambda: changes.append(known.reading)
    return known


def test_a_node_that_is_cut_off_is_not_believed() -> None:
    changes: list[int] = []
    known = cluster_primaries_of(changes)
    assert known.is_current(KEY, "anything", 1)
    known.note(slots((0, SLOTS - 1, A, 5)))
    for _ in range(3 * cluster_primaries.OLDER_MAX):
        known.note(slots((0, SLOTS - 1, B, 6)))
        known.note(slots((0, SLOTS - 1, A, 5)))
    assert known.is_current(KEY, B.host, B.port)
    assert not known.is_current(KEY, A.host, A.port)
    assert len(changes) == 1


def test_only_a_slot_with_another_primary_is_a_change() -> None:
    changes: list[int] = []
    known = cluster_primaries_of(changes)
    for read in (
        slots((0, SLOTS - 1, A, 5)), slots((0, 99, A, 5), (100, SLOTS - 1, A, 5)), slots((0, SLOTS - 1, A, 6))
    ):  # fmt: skip
        known.note(read)
    assert changes == []
    slot = keyslot(KEY)
    known.note(slots((0, slot - 1, A, 6), (slot, slot, B, 7), (slot + 1, SLOTS - 1, A, 6)))
    assert len(changes) == 1
    assert known.is_current(KEY, B.host, B.port)


def test_a_cluster_that_was_set_up_anew_is_believed_after_a_while() -> None:
    changes: list[int] = []
    known = cluster_primaries_of(changes)
    known.note(slots((0, SLOTS - 1, A, 5)))
    for _ in range(cluster_primaries.OLDER_MAX):
        assert known.is_current(KEY, A.host, A.port)
        known.note(slots((0, SLOTS - 1, B, 1)))
    assert known.is_current(KEY, B.host, B.port)
    assert len(changes) == 1


def test_a_slot_without_an_owner_is_nobodys_fault() -> None:
    known = cluster_primaries_of([])
    known.note(slots((0, keyslot(KEY) - 1, A, 5)))
    assert known.is_current(KEY, B.host, B.port)


def test_epochs_are_read_from_the_list_of_nodes() -> None:
    entries = [[0, 99, [b"10.0.0.1", 6379, b"id-a", []]], [100, 199, [b"", 7000, b"id-b", []]]]
    nodes = (
        b"id-a 10.0.0.1:6379@16379 master - 0 0 12 connected 0-99\n"
        b"id-b 10.0.0.2:6379@16379,name myself,master - 0 0 3 connected 100-199\n"
    )
    found = read_slots(entries, nodes, C)
    assert [(each.primary, each.epoch) for each in found.ranges] == [(A, 12), (Address(C.host, 7000), 3)]
    assert [each.epoch for each in read_slots(entries, Exception("NOPERM"), C).ranges] == [0, 0]
