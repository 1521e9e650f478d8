"""The limits of the data model, and the check that every operation passes before it is proposed.

Rules of this file:
- a *limit* is a setting (`limits.…`): the gateway holds requests to it, and says its name, its value and the actual
  size when it refuses. Nodes may differ in it for a while, as in a rolling change of configuration;
- a *ceiling* is a constant of the format, the same in every node: it is what `apply` checks, because a check at apply
  decides state and must come out the same everywhere. No limit can be set above its ceiling;
- the limits of sessions decide state too: they are written into the shard's records when it is created, and read from
  there ever after (`Machine.create`). Changing the setting changes shards created later.
"""

from dataclasses import dataclass

from raftcache.errors import BatchTooLarge, ConfigError, CrossSlot, InvalidRequest, KeyTooLong, ValueTooLarge
from raftcache.ids import Slot
from raftcache.kv.layout import DATA_PREFIX_BYTES, RECORD_KEY_BYTES_MAX
from raftcache.kv.operations import (
    DEFAULT_NAMESPACE,
    SYSTEM_NAMESPACE,
    CloseSession,
    CompareAndSwap,
    Comparison,
    Condition,
    ConditionKind,
    Delete,
    Get,
    Increment,
    OpenSession,
    Operation,
    Put,
    PutMany,
    Scan,
    SessionStamp,
    SetOwnership,
    Transaction,
    TransactionOperation,
)
from raftcache.kv.slots import SHARD_WIDE, SLOT_COUNT, slot_of

KEY_BYTES_CEILING = RECORD_KEY_BYTES_MAX - DATA_PREFIX_BYTES
"""What is left of LMDB's 511-byte keys after our prefix."""
VALUE_BYTES_CEILING = 16 << 20
"""One value is one part of one log entry, one message and one LMDB put: beyond this it stalls a node's loop for long."""
TRANSACTION_OPERATIONS_CEILING = 1024
TRANSACTION_BYTES_CEILING = 32 << 20
"""One transaction stands in one log entry. Twice the largest value, so that compare-and-write of one always fits."""
TRANSACTION_REPLY_BYTES_CEILING = 32 << 20
"""The values that one transaction's results may carry; checked while it is evaluated, before its first write."""
SESSION_REPLY_BYTES_CEILING = 32 << 20
"""A session is one record, with all its kept replies: at most this, and one reply that goes over it."""

INTEGER_MIN = -(1 << 63)
INTEGER_MAX = (1 << 63) - 1
"""Numbers at keys, deltas and all counters of the formats are signed 64-bit, or unsigned and below this."""

SHOWN_BYTES = 64
"""How much of a key an error message shows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KvLimits:
    """The data model's limits, as configured. Sizes in bytes."""

    key_bytes_max: int = 400
    value_bytes_max: int = 1 << 20
    """1 MiB: 100 ms on a 100 Mbit/s link, and with it the shortest election timeout worth having."""
    transaction_operations_max: int = 128
    """Per branch, and for the conditions. etcd's `--max-txn-ops`."""
    transaction_bytes_max: int = 4 << 20
    """Keys and values of one transaction, both branches and the conditions together."""
    scan_entries_max: int = 4096
    """Per page. At about 1.5 us an entry a full page keeps the loop for some 6 ms."""
    scan_bytes_max: int = 4 << 20
    """Per page, keys and values; a page has at least one entry."""
    session_window: int = 1024
    """Sequence numbers from the first unacknowledged one that a session may have in flight."""
    session_reply_bytes_max: int = 1 << 20
    """Cached replies of one session (exceeded by the last reply at most); beyond, new commands are refused."""
    session_reply_bytes_total_max: int = 32 << 20
    """Cached replies of all sessions of a shard; beyond, the least recently used sessions go."""
    sessions_max: int = 10_000
    """Sessions of a shard; beyond, the least recently used one goes. About 1 KiB of memory each."""

    def __post_init__(self) -> None:
        ceilings = {
            "key_bytes_max": KEY_BYTES_CEILING,
            "value_bytes_max": VALUE_BYTES_CEILING,
            "transaction_operations_max": TRANSACTION_OPERATIONS_CEILING,
            "transaction_bytes_max": TRANSACTION_BYTES_CEILING,
            "scan_entries_max": 1 << 20,
            "scan_bytes_max": 64 << 20,
            "session_window": 1 << 16,
            "session_reply_bytes_max": SESSION_REPLY_BYTES_CEILING,
            "session_reply_bytes_total_max": 1 << 32,
            "sessions_max": 1 << 24,
        }
        for name, ceiling in ceilings.items():
            value = getattr(self, name)
            if not 1 <= value <= ceiling:
                raise ConfigError(f"limits.{name} is {value}; it must lie in [1, {ceiling}]")
        if self.session_reply_bytes_max > self.session_reply_bytes_total_max:
            raise ConfigError(
                f"limits.session_reply_bytes_max is {self.session_reply_bytes_max}, which is more than the "
                f"{self.session_reply_bytes_total_max} of limits.session_reply_bytes_total_max: one session could push "
                f"out all others"
            )


CEILINGS = KvLimits(
    key_bytes_max=KEY_BYTES_CEILING,
    value_bytes_max=VALUE_BYTES_CEILING,
    transaction_operations_max=TRANSACTION_OPERATIONS_CEILING,
    transaction_bytes_max=TRANSACTION_BYTES_CEILING,
)
"""What `apply` holds commands to."""


def check_operation(operation: Operation, limits: KvLimits, *, internal: bool = False) -> Slot:
    """Check that `operation` may be proposed or read; return the slot of its keys, or -1 if it concerns a whole shard.

    `internal` is for the node itself: it may use the system namespace and system commands. Operations in the system
    namespace concern their shard as a whole.

    Raises: `InvalidRequest` or one of its kinds (`KeyTooLong`, `ValueTooLarge`, `BatchTooLarge`, `CrossSlot`):
    definite, nothing was proposed, and the same request can never succeed.
    """
    match operation:
        case Put() if (
            # What gateways see most, in one look.
            0 < len(operation.key) <= limits.key_bytes_max
            and len(operation.value) <= limits.value_bytes_max
            and not (operation.conditions or operation.ttl_ms or operation.lease or operation.namespace)
        ):
            return slot_of(operation.key)
        case Get():
            _check_key(operation.key, limits)
            return _slot(operation.key, operation.namespace, internal=internal)
        case Put() | CompareAndSwap() | Delete() | Increment():
            _check_write(operation, limits)
            return _slot(operation.key, operation.namespace, internal=internal)
        case PutMany():
            _check_put_many(operation, limits)
            return SHARD_WIDE
        case Scan():
            _check_scan(operation, limits)
            _check_namespace(operation.namespace, internal=internal)
            return SHARD_WIDE
        case Transaction():
            return _check_transaction(operation, limits, internal=internal)
        case OpenSession():
            return SHARD_WIDE
        case CloseSession():
            _check_integer("session", operation.session, lo=1)
            return SHARD_WIDE
        case SetOwnership():
            if not internal:
                raise InvalidRequest("SetOwnership is a command of the cluster itself; clients cannot send it")
            _check_integer("epoch", operation.epoch, lo=0)
            check_ranges(operation.ranges)
            return SHARD_WIDE


def is_plain(put: Put) -> bool:
    """Whether a put is nothing but a key and a value within the ceilings, as `PutMany` has them: nothing refuses it then."""
    if put.conditions or put.return_previous or put.ttl_ms or put.lease or put.namespace:
        return False
    return 0 < len(put.key) <= KEY_BYTES_CEILING and len(put.value) <= VALUE_BYTES_CEILING


def check_stamp(stamp: SessionStamp) -> None:
    """Check a session stamp's numbers as such. Raises: `InvalidRequest`."""
    _check_integer("session", stamp.session, lo=1)
    _check_integer("first_unacked", stamp.first_unacked, lo=1)
    _check_integer("sequence", stamp.sequence, lo=1)
    if stamp.first_unacked > stamp.sequence:
        raise InvalidRequest(
            f"first_unacked {stamp.first_unacked} is above the command's own sequence number {stamp.sequence}: "
            f"it would acknowledge the reply that is being asked for"
        )


def check_ranges(ranges: tuple[tuple[Slot, Slot], ...]) -> None:
    """Slot ranges `[lo, hi)` must be non-empty, ascending and disjoint. Raises: `InvalidRequest`."""
    before = 0
    for lo, hi in ranges:
        if not before <= lo < hi <= SLOT_COUNT:
            raise InvalidRequest(
                f"slot range [{lo}, {hi}) is empty, outside [0, {SLOT_COUNT}), or not after the one before it"
            )
        before = hi


def shown(key: bytes) -> str:
    """A key for an error message."""
    return repr(key) if len(key) <= SHOWN_BYTES else f"{key[:SHOWN_BYTES]!r}... ({len(key)} bytes)"


def _check_write(operation: Put | CompareAndSwap | Delete | Increment, limits: KvLimits) -> None:
    key = operation.key
    _check_key(key, limits)
    match operation:
        case Put():
            _check_value(operation.value, limits)
            _check_reserved(operation)
            _check_own_conditions(operation.conditions, key, limits)
        case CompareAndSwap():
            _check_value(operation.value, limits)
            if operation.expected is not None:
                _check_value(operation.expected, limits)
            _check_reserved(operation)
        case Delete():
            _check_own_conditions(operation.conditions, key, limits)
        case Increment():
            _check_integer("delta", operation.delta, lo=INTEGER_MIN)
            _check_integer("initial", operation.initial, lo=INTEGER_MIN)


def _check_put_many(operation: PutMany, limits: KvLimits) -> None:
    keys, values = operation.keys, operation.values
    if not keys or len(keys) != len(values):
        raise InvalidRequest(
            f"many puts have {len(keys)} keys and {len(values)} values; they have as many, and one at least"
        )
    # In one look; then, where something is wrong, once more for its name.
    if not min(map(len, keys)) or max(map(len, keys)) > limits.key_bytes_max:
        for key in keys:
            _check_key(key, limits)
    if max(map(len, values)) > limits.value_bytes_max:
        for value in values:
            _check_value(value, limits)


def _check_transaction(operation: Transaction, limits: KvLimits, *, internal: bool) -> Slot:
    namespace = operation.namespace
    parts = (("conditions", operation.conditions), ("then", operation.then), ("otherwise", operation.otherwise))
    for name, part in parts:
        if len(part) > limits.transaction_operations_max:
            raise BatchTooLarge(
                f"`{name}` of the transaction has {len(part)} items; limits.transaction_operations_max allows "
                f"{limits.transaction_operations_max}: split the transaction",
                metadata=_facts("transaction_operations_max", limits.transaction_operations_max, len(part)),
            )
    keys: list[bytes] = []
    size = 0
    for condition in operation.conditions:
        _check_condition(condition, limits)
        keys.append(condition.key)
        size += len(condition.key) + len(condition.value)
    for branch in (operation.then, operation.otherwise):
        size += _check_branch(branch, keys, limits, namespace=namespace)
    if size > limits.transaction_bytes_max:
        raise BatchTooLarge(
            f"the transaction's keys and values have {size} bytes; limits.transaction_bytes_max allows "
            f"{limits.transaction_bytes_max}: split the transaction",
            metadata=_facts("transaction_bytes_max", limits.transaction_bytes_max, size),
        )
    if not keys:
        raise InvalidRequest("the transaction names no key: give it a condition or an operation")
    _check_namespace(namespace, internal=internal)
    if namespace == SYSTEM_NAMESPACE:
        return SHARD_WIDE
    slot = slot_of(keys[0])
    for key in keys:
        if slot_of(key) != slot:
            raise CrossSlot(
                f"the transaction's keys {shown(keys[0])} (slot {slot}) and {shown(key)} (slot {slot_of(key)}) lie in "
                f"two slots, and a transaction stays in one: give its keys a common part in braces, which alone then "
                f"decides the slot, such as {{user1}}name and {{user1}}mail",
                metadata={"slot": str(slot), "other_slot": str(slot_of(key))},
            )
    return slot


def _check_branch(
    branch: tuple[TransactionOperation, ...], keys: list[bytes], limits: KvLimits, *, namespace: int
) -> int:
    """Check one branch, add its keys to `keys`, return the bytes of its keys and values."""
    size = 0
    written: dict[bytes, None] = {}
    for operation in branch:
        key = operation.key
        if isinstance(operation, Get):
            _check_key(key, limits)
        else:
            _check_write(operation, limits)
            if isinstance(operation, (Put, Delete)) and operation.conditions:
                raise InvalidRequest(
                    f"the operation on {shown(key)} inside a transaction has conditions of its own: move them to the "
                    f"transaction's conditions"
                )
            # As in etcd: with two writes of one key, one revision could not tell which of them it means.
            if key in written:
                raise InvalidRequest(
                    f"the key {shown(key)} is written twice in one branch of the transaction: keep the last write only"
                )
            written[key] = None
        if operation.namespace != namespace:
            raise InvalidRequest(
                f"the operation on {shown(key)} is in namespace {operation.namespace}, its transaction in {namespace}"
            )
        keys.append(key)
        size += len(key)
        if isinstance(operation, Put):
            size += len(operation.value)
        elif isinstance(operation, CompareAndSwap):
            size += len(operation.value) + (0 if operation.expected is None else len(operation.expected))
    return size


def _check_own_conditions(conditions: tuple[Condition, ...], key: bytes, limits: KvLimits) -> None:
    if not conditions:
        return
    if len(conditions) > limits.transaction_operations_max:
        raise BatchTooLarge(
            f"the operation has {len(conditions)} conditions; limits.transaction_operations_max allows "
            f"{limits.transaction_operations_max}",
            metadata=_facts("transaction_operations_max", limits.transaction_operations_max, len(conditions)),
        )
    for condition in conditions:
        if condition.key != key:
            raise InvalidRequest(
                f"the condition on {shown(condition.key)} stands at a write of {shown(key)}: conditions on other keys "
                f"need a transaction"
            )
        _check_condition(condition, limits)


def _check_condition(condition: Condition, limits: KvLimits) -> None:
    _check_key(condition.key, limits)
    _check_value(condition.value, limits)
    _check_integer("number of a condition", condition.number, lo=0)
    if condition.kind in (ConditionKind.ABSENT, ConditionKind.EXISTS) and condition.comparison != Comparison.EQUAL:
        raise InvalidRequest(f"{condition.kind.name} is no comparison: leave `comparison` at EQUAL")


def _check_scan(operation: Scan, limits: KvLimits) -> None:
    # One byte more than a key may have: `key + b"\0"` is how to start after a key.
    longest = min(limits.key_bytes_max + 1, KEY_BYTES_CEILING)
    for name, bound in (("lo", operation.lo), ("hi", operation.hi or b"")):
        if len(bound) > longest:
            raise KeyTooLong(
                f"`{name}` of the scan has {len(bound)} bytes; limits.key_bytes_max allows keys of "
                f"{limits.key_bytes_max}",
                metadata=_facts("key_bytes_max", limits.key_bytes_max, len(bound)),
            )
    if not 1 <= operation.limit <= limits.scan_entries_max:
        raise InvalidRequest(
            f"the scan's limit is {operation.limit}; limits.scan_entries_max allows 1 to {limits.scan_entries_max}: "
            f"ask for less and go on at `next_key`",
            metadata=_facts("scan_entries_max", limits.scan_entries_max, operation.limit),
        )
    if not 1 <= operation.bytes_max <= limits.scan_bytes_max:
        raise InvalidRequest(
            f"the scan's bytes_max is {operation.bytes_max}; limits.scan_bytes_max allows 1 to "
            f"{limits.scan_bytes_max}: ask for less and go on at `next_key`",
            metadata=_facts("scan_bytes_max", limits.scan_bytes_max, operation.bytes_max),
        )


def _check_key(key: bytes, limits: KvLimits) -> None:
    if not key:
        raise InvalidRequest("the key is empty; keys have at least one byte")
    if len(key) > limits.key_bytes_max:
        raise KeyTooLong(
            f"the key {shown(key)} has {len(key)} bytes; limits.key_bytes_max allows {limits.key_bytes_max}: shorten "
            f"it, or put a hash of the long part in its place",
            metadata=_facts("key_bytes_max", limits.key_bytes_max, len(key)),
        )


def _check_value(value: bytes, limits: KvLimits) -> None:
    if len(value) > limits.value_bytes_max:
        raise ValueTooLarge(
            f"the value has {len(value)} bytes; limits.value_bytes_max allows {limits.value_bytes_max}: split or "
            f"compress it, or raise the setting on every node (at most {VALUE_BYTES_CEILING})",
            metadata=_facts("value_bytes_max", limits.value_bytes_max, len(value)),
        )


def _check_reserved(operation: Put | CompareAndSwap) -> None:
    for name, value in (("ttl_ms", operation.ttl_ms), ("lease", operation.lease)):
        if value:
            raise InvalidRequest(f"`{name}` is {value}, but it is reserved: this release stores no expiry; leave it 0")


def _slot(key: bytes, namespace: int, *, internal: bool) -> Slot:
    if namespace == DEFAULT_NAMESPACE:
        return slot_of(key)
    _check_namespace(namespace, internal=internal)
    return SHARD_WIDE


def _check_namespace(namespace: int, *, internal: bool) -> None:
    if namespace == DEFAULT_NAMESPACE or (namespace == SYSTEM_NAMESPACE and internal):
        return
    if namespace == SYSTEM_NAMESPACE:
        raise InvalidRequest(f"namespace {SYSTEM_NAMESPACE} is the cluster's own; clients cannot use it")
    raise InvalidRequest(f"namespace {namespace} is reserved: this release has namespace {DEFAULT_NAMESPACE} only")


def _check_integer(name: str, value: int, *, lo: int) -> None:
    if not lo <= value <= INTEGER_MAX:
        raise InvalidRequest(f"{name} is {value}; it must lie in [{lo}, {INTEGER_MAX}]")


def _facts(setting: str, limit: int, actual: int) -> dict[str, str]:
    return {"setting": f"limits.{setting}", "limit": str(limit), "actual": str(actual)}
