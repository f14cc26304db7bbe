"""Calls at random, of every command that the simulated server has.

Keys are few, so that types clash and keys are absent; numbers are odd. Most calls make sense; some have an argument too
many, one too few, or one of another kind.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Final, TypeAlias

Parts: TypeAlias = list[bytes]
Make: TypeAlias = Callable[["Maker"], Parts]

KEYS: Final = [b"k%d" % number for number in range(6)]
FIELDS: Final = [b"a", b"b", b"c", b"", b"long" * 20]
VALUES: Final = [b"", b"1", b"-7", b"x", b"0", b"9223372036854775807", b"\x00\xff\r\n", b"y" * 70]
INTEGERS: Final = [b"0", b"1", b"2", b"-1", b"3", b"5", b"100", b"-2"]
ODD_INTEGERS: Final = [b"x", b"", b"1.5", b" 1", b"01", b"+1", b"9223372036854775807", b"-9223372036854775808", b"1e3"]
SCORES: Final = [b"0", b"1", b"-1", b"1.5", b"1e17", b"0.1", b"3", b"1e-7", b"123456789012345680", b"1800000000123456"]
ODD_SCORES: Final = [b"inf", b"-inf", b"nan", b"x", b"", b"1e400", b"+5"]
LIFETIMES_MS: Final = [b"1", b"500", b"1000", b"60000", b"100000"]
GROUPS: Final = [b"g1", b"g2", b"nobody"]
CONSUMERS: Final = [b"c1", b"c2"]
ODD: Final = 0.06
"""How often an argument is of another kind."""


class Maker:
    """``ids``: of entries that streams have, or had."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.ids: list[bytes] = [b"1-1", b"5-0"]

    def one(self, of: list[bytes], odd: list[bytes] | None = None) -> bytes:
        if odd is not None and self.random.random() < ODD:
            return self.random.choice(odd)
        return self.random.choice(of)

    def some(self, of: list[bytes], most: int = 3) -> Parts:
        return [self.random.choice(of) for _ in range(self.random.randint(1, most))]

    @property
    def key(self) -> bytes:
        return self.one(KEYS)

    @property
    def integer(self) -> bytes:
        return self.one(INTEGERS, ODD_INTEGERS)

    @property
    def score(self) -> bytes:
        return self.one(SCORES, ODD_SCORES)

    @property
    def ttl(self) -> bytes:
        return self.one(LIFETIMES_MS, [*ODD_INTEGERS, b"0", b"-5"])

    @property
    def id(self) -> bytes:
        return self.one(self.ids[-8:], [b"x", b"", b"1-x", b"-", b"+", b"18446744073709551616-1", b"1-2-3", b"0-0"])

    def id_from(self, *special: bytes) -> bytes:
        if self.random.random() < 0.5:
            return self.random.choice(special)
        return self.one([b"", b"("]) + self.id

    def maybe(self, *parts: bytes, chance: float = 0.3) -> Parts:
        return list(parts) if self.random.random() < chance else []

    def pairs(self, names: list[bytes], values: list[bytes], most: int = 3) -> Parts:
        return [part for _ in range(self.random.randint(1, most)) for part in (self.one(names), self.one(values))]

    def bound(self) -> bytes:
        return self.one([b"-inf", b"+inf", b"(1", self.score, self.score])

    def lex(self) -> bytes:
        return self.one([b"-", b"+", b"[a", b"(a", b"[b", b"(c"], [b"a", b""])

    def trim(self) -> Parts:
        how = self.one([b"MAXLEN", b"MINID", b"maxlen"])
        amount = self.id if how == b"MINID" else self.integer
        return [how, *self.maybe(self.one([b"~", b"="])), amount, *self.maybe(b"LIMIT", self.integer, chance=0.1)]

    def flags(self, *names: bytes) -> Parts:
        return self.maybe(self.one(list(names)), chance=0.25) + self.maybe(self.one(list(names)), chance=0.05)

    def limit(self) -> Parts:
        return self.maybe(b"LIMIT", self.integer, self.integer, chance=0.4)

    def fields(self) -> Parts:
        names = list(dict.fromkeys(self.some(FIELDS)))
        count = b"%d" % len(names) if self.random.random() > ODD else self.integer
        return [self.one([b"FIELDS"], [b"FIELD"]), count, *names]


MAKERS: Final[dict[str, Make]] = {
    "get": lambda m: [m.key],
    "set": lambda m: [m.key, m.one(VALUES), *m.flags(b"NX", b"XX", b"GET", b"KEEPTTL"), *m.maybe(b"PX", m.ttl),
                      *m.maybe(b"EX", m.ttl, chance=0.1)],
    "mget": lambda m: m.some(KEYS, 5),
    "mset": lambda m: m.pairs(KEYS, VALUES),
    "del": lambda m: m.some(KEYS),
    "unlink": lambda m: m.some(KEYS),
    "exists": lambda m: m.some(KEYS),
    "type": lambda m: [m.key],
    "rename": lambda m: [m.key, m.key],
    "pttl": lambda m: [m.key],
    "ttl": lambda m: [m.key],
    "persist": lambda m: [m.key],
    "expire": lambda m: [m.key, m.integer, *m.flags(b"NX", b"XX", b"GT", b"LT", b"NO")],
    "pexpire": lambda m: [m.key, m.ttl, *m.flags(b"NX", b"XX", b"GT", b"LT")],
    "expireat": lambda m: [m.key, m.one([b"1800000000", b"1800000002", b"1900000000", b"-1"], ODD_INTEGERS)],
    "pexpireat": lambda m: [m.key, m.one([b"1800000000200", b"1800000009000", b"1900000000000"], ODD_INTEGERS)],
    "dbsize": lambda m: [],
    "scan": lambda m: [m.one([b"0"], [b"x"]), *m.maybe(b"COUNT", b"1000", chance=0.9), *m.maybe(b"MATCH", b"k?"),
                       *m.maybe(b"TYPE", m.one([b"hash", b"string", b"stream"]))],
    "keys": lambda m: [m.one([b"*", b"k1", b"k?", b"x*"])],
    "memory|usage": lambda m: [m.key],
    "dump": lambda m: [m.key],
    "restore": lambda m: [m.key, m.ttl, m.one(VALUES), *m.maybe(b"REPLACE")],
    "rpush": lambda m: [m.key, *m.some(VALUES)],
    "lpush": lambda m: [m.key, *m.some(VALUES)],
    "llen": lambda m: [m.key],
    "lrange": lambda m: [m.key, m.integer, m.integer],
    "hget": lambda m: [m.key, m.one(FIELDS)],
    "hset": lambda m: [m.key, *m.pairs(FIELDS, VALUES), *m.maybe(b"odd", chance=ODD)],
    "hmset": lambda m: [m.key, *m.pairs(FIELDS, VALUES)],
    "hsetnx": lambda m: [m.key, m.one(FIELDS), m.one(VALUES)],
    "hmget": lambda m: [m.key, *m.some(FIELDS)],
    "hgetall": lambda m: [m.key],
    "hkeys": lambda m: [m.key],
    "hlen": lambda m: [m.key],
    "hexists": lambda m: [m.key, m.one(FIELDS)],
    "hdel": lambda m: [m.key, *m.some(FIELDS)],
    "hincrby": lambda m: [m.key, m.one(FIELDS), m.integer],
    "hrandfield": lambda m: [m.key, *m.maybe(m.one([b"100", b"-5", b"0"], ODD_INTEGERS), *m.maybe(b"WITHVALUES"))],
    "hscan": lambda m: [m.key, b"0", b"COUNT", b"1000", *m.maybe(b"MATCH", m.one([b"*", b"a*"])),
                        *m.maybe(b"NOVALUES")],
    "hpexpire": lambda m: [m.key, m.ttl, *m.flags(b"NX", b"XX", b"GT", b"LT"), *m.fields()],
    "hpttl": lambda m: [m.key, *m.fields()],
    "zadd": lambda m: [m.key, *m.flags(b"NX", b"XX", b"GT", b"LT", b"CH"),
                       *[part for _ in range(m.random.randint(1, 3)) for part in (m.score, m.one(FIELDS))]],
    "zrem": lambda m: [m.key, *m.some(FIELDS)],
    "zscore": lambda m: [m.key, m.one(FIELDS)],
    "zcard": lambda m: [m.key],
    "zrange": lambda m: [m.key, m.integer, m.integer, *m.maybe(m.one([b"WITHSCORES"], [b"NO"]))],
    "zrangebyscore": lambda m: [m.key, m.bound(), m.bound(), *m.maybe(b"WITHSCORES"), *m.limit()],
    "zrangebylex": lambda m: [m.key, m.lex(), m.lex(), *m.limit()],
    "zremrangebyscore": lambda m: [m.key, m.bound(), m.bound()],
    "zremrangebyrank": lambda m: [m.key, m.integer, m.integer],
    "zrandmember": lambda m: [m.key, *m.maybe(m.one([b"100", b"-5", b"0"], ODD_INTEGERS))],
    "xadd": lambda m: [m.key, *m.maybe(b"NOMKSTREAM", chance=0.1), *m.maybe(*m.trim()),
                       m.one([b"*", b"*", b"*", b"*", m.id, b"1800000000123-*"]), *m.pairs(FIELDS, VALUES)],
    "xtrim": lambda m: [m.key, *m.trim()],
    "xdel": lambda m: [m.key, *[m.id for _ in range(m.random.randint(1, 3))]],
    "xlen": lambda m: [m.key],
    "xrange": lambda m: [m.key, m.id_from(b"-"), m.id_from(b"+"), *m.maybe(b"COUNT", m.integer)],
    "xrevrange": lambda m: [m.key, m.id_from(b"+"), m.id_from(b"-"), *m.maybe(b"COUNT", m.integer)],
    "xsetid": lambda m: [m.key, m.id, *m.maybe(b"ENTRIESADDED", m.integer), *m.maybe(b"MAXDELETEDID", m.id)],
    "xgroup|create": lambda m: [m.key, m.one(GROUPS[:2]), m.one([b"0", b"$", m.id]), *m.maybe(b"MKSTREAM", chance=0.6)],
    "xgroup|destroy": lambda m: [m.key, m.one(GROUPS)],
    "xgroup|delconsumer": lambda m: [m.key, m.one(GROUPS), m.one(CONSUMERS)],
    "xreadgroup": lambda m: [b"GROUP", m.one(GROUPS), m.one(CONSUMERS), *m.maybe(b"COUNT", m.integer),
                             *m.maybe(b"NOACK", chance=0.1), b"STREAMS", m.key,
                             m.one([b">", b">", b">", b"0", m.id, b"$"])],
    "xack": lambda m: [m.key, m.one(GROUPS), *[m.id for _ in range(m.random.randint(1, 3))]],
    "xpending": lambda m: [m.key, m.one(GROUPS), *m.maybe(*m.maybe(b"IDLE", m.integer), m.id_from(b"-"),
                           m.id_from(b"+"), m.integer, *m.maybe(m.one(CONSUMERS)), chance=0.8)],
    "xclaim": lambda m: [m.key, m.one(GROUPS), m.one(CONSUMERS), m.integer,
                         *[m.id for _ in range(m.random.randint(1, 3))], *m.maybe(b"IDLE", m.ttl),
                         *m.maybe(b"JUSTID"), *m.maybe(b"FORCE"), *m.maybe(b"RETRYCOUNT", m.integer, chance=0.1),
                         *m.maybe(b"NO", chance=ODD)],
    "xautoclaim": lambda m: [m.key, m.one(GROUPS), m.one(CONSUMERS), m.one([b"0", b"1", b"1000"], ODD_INTEGERS),
                             m.id_from(b"-", b"0-0"), *m.maybe(b"COUNT", m.integer), *m.maybe(b"JUSTID")],
    "xinfo|stream": lambda m: [m.key],
    "xinfo|groups": lambda m: [m.key],
    "xinfo|consumers": lambda m: [m.key, m.one(GROUPS)],
    "ping": lambda m: m.maybe(b"x"),
    "echo": lambda m: [m.one(VALUES)],
    "time": lambda m: [],
    "select": lambda m: [m.one([b"0"], [b"x", b"99"])],
    "hello": lambda m: m.maybe(m.one([b"2"], [b"9"])),
    "auth": lambda m: [b"secret"],
    "client|setname": lambda m: [m.one([b"a", b"a b", b""])],
    "client|getname": lambda m: [],
    "client|setinfo": lambda m: [b"LIB-NAME", b"x"],
    "client|id": lambda m: [],
    "cluster|slots": lambda m: [],
    "cluster|nodes": lambda m: [],
    "asking": lambda m: [],
    "config|get": lambda m: [m.one([b"min-replicas-to-write", b"maxmemory-policy", b"maxmemory"])],
    "wait": lambda m: [m.one([b"0"], [b"x", b""]), b"0"],
    "info": lambda m: m.maybe(m.one([b"memory", b"replication"])),
    "script|exists": lambda m: [b"0" * 40],
    "script|kill": lambda m: [],
    "function|kill": lambda m: [],
    "function|list": lambda m: m.maybe(b"LIBRARYNAME", m.one([b"lib*", b"x"])) + m.maybe(b"WITHCODE"),
    "evalsha": lambda m: [b"0" * 40, m.integer, m.key],
}  # fmt: skip


def random_call(maker: Maker) -> Parts:
    """One call. Now and then a part is missing, or one too many."""
    name = maker.random.choice(list(MAKERS))
    parts = [*(word.upper().encode() for word in name.split("|")), *MAKERS[name](maker)]
    draw = maker.random.random()
    if draw < 0.01 and len(parts) > 1:
        parts.pop()
    elif draw < 0.02:
        parts.append(b"more")
    return parts
