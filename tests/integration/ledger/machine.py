"""Gateways, a loader, a reaper and a clock at random, against the real scripts and the model at once.

Every reply, and after every step everything that is stored, must be what the model says; beside that the invariants are
checked on the raw data alone, so that a mistake that scripts and model share would still show.

The module is long because all rules of a state machine must be methods of one class.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import redis
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.integration.ledger.gateway import Gateway, Op, OpKind
from tests.integration.ledger.invariants import (
    HOUR_MS,
    Books,
    Repeats,
    assert_conserved,
    assert_hours,
    assert_money,
    assert_no_hold_is_lost,
    holds_elsewhere,
)
from tests.integration.ledger.strategies import (
    ACCOUNTS,
    BODIES,
    DAY_MS,
    GATEWAYS,
    KNOWS_NOT,
    LENGTH_MS,
    METRICS,
    PERIODS,
    RECORDS,
    REPEATS_MAX,
    SCOPES,
    START_MS,
    TABLES,
    changes,
    compose_load,
    garbage,
    most_units,
    ops,
)
from tests.reference.ledger import IDEMPOTENCY_TTL_MS, Ledger
from tests.reference.messages import HOLD, RELEASE, AccountState, Batch, Code, LedgerError, Loaded, Reply, State
from tests.reference.pricing import MAX_INT
from tests.support.ledger_driver import CLOCK_KEY, Edit, RealLedger, account_keys

T = TypeVar("T")

MISHAPS = ("stale", "register", "heartbeat", "reap", "reap", "give back", "flush", "expire", "unreadable", "unreadable")
STEPS_US = (1, 1000, 4_999_999, 5_000_000, 5_000_001, 60_000_000, HOUR_MS * 1000, DAY_MS * 1000, 4 * DAY_MS * 1000)


def with_patience(text: str) -> str:
    """Fields of hashes end by the server's clock, which goes on while the tests' stands: none ends during a test."""
    shipped = "call('HPEXPIRE', acc.key, left_ms,"
    return text.replace(shipped, "call('HPEXPIRE', acc.key, max(left_ms, 3600000),")


class LedgerMachine(RuleBasedStateMachine):
    """``client``: of an otherwise unused server. ``edit`` changes the scripts' text (test_mutants.py)."""

    def __init__(self, client: redis.Redis, edit: Edit | None = None) -> None:
        super().__init__()
        client.flushall()
        self.client: Any = client
        self.real = RealLedger(client, edit=lambda text: with_patience(edit(text) if edit else text))
        self.model = Ledger()
        self.now_us = (START_MS + DAY_MS) * 1000
        self.gateways = {name: Gateway(name) for name in GATEWAYS}
        self.books = Books()
        self.seen = self._state()
        self.overdrawn_for_a_reason: set[str] = set()
        self.freed_for_a_reason: set[str] = set()
        self.granted: set[str] = set()
        self.repeats = Repeats()

    # Both at once

    def both(self, call: Callable[[Any], T]) -> T | str:
        """The same call to the scripts and to the model; what they both answer, or the word of both errors."""
        answers: list[T | str] = []
        for ledger in (self.real, self.model):
            try:
                answers.append(call(ledger))
            except LedgerError as error:
                answers.append(error.word)
        real, expected = answers
        assert real == expected, f"the scripts answered\n{real}\nthe model\n{expected}"
        return real

    def _state(self) -> State:
        return self.real.state(ACCOUNTS, GATEWAYS)

    @property
    def now_ms(self) -> int:
        return self.now_us // 1000

    # Set-up: four accounts of different modes; the fifth is unknown until somebody loads it

    @initialize()
    def open_accounts(self) -> None:
        first = {"api_calls": TABLES[2], "payments": TABLES[6]}
        plans: dict[str, dict[str, Any]] = {
            "prepaid": {"ceiling": 400, "prices": first, "extra": {"reports": TABLES[4]}},
            "overage": {
                "ceiling": 300,
                "counts_unsettled": False,
                "prices": {"api_calls": TABLES[3], "payments": TABLES[7]},
            },
            "postpaid": {
                "ceiling": None,
                "prices": {"api_calls": TABLES[4], "payments": TABLES[0]},
                "extra": {"payments": TABLES[3], "reports": TABLES[1]},
            },
            "limited": {"ceiling": 10**6, "prices": {"api_calls": TABLES[0]}, "rate": (250_000, 3), "day_limit": 7},
        }
        for name, plan in plans.items():
            self._load(name, plan, "as stored", [0, 1], None)
        for name in GATEWAYS[:2]:
            self._register(name)

    # Gateways

    @rule(
        name=st.sampled_from(GATEWAYS[:1] * 3 + GATEWAYS),
        ops=st.lists(ops, min_size=2, max_size=8),
        about=st.sampled_from([None, *ACCOUNTS]),
        merge=st.booleans(),
        knows=st.booleans(),
        wait_us=st.integers(0, 400_000),
    )
    def send(self, name: str, ops: list[Op], about: str | None, merge: bool, knows: bool, wait_us: int) -> None:
        """A batch of anything. Most are about one account, where the operations of a batch act on one another."""
        self.now_us += wait_us
        if about is not None:
            ops = [replace(op, account=about) for op in ops]
        self._send(name, ops, merge, knows)

    def _send(self, name: str, ops: list[Op], merge: bool = True, knows: bool = True) -> None:
        gateway = self.gateways[name]
        versions = {account.name: account.version for account in self.model.accounts.values()} if knows else {}
        batch = gateway.compose(ops, merge=merge, versions=versions)
        reply = self.both(lambda ledger: ledger.batch(name, batch, now_us=self.now_us))
        assert isinstance(reply, Reply)
        gateway.take(batch, reply)
        self._note_causes(batch, reply)

    def _note_causes(self, batch: Batch, reply: Reply) -> None:
        for group, answer in zip(batch.groups, reply.groups, strict=True):
            if group.late or (group.settled and not reply.registered):
                self.overdrawn_for_a_reason.add(group.account)
            if group.released:
                self.freed_for_a_reason.add(group.account)
            if answer and any(outcome.code == Code.GRANTED for outcome in answer.outcomes):
                self.granted.add(group.account)
        for single, answer in zip(batch.singles, reply.singles, strict=True):
            code = answer.outcomes[0].code
            if single.kind == RELEASE:
                self.freed_for_a_reason.add(single.account)
            elif single.kind == HOLD:
                if code == Code.GRANTED:
                    self.granted.add(single.account)
            elif code == Code.GRANTED and (single.epoch != batch.epoch or not reply.registered):
                self.overdrawn_for_a_reason.add(single.account)
            self.repeats.note(single, code)

    @rule(
        name=st.sampled_from(GATEWAYS[:2]),
        account=st.sampled_from(ACCOUNTS[:4]),
        metric=st.sampled_from(METRICS[:2]),
        off=st.sampled_from([0, 0, 1, -1]),
        then=st.lists(ops, max_size=3),
    )
    def spend_to_the_limit(self, name: str, account: str, metric: str, off: int, then: list[Op]) -> None:
        """Asks for all that remains, for one unit more, or for one less."""
        most = most_units(self.model.accounts[account], metric)
        if most is not None and most + off > 0:
            self._send(name, [Op("hold", account, metric, most + off), *then])

    @rule(
        name=st.sampled_from(GATEWAYS[:2]),
        account=st.sampled_from(["limited", "limited", "limited", *ACCOUNTS]),
        times=st.integers(2, 9),
        wait_us=st.sampled_from([0, 249_999, 250_000, 1_000_000]),
        merge=st.booleans(),
    )
    def knock(self, name: str, account: str, times: int, wait_us: int, merge: bool) -> None:
        """Many calls at once, against the limits of rate and day."""
        self.now_us += wait_us
        self._send(name, [Op("hold", account, "api_calls", 1)] * times, merge)

    @rule(
        names=st.lists(st.sampled_from(GATEWAYS[:2]), min_size=2, max_size=6),
        account=st.sampled_from([*ACCOUNTS[:4], "limited"]),
        op=ops,
        bodies=st.lists(st.sampled_from(BODIES[:1] * 4 + BODIES), min_size=2, max_size=6),
        ends=st.sampled_from(["settle once", "settle once", "release", "nothing"]),
        wait_ms=st.sampled_from([0, 0, IDEMPOTENCY_TTL_MS]),
    )
    def repeat(self, names: list[str], account: str, op: Op, bodies: list[str], ends: OpKind, wait_ms: int) -> None:
        """Calls under one key, one after the other, by several gateways."""
        for name, body in zip(names, bodies, strict=False):
            self._send(name, [replace(op, kind="hold once", account=account, units=1, body=body)])
            if ends != "nothing":
                self._send(name, [replace(op, kind=ends)])
        self.now_us += wait_ms * 1000

    @rule(
        first=st.sampled_from(GATEWAYS[:2]),
        second=st.sampled_from(GATEWAYS[:2]),
        account=st.sampled_from(ACCOUNTS[:4]),
        lost=st.sampled_from(["over", "forgotten", "reaped", "registered", "nothing"]),
        body=st.sampled_from(BODIES),
        ends=st.sampled_from(["settle once", "release"]),
    )
    def lose_a_key(self, first: str, second: str, account: str, lost: str, body: str, ends: OpKind) -> None:
        """A call whose key is another's by the time that it ends."""
        op = Op("hold once", account, "api_calls", 1, scope=SCOPES[0], body=BODIES[0])
        self._send(first, [op])
        mine = self.gateways[first].open[-1:]
        match lost:
            case "over":
                self.now_us += IDEMPOTENCY_TTL_MS * 1000
            case "forgotten":
                self._expire_an_idempotency_key(account, SCOPES[0])
            case "reaped" | "registered":
                self._reap(first, -1)
                self._give_back(ACCOUNTS)
                if lost == "registered":
                    self._register(first)
        self._send(second, [replace(op, body=body)])
        fitting = [hold for hold in self.gateways[first].open if ends == "release" or hold.once]
        if mine and mine[0] in fitting:
            self._send(first, [replace(op, kind=ends, pick=fitting.index(mine[0]))])
        self._send(second, [replace(op, body=body, refuses=True)])

    @rule(
        name=st.sampled_from(GATEWAYS[:2]),
        account=st.sampled_from(ACCOUNTS[:4]),
        bodies=st.lists(st.sampled_from(BODIES), min_size=1, max_size=3),
        records=st.permutations(RECORDS),
        repeats_max=st.integers(0, REPEATS_MAX),
    )
    def replay(self, name: str, account: str, bodies: list[str], records: list[str], repeats_max: int) -> None:
        """What a gateway spooled under one key."""
        op = Op("replay", account, "api_calls", 1, pick=1, scope=SCOPES[0], repeats_max=repeats_max)
        some = zip(bodies, records, strict=False)
        self._send(name, [replace(op, body=body, record=record) for body, record in some])

    @rule(
        name=st.sampled_from(GATEWAYS[:2]),
        account=st.sampled_from(ACCOUNTS),
        times=st.integers(2, 12),
        wait_us=st.sampled_from([0, 249_999, 250_000, 1_000_000]),
    )
    def fail(self, name: str, account: str, times: int, wait_us: int) -> None:
        """Calls that are answered with an error."""
        hold = Op("hold", account, "api_calls", 1)
        self._send(name, [hold] * times)
        self._send(name, [Op("release", account, "", 0, pick=-1, answered=True)] * times)
        self.now_us += wait_us
        self._send(name, [hold])

    @rule(name=st.sampled_from(GATEWAYS), keep=st.integers(0, 2))
    def settle_what_is_open(self, name: str, keep: int) -> None:
        ops = [Op("settle once" if hold.once else "settle", "", "", 0) for hold in self.gateways[name].open]
        if ops[keep:]:
            self._send(name, ops[keep:])

    @precondition(lambda self: any(gateway.last for gateway in self.gateways.values()))
    @rule(name=st.sampled_from(GATEWAYS), wait_us=st.sampled_from([0, 1000, 5_000_000, LENGTH_MS * 1000]))
    def send_again(self, name: str, wait_us: int) -> None:
        """The reply was lost. The script may have run or not; here it has."""
        last = self.gateways[name].last
        if last is None:
            return
        before = self.real.last_raw_reply, self.real.last_sender
        self.now_us += wait_us
        self.both(lambda ledger: ledger.batch(name, last, now_us=self.now_us))
        if before[1] == name:
            assert self.real.last_raw_reply == before[0], "a repeated batch must get the very reply of the first"
        assert self._state() == self.seen, "a repeated batch must change nothing"

    @rule(data=st.data())
    def mishap(self, data: st.DataObject) -> None:
        """What goes wrong in a life: one rule for all, so that half of the steps are ordinary ones."""
        name = data.draw(st.sampled_from(GATEWAYS))
        account = data.draw(st.sampled_from(ACCOUNTS))
        match data.draw(st.sampled_from(MISHAPS)):
            case "stale":
                self._send_a_stale_number(name, data.draw(st.integers(1, 3)), data.draw(st.lists(ops, max_size=3)))
            case "register":
                self._register(name)
            case "heartbeat":
                epoch = self.gateways[name].epoch
                self.both(lambda ledger: ledger.heartbeat(name, epoch, now_us=self.now_us))
            case "reap":
                self._reap(name, data.draw(st.sampled_from([-1, 0, 2000, DAY_MS])))
                self._give_back(data.draw(st.sampled_from([(), ACCOUNTS[:2], ACCOUNTS[2:], ACCOUNTS])))
                if data.draw(st.booleans()):
                    self.gateways[name].epoch = 0  # another process under its name, which has yet to register
            case "give back":
                self._give_back(data.draw(st.sampled_from([ACCOUNTS, (), ACCOUNTS[:2]])))
            case "flush":
                self.real.client.script_flush()
                self.real.client.function_flush()
            case "expire":
                self._expire_an_idempotency_key(account, data.draw(st.sampled_from(SCOPES)))
            case "unreadable":
                wrong = data.draw(st.none() | garbage | st.integers(1, 40))
                beside = data.draw(st.lists(ops, max_size=5))
                self._send_beside_an_unreadable_account(name, account, wrong, beside)

    @rule(name=st.sampled_from(GATEWAYS))
    def come_back(self, name: str) -> None:
        """A zombie finds out and registers; one that lives only says so."""
        epoch = self.gateways[name].epoch
        if self.both(lambda ledger: ledger.heartbeat(name, epoch, now_us=self.now_us)) == 0:
            self._register(name)
            self._give_back(ACCOUNTS)

    def _send_a_stale_number(self, name: str, back: int, ops: list[Op]) -> None:
        gateway = self.gateways[name]
        if gateway.seq <= back:
            return
        seq, last, held = gateway.seq, gateway.last, list(gateway.open)
        batch = replace(gateway.compose(ops, merge=True, versions={}), seq=seq - back)
        gateway.seq, gateway.last, gateway.open = seq, last, held
        assert self.both(lambda ledger: ledger.batch(name, batch, now_us=self.now_us)) == "STALE"

    def _send_beside_an_unreadable_account(
        self, name: str, account: str, wrong: bytes | int | None, ops: list[Op]
    ) -> None:
        """``wrong``: None: the key has another type; bytes: in place of its state; number: so many bytes of it."""
        gateway = self.gateways[name]
        seq, last, held = gateway.seq, gateway.last, list(gateway.open)
        batch = gateway.compose([*ops, Op("hold", account, "api_calls", 1)], merge=False, versions={})
        key = self.real.keys.state(account)
        before = self.client.dump(key)
        if wrong is None:
            self.client.delete(key)
            self.client.rpush(key, "a text")
        else:
            self.client.set(key, wrong if isinstance(wrong, bytes) else self._truncated(key, wrong))
        self.model.unreadable.add(account)
        answer = self.both(lambda ledger: ledger.batch(name, batch, now_us=self.now_us))
        given = self.both(lambda ledger: ledger.give_back([account], now_us=self.now_us))
        self.model.unreadable.clear()
        self.client.delete(key)
        if before:
            self.client.restore(key, 0, before)
        assert isinstance(answer, str)
        assert isinstance(given, str)
        assert answer.startswith("ACCOUNT ")
        assert self._state() == self.seen, "an account that cannot be read must leave the others as they are"
        gateway.seq, gateway.last, gateway.open = seq, last, held

    def _truncated(self, key: str, length: int) -> bytes:
        state = self.client.get(key) or b""
        return bytes(state[: min(length, max(0, len(state) - 1))])

    def _register(self, name: str) -> None:
        """A start, a restart under the old name, or the return of a zombie that found out."""
        answer = self.both(lambda ledger: ledger.register(name, now_us=self.now_us))
        assert not isinstance(answer, str)
        self.gateways[name].epoch = answer[0]

    def _reap(self, name: str, ttl_ms: int) -> None:
        """The gateway is not told: it goes on with the epoch that it knows."""
        self.both(lambda ledger: ledger.reap(name, ttl_ms, now_us=self.now_us))

    def _give_back(self, accounts: tuple[str, ...]) -> None:
        self.freed_for_a_reason |= set(accounts)
        remain = self.both(lambda ledger: ledger.give_back(accounts, now_us=self.now_us))
        assert accounts != ACCOUNTS or remain == 0, "no account has what departed instances hold"

    # Time

    @rule(
        account=st.sampled_from(ACCOUNTS[:4]),
        until=st.sampled_from(["midnight", "the next hour", "the end of the period"]),
        off=st.sampled_from([-1, 0, 1]),
        periods=st.sampled_from([0, 0, 0, 1, 2, 25]),
    )
    def wait(self, account: str, until: str, off: int, periods: int) -> None:
        """To where a limit restarts or a period ends, and a tick before and after."""
        if until != "the end of the period":
            length_us = (DAY_MS if until == "midnight" else HOUR_MS) * 1000
            self.now_us = max(self.now_us, (self.now_us // length_us + 1) * length_us + off)
            return
        state = self.seen.accounts.get(account)
        ending = [of for of in state.subscriptions if of.end_ms < MAX_INT] if state else []
        if ending:
            of = min(ending, key=lambda of: of.end_ms)
            self.now_us = max(self.now_us, (of.end_ms + off + periods * (of.end_ms - of.start_ms)) * 1000)

    @rule(back_us=st.sampled_from(STEPS_US), then=st.lists(ops, max_size=4), ttl_ms=st.none() | st.just(2000))
    def set_the_clock_back(self, back_us: int, then: list[Op], ttl_ms: int | None) -> None:
        self.now_us -= back_us
        if ttl_ms is not None:
            self._reap(GATEWAYS[1], ttl_ms)
        if then:
            self._send(GATEWAYS[0], then)

    # The loader

    @rule(
        account=st.sampled_from(ACCOUNTS),
        change=changes,
        period=st.sampled_from(["as stored"] * 4 + PERIODS),
        following=st.sampled_from([[], [], [1], [0, 2]]),
        knows=st.sampled_from(["all"] * 3 + KNOWS_NOT),
    )
    def load(self, account: str, change: dict[str, Any], period: str, following: list[int], knows: str) -> None:
        self._load(account, change, period, following, knows)

    @rule(account=st.sampled_from(ACCOUNTS[:4]), change=changes)
    def load_what_changed(self, account: str, change: dict[str, Any]) -> None:
        """The ordinary life of a loader: it knows everything, and a few things are new."""
        self._load(account, change, "as stored", [], "all")

    def _load(self, account: str, change: dict[str, Any], period: str, following: list[int], knows: str | None) -> None:
        load = compose_load(account, self.model.accounts.get(account), self.now_ms, change, period, following, knows)
        was_known = account in self.model.accounts and self.model.accounts[account].policy is not None
        answer = self.both(lambda ledger: ledger.load(load, now_us=self.now_us))
        self.overdrawn_for_a_reason.add(account)
        self.freed_for_a_reason.add(account)
        if isinstance(answer, Loaded) and not was_known:
            first = load.plans[0]
            self.books.load_first(account, first.name, first.start_ms)

    def _expire_an_idempotency_key(self, account: str, scope: str) -> None:
        gone = self.client.hdel(self.real.keys.account(account), self.real.mark(account, scope))
        assert gone == (self.model.account(account).marks.pop(scope, None) is not None)

    # What must hold after every step

    @invariant()
    def everything_holds(self) -> None:
        state = self._state()
        expected = self.model.state()
        assert state == expected, f"stored is\n{state}\nthe model has\n{expected}"
        self._follow_changes_of_price(state)
        self.books.follow(state)
        assert_conserved(state, self.books)
        assert_hours(state)
        assert_no_hold_is_lost(state)
        for name in state.accounts:
            assert_money(
                before=self.seen.accounts.get(name),
                after=state.accounts[name],
                may_overdraw=name in self.overdrawn_for_a_reason,
                may_free=name in self.freed_for_a_reason,
                was_granted=name in self.granted,
            )
        self.seen = state
        self.overdrawn_for_a_reason.clear()
        self.freed_for_a_reason.clear()
        self.granted.clear()

    def _follow_changes_of_price(self, state: State) -> None:
        """A new period may cost a flat fee, and what is held across its beginning has other prices. What was held of
        another subscription than the one that has the metric now is settled by that one's price."""
        for name, account in state.accounts.items():
            before = self.seen.accounts.get(name)
            if before is not None and (_starts(before) != _starts(account) or holds_elsewhere(before)):
                self.overdrawn_for_a_reason.add(name)
                self.freed_for_a_reason.add(name)

    def teardown(self) -> None:
        """No key is left that the document does not name."""
        keys = self.real.keys
        known = {CLOCK_KEY, keys.alive(0)}
        for partition in range(keys.partitions):
            known |= {keys.meta(partition), keys.clock(partition), keys.outbox(partition), keys.accounts(partition)}
            known |= {keys.first_format(partition, "accounts"), keys.first_format(partition, "alive")}
        known |= {key for name in ACCOUNTS for key in account_keys(keys, name)}
        known |= {keys.instance(0, name) for name in GATEWAYS}
        assert {key.decode() for key in self.client.keys("*")} <= known


def _starts(account: AccountState) -> list[tuple[str, int]]:
    return [(of.name, of.start_ms) for of in account.subscriptions]
