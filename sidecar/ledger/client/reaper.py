"""Gives back the holds of dead gateway processes. Several processes may run it at once: the scripts decide.

An outage is no death. A heartbeat is old when a process is dead, and also when the server was away, stood still or was
restarted. So nobody is reaped before the server could be reached, by this reaper, for one whole TTL without a gap
(`contact`). Whether gateways can reach it as well is seen by their heartbeats: while none is heard, something stands
between them and the server more likely than all of them died at once. Then, and until heartbeats have been heard for a
whole TTL again, death is a heartbeat of ``SILENT_TTLS`` TTLs. A gateway that is cut off for longer than that, or while
others are not, is reaped; it registers again when it is back, and what it had under way is charged as late settles.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.exceptions import NoPermissionError, ResponseError

from sidecar.basics.fault_reasons import reason_of
from sidecar.basics.logger import get_logger
from sidecar.ledger.client.contact import Contact
from sidecar.ledger.client.server_answers import Meaning, server_answer
from sidecar.ledger.keys import Keys
from sidecar.valkey.calls import Call, call_each
from sidecar.valkey.deadlines import with_deadline
from sidecar.valkey.scripts import script
from sidecar.valkey.topology import CLIENT_ERRORS

log = get_logger("sidecar.reaper")

ACCOUNTS_MAX: Final = 250
"""Accounts of one call: it keeps each near a millisecond of the server's only thread."""

DEPARTED: Final = b"departed:"

SILENT_TTLS: Final = 2
"""How many TTLs old a heartbeat has to be while no gateway is heard."""

HEARD_TTLS: Final = 0.5
"""A heartbeat younger than so many TTLs is heard now: they come at least every third of one."""

LOOKS_MAX: Final = 3
"""At all accounts in a row, for what departed processes hold; the next round goes on."""

LOOK_S_MIN: Final = 0.25
PROBE: Final = "."
"""No instance has this name."""


async def reap(client: Any, keys: Keys, ttl_ms: int) -> int:
    """Reaps every instance whose last heartbeat is older than ``ttl_ms``, gives back what departed ones hold; returns
    how many were reaped. At once: the caller knows that the server could be reached. :func:`keep_reaping` finds out.

    ``client``: redis.asyncio's Redis or RedisCluster. The script decides what is dead, by the ledger's clock.
    """
    reaped = 0
    for partition in range(keys.partitions):
        beats = await client.zrange(keys.alive(partition), 0, -1, withscores=True)
        if beats:
            now_ms = await _now_ms(client, keys.alive(partition))
            for instance, beat_ms in beats:
                if not now_ms - ttl_ms < beat_ms <= now_ms:
                    reaped += await _reap(client, keys, partition, instance.decode(), ttl_ms)
        await _give_back(client, keys, partition, _nothing)
    return reaped


def _nothing() -> None:
    pass


async def _now_ms(client: Any, key: str) -> int:
    if isinstance(client, RedisCluster):
        await client.initialize()
        seconds, micros = await client.execute_command("TIME", target_nodes=client.get_node_from_key(key))
    else:
        seconds, micros = await client.time()
    return int(seconds) * 1000 + int(micros) // 1000


async def _reap(client: Any, keys: Keys, partition: int, instance: str, ttl_ms: int) -> bool:
    """Whether it was dead."""
    names = [keys.instance(partition, instance), keys.clock(partition), keys.alive(partition), keys.meta(partition)]
    held = await client.eval(script("reap").text, len(names), *names, instance, ttl_ms)
    if held < 0:
        return False
    if held:
        log.warning("a gateway process died, its holds are released", instance=instance, partition=partition,
                    units=held)  # fmt: skip
    else:
        log.info("a gateway process died without holds", instance=instance, partition=partition)
    return True


async def _departed(client: Any, keys: Keys, partition: int) -> dict[bytes, int]:
    """The fields of the departures whose units are not given back yet, with these units."""
    fields = await client.hgetall(keys.meta(partition))
    return {field: int(units) for field, units in fields.items() if field.startswith(DEPARTED)}


async def _give_back(client: Any, keys: Keys, home: int, answered: Callable[[], None]) -> None:
    """Goes through the accounts until nothing remains that departed instances of this home partition hold.
    ``answered`` is called with each answer.

    Units are of accounts that are gone only if a look at all accounts found none of them. One that gave some back may
    have met two servers, of which the second has what was given back by the first.
    """
    for _ in range(LOOKS_MAX):
        departed = await _departed(client, keys, home)
        if not departed:
            return
        units, found_none, skipped = sum(departed.values()), True, False
        async for accounts in _pages(client, keys, home):
            remain, unreadable = await _give_back_page(client, keys, home, accounts)
            answered()
            skipped = skipped or unreadable
            found_none = found_none and remain == units
            if not remain:
                return
        if skipped:
            return  # what they hold of an unreadable account comes back when it can be read
        if found_none:
            log.warning("departed processes held units of accounts that are gone", partition=home,
                        processes=len(departed))  # fmt: skip
            await client.hdel(keys.meta(home), *departed)
            return


async def _pages(client: Any, keys: Keys, home: int) -> AsyncIterator[list[str]]:
    # On a cluster a batch has only accounts of its home partition; on one server it may have any.
    partitions: Sequence[int] = [home] if isinstance(client, RedisCluster) else range(keys.partitions)
    for partition in partitions:
        after = "-"
        while True:
            page = await client.zrangebylex(keys.accounts(partition), after, "+", start=0, num=ACCOUNTS_MAX)
            if page:
                yield [member.decode() for member in page]
                after = "(" + page[-1].decode()
            if len(page) < ACCOUNTS_MAX:
                break


async def _give_back_page(client: Any, keys: Keys, home: int, accounts: list[str]) -> tuple[int, bool]:
    """What remains after these accounts, and whether one of them cannot be read."""
    unreadable = False
    while True:
        names = [keys.meta(home), keys.clock(home)]
        for account in accounts:
            names += (keys.state(account), keys.account(account))
        try:
            return int(await client.eval(script("give_back").text, len(names), *names)), unreadable
        except ResponseError as error:
            answer = server_answer(str(error))
            if answer.meaning is not Meaning.ACCOUNT or answer.account > len(accounts):
                raise
            # One account that cannot be read must not keep the others' holds.
            unreadable = True
            log.error(
                "cannot release the holds of an account", account=accounts[answer.account - 1], reason=answer.reason
            )
            accounts = accounts[: answer.account - 1] + accounts[answer.account :]


@dataclass(frozen=True, slots=True)
class _Look:
    """What a server says. ``beats`` and ``departed`` by partition; a partition that is in ``faults`` is in neither."""

    run_id: str
    now_ms: int
    beats: dict[int, list[tuple[str, float]]]
    departed: frozenset[int]
    faults: dict[int, Exception]

    @property
    def youngest_ms(self) -> float:
        """The age of the youngest heartbeat."""
        ages = (self.now_ms - beat_ms for beats in self.beats.values() for _, beat_ms in beats)
        return min(ages, default=float("inf"))

    def dead(self, too_old_ms: float) -> list[tuple[int, str]]:
        """Instances whose heartbeat is so old, or later than now, which the script mends."""
        return [
            (partition, instance)
            for partition, beats in self.beats.items()
            for instance, beat_ms in beats
            if not self.now_ms - too_old_ms < beat_ms <= self.now_ms
        ]


class Reaper:
    """Looks at each server again and again; ``now_s`` is a monotonic clock. Servers do not wait for each other."""

    def __init__(self, client: Any, keys: Keys, ttl_ms: int, *, now_s: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._keys = keys
        self._ttl_ms = ttl_ms
        self._now_s = now_s
        self.pause_s = ttl_ms / 4000
        self._look_s = max(LOOK_S_MIN, ttl_ms / 8000)
        self._contacts: dict[str, Contact] = {}
        self._heard_since_s: dict[str, float] = {}
        self._working: dict[str, asyncio.Task[None]] = {}
        self._faults: dict[str, str] = {}
        self._tells_run_id = True

    def __repr__(self) -> str:
        return f"Reaper({self._contacts!r})"

    async def round(self) -> None:
        """One look at every server that is not still at work with the last one."""
        try:
            servers = await with_deadline(2 * self._look_s, self._servers())
        except (TimeoutError, *CLIENT_ERRORS) as error:
            self._contacts.clear()
            self._note("all", error)
            return
        self._note("all", None)
        for gone in self._contacts.keys() - servers.keys():
            del self._contacts[gone]
            self._heard_since_s.pop(gone, None)
        for name, (node, partitions) in servers.items():
            if name not in self._working:
                task = asyncio.get_running_loop().create_task(self._visit(name, node, partitions))
                self._working[name] = task
                task.add_done_callback(partial(self._finished, name))
        if self._working:
            await asyncio.wait(list(self._working.values()), timeout=self._look_s)

    def _finished(self, name: str, _: asyncio.Task[None]) -> None:
        del self._working[name]

    async def close(self) -> None:
        """Ends what is under way."""
        tasks = list(self._working.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=self._look_s)

    async def _servers(self) -> dict[str, tuple[ClusterNode | None, list[int]]]:
        """The partitions of each server, by its name. One of which no server has the slot is left out."""
        client = self._client
        partitions = range(self._keys.partitions)
        if not isinstance(client, RedisCluster):
            return {"": (None, list(partitions))}
        await client.initialize()
        found: dict[str, tuple[ClusterNode | None, list[int]]] = {}
        for partition in partitions:
            try:
                node = client.get_node_from_key(self._keys.alive(partition))
            except CLIENT_ERRORS as error:
                self._note(f"partition {partition}", error)
                continue
            if node is not None:
                found.setdefault(node.name, (node, []))[1].append(partition)
        return found

    async def _visit(self, name: str, node: ClusterNode | None, partitions: list[int]) -> None:
        contact = self._contacts.setdefault(name, Contact(self.pause_s + self._look_s))
        try:
            look = await with_deadline(self._look_s, self._look(node, partitions))
            contact.note_answer(self._now_s(), look.run_id, look.now_ms / 1000)
            self._note(name, None)
            for partition in partitions:
                self._note(f"partition {partition}", look.faults.get(partition))
            heard_s = self._heard_s(name, look, contact)
            if contact.reachable_s(self._now_s()) >= self._ttl_ms / 1000:
                is_heard = heard_s >= self._ttl_ms / 1000
                await self._reap_all(look.dead(self._ttl_ms * (1 if is_heard else SILENT_TTLS)), contact)
            for partition in look.departed:
                await self._give_back(partition, contact)
        except (TimeoutError, *CLIENT_ERRORS) as error:
            contact.note_failure()
            self._note(name, error)
        except Exception:  # whatever it is, the next look comes
            contact.note_failure()
            log.exception("the reaper failed", server=name)

    def _heard_s(self, name: str, look: _Look, contact: Contact) -> float:
        """For how long heartbeats have been heard in every look; -1: there is none now."""
        now_s = self._now_s()
        if look.youngest_ms > HEARD_TTLS * self._ttl_ms:
            self._heard_since_s.pop(name, None)
            return -1.0
        since_s = self._heard_since_s.setdefault(name, now_s)
        return min(now_s - since_s, contact.reachable_s(now_s))

    async def _reap_all(self, dead: list[tuple[int, str]], contact: Contact) -> None:
        for partition, instance in dead:
            try:
                reaped = await _reap(self._client, self._keys, partition, instance, self._ttl_ms)
            except ResponseError as error:
                if not _is_of_the_partition(error):
                    raise
                self._note(f"partition {partition}", error)
                continue
            contact.touch(self._now_s())
            if reaped:
                await self._give_back(partition, contact)

    async def _give_back(self, partition: int, contact: Contact) -> None:
        try:
            await _give_back(self._client, self._keys, partition, lambda: contact.touch(self._now_s()))
        except ResponseError as error:
            if not _is_of_the_partition(error):
                raise
            self._note(f"partition {partition}", error)

    async def _look(self, node: ClusterNode | None, partitions: list[int]) -> _Look:
        """Raises what the server answers that keeps gateways from their heartbeats, too."""
        run_id, now_ms = await self._identity(node)
        calls = []
        for partition in partitions:
            alive, meta = self._keys.alive(partition), self._keys.meta(partition)
            calls += [
                # As a heartbeat it is a write that needs memory, and changes nothing: the server may take only reads.
                Call(alive, ("ZADD", alive, "XX", 0, PROBE)),
                Call(alive, ("ZRANGE", alive, 0, -1, "WITHSCORES")),
                Call(meta, ("HKEYS", meta)),
            ]
        replies = await call_each(self._client, calls)
        beats: dict[int, list[tuple[str, float]]] = {}
        departed = set()
        faults: dict[int, Exception] = {}
        for at, partition in enumerate(partitions):
            probe, alive_now, fields = replies[3 * at : 3 * at + 3]
            errors = [reply for reply in (probe, alive_now, fields) if isinstance(reply, Exception)]
            if errors:
                if not _is_of_the_partition(errors[0]):
                    raise errors[0]
                faults[partition] = errors[0]
                continue
            beats[partition] = _pairs(alive_now)
            if any(field.startswith(DEPARTED) for field in fields):
                departed.add(partition)
        return _Look(run_id, now_ms, beats, frozenset(departed), faults)

    async def _identity(self, node: ClusterNode | None) -> tuple[str, int]:
        """The server's run id, "" if it does not tell, and its clock in ms."""
        where = {} if node is None else {"target_nodes": node}
        run_id = ""
        if self._tells_run_id:
            try:
                info = await self._client.execute_command("INFO", "server", **where)
                run_id = str(info.get("run_id", ""))
            except ResponseError as error:
                if type(error) not in (ResponseError, NoPermissionError):
                    raise
                self._tells_run_id = False
                log.warning("Valkey does not tell when it was restarted, so gateways may be taken for dead after it: "
                            "allow the command INFO (+info)", reason=reason_of(error)[:200])  # fmt: skip
        seconds, micros = await self._client.execute_command("TIME", **where)
        return run_id, int(seconds) * 1000 + int(micros) // 1000

    def _note(self, what: str, error: Exception | None) -> None:
        """A line when something begins to fail, and one when it works again."""
        if error is None:
            if self._faults.pop(what, None) is not None:
                log.info("holds of dead processes are released again", of=what or "the server")
        elif what not in self._faults:
            self._faults[what] = reason = reason_of(error)[:200]
            log.warning("cannot release the holds of dead processes", of=what or "the server", reason=reason)


def _is_of_the_partition(error: Exception) -> bool:
    """What one partition's data is to blame for. All else keeps gateways from their heartbeats as well."""
    # redis-py has classes of their own for refusals such as OOM and READONLY, and takes the word from their texts.
    return type(error) is ResponseError and server_answer(str(error)).meaning is Meaning.REFUSED


def _pairs(reply: Any) -> list[tuple[str, float]]:
    """Members and scores, in each of the shapes that the library has for them."""
    is_flat = bool(reply) and isinstance(reply[0], bytes)
    pairs = zip(reply[::2], reply[1::2], strict=True) if is_flat else reply
    return [(member.decode(), float(score)) for member, score in pairs]


async def keep_reaping(client: Any, keys: Keys, ttl_ms: int) -> None:
    """Reaps whoever is dead, until it is cancelled, through every failure. The first TTL nobody is."""
    task = asyncio.current_task()
    reaper = Reaper(client, keys, ttl_ms)
    try:
        # redis-py can lose a cancellation that falls together with an answer; who waits for the end must not wait for
        # ever.
        while task is None or not task.cancelling():
            await asyncio.sleep(reaper.pause_s)
            await reaper.round()
    finally:
        await reaper.close()
