"""A log of a thousand mixed commands, made from a seed; run as a program it prints what the log amounts to.

`test_determinism.py` runs it in several interpreters, with hash seeds and flush habits of their own.
"""

import random
import sys
from hashlib import sha256

from raftcache.ids import Slot
from raftcache.kv.codec import encode_batch, encode_result
from raftcache.kv.limits import KvLimits
from raftcache.kv.operations import (
    CloseSession,
    Command,
    CompareAndSwap,
    Condition,
    ConditionKind,
    Delete,
    Get,
    Increment,
    OpenSession,
    Put,
    PutMany,
    SessionStamp,
    SetOwnership,
    Transaction,
    WriteOperation,
)
from tests.kv.shard import Shard, slot_for

LIMITS = KvLimits(session_window=8, sessions_max=5, session_reply_bytes_max=2000, session_reply_bytes_total_max=4000)


def sample_log(seed: int, *, entries: int = 120) -> list[bytes]:
    """Entries whose commands meet on few keys and sessions, some of them bad on purpose."""
    rng = random.Random(seed)
    log: list[bytes] = []
    opened: list[int] = [1]
    for number in range(entries):
        commands: list[Command] = []
        for position in range(rng.randrange(0, 16)):
            operation = _operation(rng, opened, epoch=number)
            if isinstance(operation, OpenSession):
                opened.append((number + 2) << 20 | position)
            stamp = None
            if rng.random() < 0.6 and not isinstance(operation, (OpenSession, CloseSession)):
                stamp = SessionStamp(rng.choice(opened[-4:]), rng.randrange(0, 14), rng.randrange(0, 8))
            slot = slot_for(operation) if rng.random() < 0.98 else Slot(5)
            commands.append(Command(operation, slot, stamp))
        log.append(encode_batch(commands, proposed_ms=1000 * number + rng.randrange(-3000, 3000) + 3000))
    return log


def _operation(rng: random.Random, opened: list[int], *, epoch: int) -> WriteOperation:
    tag = rng.choice([b"{t}", b"{u}"])
    key = tag + b"%d" % rng.randrange(12)
    value = rng.choice([b"", b"x", b"%d" % rng.randrange(99), rng.randbytes(rng.randrange(300))])
    choice = rng.randrange(100)
    if choice < 8:
        keys = [rng.choice([b"{t}", b"{u}", b""]) + b"%d" % rng.randrange(12) for _ in range(rng.randrange(1, 9))]
        return PutMany(keys, [value] * len(keys))
    if choice < 35:
        return Put(key, value, return_previous=rng.random() < 0.2)
    if choice < 45:
        return Put(key, value, (Condition(key, rng.choice([ConditionKind.ABSENT, ConditionKind.EXISTS])),))
    if choice < 55:
        return Delete(key, return_previous=rng.random() < 0.5)
    if choice < 65:
        return CompareAndSwap(key, rng.choice([None, b"", b"x", value]), value)
    if choice < 75:
        return Increment(key, rng.choice([1, -1, 2**63 - 1]))
    if choice < 88:
        other = tag + b"%d" % rng.randrange(12)
        condition = Condition(other, ConditionKind.VERSION, number=rng.randrange(3))
        return Transaction((condition,), (Put(key, value), Get(other), Increment(tag + b"n")), (Delete(key), Get(key)))
    if choice < 94:
        return OpenSession()
    if choice < 96:
        return CloseSession(rng.choice(opened))
    if choice < 97:
        return Put(b"{t}0", b"x" * 40, namespace=1)
    if choice < 98:
        return rng.choice([Put(b"", b""), PutMany([b"k", b""], [b"1", b"2"])])
    return SetOwnership(((Slot(0), Slot(rng.choice([9000, 16384]))),), max(0, epoch - rng.choice([0, 0, 30])))


def amount(log: list[bytes], *, flush_every: int, reload_every: int) -> str:
    """Hash, position and a digest of every record, after applying the log with the given habits."""
    shard = Shard(limits=LIMITS)
    answers = sha256()
    for number, data in enumerate(log):
        for result in shard.apply(data):
            answers.update(encode_result(result))
        if flush_every and number % flush_every == 0:
            shard.machine.flush(complete=number % 2 == 0)
        if reload_every and number % reload_every == 0:
            shard.reload()
    shard.assert_verified()
    records = sha256()
    for key, value in shard.records.scan(b"", None):
        records.update(len(key).to_bytes(4, "big") + key + len(value).to_bytes(4, "big") + value)
    machine = shard.machine
    return (
        f"{machine.state_hash:032x} {machine.revision} {len(shard.records)} {records.hexdigest()} {answers.hexdigest()}"
    )


if __name__ == "__main__":
    print(amount(sample_log(int(sys.argv[1])), flush_every=int(sys.argv[2]), reload_every=int(sys.argv[3])))
