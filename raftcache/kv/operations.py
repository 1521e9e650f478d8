"""The operations of the data model and their results: plain data, shared by gateway, node, state machine and catalog.

Rules of this file:
- no behaviour; limits are checked at the gateway (`limits.py`) and again, deterministically, at apply;
- keys and values are `bytes`; `None` means absent, `b""` is a legal value; an empty key is illegal;
- ranges are half-open `[lo, hi)`; `hi=None` means to the end;
- times are milliseconds; 0 = none. `ttl_ms`, `lease` and `namespace` are reserved: formats carry them, apply refuses them.
"""

from dataclasses import dataclass, field
from enum import IntEnum
from typing import assert_never

from raftcache.ids import Revision, Slot

DEFAULT_NAMESPACE = 0
SYSTEM_NAMESPACE = 1
"""Keys of the catalog; reachable from inside the node only."""


class ConditionKind(IntEnum):
    """What a condition compares. Values are part of the command format."""

    ABSENT = 1
    EXISTS = 2
    VERSION = 3
    MOD_REVISION = 4
    CREATE_REVISION = 5
    VALUE = 6


class Comparison(IntEnum):
    """How. A missing key compares as version 0 and revision 0; a VALUE comparison on a missing key is false."""

    EQUAL = 0
    NOT_EQUAL = 1
    GREATER = 2
    LESS = 3


@dataclass(slots=True, frozen=True)
class Condition:
    """One comparison on one key. `number` serves VERSION and the revisions, `value` serves VALUE."""

    key: bytes
    kind: ConditionKind
    comparison: Comparison = Comparison.EQUAL
    number: int = 0
    value: bytes = b""


@dataclass(slots=True)
class Get:
    """Read one key. Result: `Entry | None` in `GetResult`."""

    key: bytes
    namespace: int = DEFAULT_NAMESPACE


@dataclass(slots=True)
class Put:
    """Write one key if all `conditions` (all on this key) hold. `return_previous` adds the entry that was there."""

    key: bytes
    value: bytes
    conditions: tuple[Condition, ...] = ()
    return_previous: bool = False
    ttl_ms: int = 0
    lease: int = 0
    namespace: int = DEFAULT_NAMESPACE


@dataclass(slots=True)
class PutMany:
    """Plain puts of many keys of one shard, in their order: each with a revision of its own, and as if sent alone.

    What a batch of puts travels as: one request, one command and one result, whatever its length. Result: `PutManyResult`.
    """

    keys: list[bytes]
    values: list[bytes]
    """As many as keys."""


@dataclass(slots=True)
class Delete:
    """Remove one key if all `conditions` hold. Deleting an absent key succeeds, and bumps no revision."""

    key: bytes
    conditions: tuple[Condition, ...] = ()
    return_previous: bool = False
    namespace: int = DEFAULT_NAMESPACE


@dataclass(slots=True)
class CompareAndSwap:
    """Write `value` if the key's value is `expected` (`None` = the key is absent)."""

    key: bytes
    expected: bytes | None
    value: bytes
    ttl_ms: int = 0
    lease: int = 0
    namespace: int = DEFAULT_NAMESPACE


@dataclass(slots=True)
class Increment:
    """Add `delta` to the signed 64-bit decimal ASCII number at the key (`initial` where absent). Overflow is refused."""

    key: bytes
    delta: int = 1
    initial: int = 0
    namespace: int = DEFAULT_NAMESPACE


@dataclass(slots=True)
class Scan:
    """Read keys in `[lo, hi)`, ascending, at most `limit` entries and `bytes_max` bytes; `more` and `next_key` page on."""

    lo: bytes
    hi: bytes | None = None
    limit: int = 1000
    bytes_max: int = 1 << 20
    keys_only: bool = False
    count_only: bool = False
    namespace: int = DEFAULT_NAMESPACE


@dataclass(slots=True)
class Transaction:
    """If all `conditions` hold run `then`, else `otherwise`: atomically, at one revision. All keys lie in one slot.

    Branches hold `Get | Put | Delete | Increment | CompareAndSwap` without conditions of their own.
    """

    conditions: tuple[Condition, ...] = ()
    then: tuple["TransactionOperation", ...] = ()
    otherwise: tuple["TransactionOperation", ...] = ()
    namespace: int = DEFAULT_NAMESPACE


@dataclass(slots=True)
class OpenSession:
    """Open a client session in this shard; the result carries its id (never 0)."""


@dataclass(slots=True)
class CloseSession:
    """Forget a session and its cached replies."""

    session: int


@dataclass(slots=True)
class SetOwnership:
    """System command: from here on the shard owns exactly these slot ranges `[lo, hi)`, as of catalog `epoch`."""

    ranges: tuple[tuple[Slot, Slot], ...]
    epoch: int


TransactionOperation = Get | Put | Delete | Increment | CompareAndSwap
ReadOperation = Get | Scan
WriteOperation = (
    Put | PutMany | Delete | CompareAndSwap | Increment | Transaction | OpenSession | CloseSession | SetOwnership
)
Operation = ReadOperation | WriteOperation


@dataclass(slots=True, frozen=True)
class SessionStamp:
    """Makes a write exactly-once: the same (`session`, `sequence`) is applied at most once per shard.

    `sequence` counts from 1. Every reply below `first_unacked` has been received and may be forgotten.
    """

    session: int
    sequence: int
    first_unacked: int


@dataclass(slots=True)
class Command:
    """One write as it stands in the log."""

    operation: WriteOperation
    slot: Slot
    """-1 where the command belongs to the shard as a whole (sessions, ownership)."""
    stamp: SessionStamp | None = None


# --- Results ------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class KeyEntry:
    """A key as stored. `value` is empty for keys-only scans."""

    key: bytes
    value: bytes
    version: int
    create_revision: Revision
    mod_revision: Revision
    lease: int = 0
    expiry_ms: int = 0


@dataclass(slots=True)
class GetResult:
    """`entry` is None where the key is absent."""

    revision: Revision
    entry: KeyEntry | None


@dataclass(slots=True)
class WriteResult:
    """Of Put, Delete and CompareAndSwap. `succeeded` is False where a condition failed; `current` is then what is there.

    `revision` is the shard's revision after the command. `deleted` is whether a Delete found the key.
    """

    revision: Revision
    succeeded: bool = True
    previous: KeyEntry | None = None
    current: KeyEntry | None = None
    deleted: bool = False


@dataclass(slots=True)
class PutManyResult:
    """`revision` is the shard's after the command; the puts that were made have the revisions up to it, in order."""

    revision: Revision
    count: int
    """Puts of the command, refused ones included."""
    refused: tuple[int, ...] = ()
    """Positions of keys in slots that the shard does not own, ascending: nothing was written for them."""


@dataclass(slots=True)
class IncrementResult:
    """`value` is the number after the increment."""

    revision: Revision
    value: int


@dataclass(slots=True)
class ScanResult:
    """`next_key` is where the next page starts (empty at the end). `count` counts what matched on this page."""

    revision: Revision
    entries: list[KeyEntry] = field(default_factory=list)
    count: int = 0
    more: bool = False
    next_key: bytes = b""


@dataclass(slots=True)
class TransactionResult:
    """`succeeded` says which branch ran; `results` has one result per operation of that branch."""

    revision: Revision
    succeeded: bool
    results: "list[Result]" = field(default_factory=list)


@dataclass(slots=True)
class SessionResult:
    """`session` identifies the session in this shard."""

    revision: Revision
    session: int


@dataclass(slots=True)
class Failure:
    """A deterministic refusal by the state machine. `reason` is the `reason` of a class in `raftcache.errors`.

    Nothing was changed. The node turns it into that error.
    """

    reason: str
    message: str


Result = (
    GetResult | WriteResult | PutManyResult | IncrementResult | ScanResult | TransactionResult | SessionResult | Failure
)


def value_bytes(result: Result) -> int:
    """Bytes of the values that a result carries."""
    match result:
        # What a plain put answers, most of all results.
        case WriteResult(previous=None, current=None):
            return 0
        case GetResult():
            return 0 if result.entry is None else len(result.entry.value)
        case WriteResult():
            return sum(len(entry.value) for entry in (result.previous, result.current) if entry is not None)
        case ScanResult():
            return sum(len(entry.value) for entry in result.entries)
        case TransactionResult():
            return sum(map(value_bytes, result.results))
        case PutManyResult() | IncrementResult() | SessionResult() | Failure():
            return 0
        case _:
            assert_never(result)


def puts_in(operation: Operation) -> int:
    """How many writes an operation counts for, where writes are counted: a `PutMany` for as many as it has."""
    return len(operation.keys) if type(operation) is PutMany else 1
