"""What clients were told about their writes, and whether a cluster lives up to it.

Rules of this file:
- a write is *acknowledged* when the client returned from it, and at no other time. One that failed is *refused* if its error
  says that it certainly had no effect, else *unknown*: it may be there or not, but only as it was sent;
- keys are used once, so that a value can be right in one way only;
- what could not be read is not "not lost": `Verdict.good` means that everything was read, and everything was right.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from raftcache import RaftCacheError, ops

BATCH_BYTES = 512 << 10
BATCH_OPERATIONS = 200
VERIFY_SECONDS = 60.0
"""For reads that fail at first: by then the cluster is whole, or something is wrong with it."""
READ_SECONDS = 10.0


@dataclass(slots=True)
class Ledger:
    """Every write that was sent, by what its client was told. Shared by all threads."""

    acknowledged: dict[bytes, bytes] = field(default_factory=dict)
    unknown: dict[bytes, bytes] = field(default_factory=dict)
    refused: dict[bytes, bytes] = field(default_factory=dict)
    order: list[bytes] = field(default_factory=list)
    """The acknowledged keys as they came, for readers to choose from."""
    acknowledged_at: dict[int, list[float]] = field(default_factory=dict)
    """By shard: when its writers were answered (monotonic seconds)."""
    reads: int = 0
    wrong_reads: list[bytes] = field(default_factory=list)
    """Keys that a reader did not find as they had been acknowledged."""
    errors: Counter[str] = field(default_factory=Counter)

    def acknowledge(self, key: bytes, value: bytes) -> None:
        self.acknowledged[key] = value
        self.order.append(key)

    def fail(self, key: bytes, value: bytes, error: RaftCacheError) -> None:
        self.errors[error.reason] += 1
        (self.refused if error.definite else self.unknown)[key] = value

    def longest_silence(self, begin: float, end: float) -> float:
        """The longest time within `[begin, end)` that some shard acknowledged nothing; it may have begun before."""
        longest = 0.0
        for times in self.acknowledged_at.values():
            last = begin
            for at in [*times, end]:
                if at > begin:
                    longest = max(longest, min(at, end) - last)
                if at >= end:
                    break
                last = at
        return longest


class Reads(Protocol):
    """All that the verification needs of a client."""

    def batch(self, operations: Any, *, timeout: float | None = None) -> list[Any]: ...


@dataclass(slots=True)
class Verdict:
    """What reading everything back came to."""

    verified: int = 0
    lost: list[bytes] = field(default_factory=list)
    """Acknowledged, and not there."""
    changed: list[bytes] = field(default_factory=list)
    """There, and not as it was sent; or there, though it was refused."""
    unread: list[bytes] = field(default_factory=list)
    unknown_there: int = 0

    @property
    def good(self) -> bool:
        return not (self.lost or self.changed or self.unread)


def verify(client: Reads, ledger: Ledger, *, seconds: float = VERIFY_SECONDS) -> Verdict:
    """Reads every key that was ever sent, and compares it with the ledger. Reads that fail are repeated."""
    verdict = Verdict()
    sent = {**ledger.acknowledged, **ledger.unknown, **ledger.refused}
    give_up = time.monotonic() + seconds
    left = sent
    while left:
        failed: dict[bytes, bytes] = {}
        for chunk in chunks(left):
            results = client.batch([ops.get(key) for key, _ in chunk], timeout=READ_SECONDS)
            for (key, value), result in zip(chunk, results, strict=True):
                if isinstance(result, RaftCacheError):
                    failed[key] = value
                else:
                    judge(verdict, ledger, key, value, None if result is None else result.value)
        left = failed
        if left and time.monotonic() > give_up:
            verdict.unread = list(left)
            break
    return verdict


def judge(verdict: Verdict, ledger: Ledger, key: bytes, sent: bytes, found: bytes | None) -> None:
    """Adds to the verdict what was found under one key."""
    if key in ledger.acknowledged:
        if found is None:
            verdict.lost.append(key)
        elif found != sent:
            verdict.changed.append(key)
        else:
            verdict.verified += 1
    elif found is not None:
        if key in ledger.refused or found != sent:
            verdict.changed.append(key)
        else:
            verdict.unknown_there += 1


def chunks(items: dict[bytes, bytes]) -> Iterator[list[tuple[bytes, bytes]]]:
    """The items in lists that make batches of a sensible size."""
    chunk: list[tuple[bytes, bytes]] = []
    size = 0
    for key, value in items.items():
        if chunk and (len(chunk) >= BATCH_OPERATIONS or size + len(value) > BATCH_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append((key, value))
        size += len(value)
    if chunk:
        yield chunk
