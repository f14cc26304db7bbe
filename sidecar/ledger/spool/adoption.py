"""Offers what a dead process left in its spool to the ledger, under the numbers that it had.

The ledger knows the last number of every process for 30 days, and does a number once. So it does not matter whether the
dead process had sent a batch, whether two processes find the file, or where the first one stopped.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Final

import orjson
from redis.asyncio.cluster import RedisCluster
from redis.exceptions import ResponseError

from sidecar.basics.fault_reasons import reason_of
from sidecar.basics.logger import get_logger
from sidecar.ledger.client.batch import REPLAY, Batch, encode, encode_refusal
from sidecar.ledger.client.link_settings import LinkSettings
from sidecar.ledger.client.sealed import SealedBatch, SealedError, origin_of, unseal
from sidecar.ledger.client.server_answers import Meaning, ServerAnswer, server_answer
from sidecar.ledger.keys import FORGET_MS, Keys
from sidecar.ledger.proof.chain import adopted
from sidecar.ledger.proof.instance_record import InstanceRecord
from sidecar.valkey.scripts import function, script
from sidecar.valkey.topology import Client

log = get_logger("sidecar.spool")

_NOT_LOADED: Final = "Function not found"
_FINAL: Final = ("BATCH", "LIMIT", "WRONGTYPE")
"""First words of refusals that no repetition changes."""
DAY_MS: Final = 86_400_000
TOO_OLD_MS: Final = FORGET_MS - DAY_MS
"""Age from which the ledger may have forgotten the process, and what it had done of its file."""


class OfferError(Exception):
    """The ledger did not take a batch, and may take it later. The message says why."""


class TooOldError(Exception):
    """A batch is so old that nobody knows any more whether it was done. It is for a person to decide."""


@dataclass(frozen=True, slots=True)
class Offered:
    """``charges``: of the batch. ``was_done``: the ledger had it already. ``refused``: charges that no account could
    take, kept as refused settles."""

    charges: int
    was_done: bool = False
    refused: int = 0


class Adoption:
    """``force``: what is too old is offered too."""

    def __init__(self, client: Client, keys: Keys, settings: LinkSettings, *, force: bool = False) -> None:
        self.keys = keys
        self.settings = settings
        self._client = client
        self._force = force

    def __repr__(self) -> str:
        return f"Adoption({self.keys!r})"

    async def offer(self, sealed: SealedBatch) -> Offered:
        """Brings one batch into the ledger, once.

        Raises:
            SealedError: it cannot be read.
            TooOldError: see there.
            OfferError: the ledger refused it for now.
            RedisError, OSError: Valkey cannot be reached.
        """
        batch, origin = unseal(sealed), origin_of(sealed)
        instance = origin.rpartition(".")[0]
        if not instance or origin != f"{instance}.{sealed.home_partition:02d}":
            raise SealedError(f"a batch of partition {sealed.home_partition} whose origin is {origin[:80]!r}")
        await self._check_age(sealed, instance)
        if batch.refusal:
            return await self._refuse(sealed, batch, origin, instance)
        return await self._send(sealed, batch, origin, instance)

    async def _check_age(self, sealed: SealedBatch, instance: str) -> None:
        age_ms = time.time() * 1000 - sealed.at_ms
        if self._force or not sealed.at_ms or age_ms < TOO_OLD_MS:
            return
        if not await self._client.exists(self.keys.instance(sealed.home_partition, instance)):
            raise TooOldError(f"batch {sealed.number} of {instance} is {age_ms / DAY_MS:.0f} days old")

    async def _send(self, sealed: SealedBatch, batch: Batch, origin: str, instance: str) -> Offered:
        refused = 0
        charges = sealed.settles
        before = await self._chain_of(sealed.home_partition, instance)
        while True:
            chain = self._adopted(batch, origin, before)
            names, arguments, numbers = encode(batch, origin, self.settings, {}, str.encode, chain=chain)
            try:
                await self._call(sealed.home_partition, instance, [name.decode() for name in names], arguments)
                return Offered(charges, refused=refused)
            except ResponseError as error:
                answer = _answer_of(error)
            if answer.word == "STALE":
                return Offered(charges, was_done=True)
            account = next((name for name, number in numbers.items() if number == answer.account), None)
            if answer.meaning is Meaning.ACCOUNT and account is not None:
                batch, mine = batch.without(account)
                batch.number = sealed.number
                refused += await self._keep_refused(sealed, mine, origin, instance, answer)
                if not batch.operations:
                    return Offered(charges, refused=refused)
            elif answer.word in _FINAL:
                for mine in batch.by_account().values():
                    refused += await self._keep_refused(sealed, mine, origin, instance, answer)
                return Offered(charges, refused=refused)
            else:
                raise OfferError(answer.reason)

    async def _chain_of(self, home: int, instance: str) -> bytes:
        """What the ledger says of the chain of the dead process."""
        packed: Any = await self._client.get(self.keys.instance(home, instance)) if self.settings.chain_key else None
        return InstanceRecord.from_bytes(packed).chain if packed else b""

    def _adopted(self, batch: Batch, origin: str, before: bytes) -> bytes:
        key = self.settings.chain_key
        if not key:
            return b""
        events = [orjson.dumps(event) for event, _ in batch.settles()]
        some = any(single.kind == REPLAY for single in batch.singles)
        return adopted(key, before, origin, batch.number, events, all_charged=not some)

    async def _call(self, home: int, instance: str, accounts: list[str], arguments: list[bytes]) -> Any:
        keys = self.keys
        names = [keys.instance(home, instance), keys.clock(home), keys.outbox(home)]
        for account in accounts:
            names += [keys.state(account), keys.account(account)]
        batch = function("batch")
        call: tuple[Any, ...] = batch.name.decode(), len(names), *names, *arguments
        try:
            return await self._client.fcall(*call)
        except ResponseError as error:
            if not str(error).startswith(_NOT_LOADED):
                raise
        await self._load(names[0], batch.library)
        return await self._client.fcall(*call)

    async def _load(self, key: str, library: bytes) -> None:
        """Only into the server that has the key: another one may be away."""
        command = "FUNCTION LOAD", "REPLACE", library
        if isinstance(self._client, RedisCluster):
            node = self._client.get_node_from_key(key)
            await self._client.execute_command(*command, target_nodes=node)
        else:
            await self._client.execute_command(*command)  # type: ignore[no-untyped-call]

    async def _keep_refused(
        self, sealed: SealedBatch, mine: Batch, origin: str, instance: str, answer: ServerAnswer
    ) -> int:
        """One account's charges, under an instance of its own: the number is the rest's."""
        settles = mine.settles()
        if not settles:
            return 0
        account = settles[0][0][0]
        log.error("an account cannot be charged from the spool; its settles are kept as refused", account=account,
                  reason=answer.reason, settles=len(settles))  # fmt: skip
        mine.number, mine.refusal = sealed.number, answer.reason
        await self._refuse(sealed, mine, origin, f"{instance}/{self.keys.partition(account)}/{account}")
        return len(settles)

    async def _refuse(self, sealed: SealedBatch, batch: Batch, origin: str, instance: str) -> Offered:
        keys, home = self.keys, sealed.home_partition
        names = [keys.instance(home, instance), keys.clock(home), keys.refused(home)]
        count = len(batch.settles())
        try:
            await self._client.eval(script("refuse").text.decode(), 3, *names, encode_refusal(batch, origin))
        except ResponseError as error:
            answer = _answer_of(error)
            if answer.word == "STALE":
                return Offered(count, was_done=True, refused=count)
            raise OfferError(answer.reason) from None
        return Offered(count, refused=count)


def _answer_of(error: ResponseError) -> ServerAnswer:
    """redis-py takes the first word of what it has a class for out of the text; all of those are about later."""
    if type(error) is ResponseError:
        return server_answer(str(error))
    return ServerAnswer(Meaning.LATER, "", reason_of(error))
