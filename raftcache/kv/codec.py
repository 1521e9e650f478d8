"""Bytes of operations, commands and batches: what stands in the log, and what nodes forward to each other.

A batch is one log entry: a version, the proposer's time stamp, and its commands one after the other. Each command or
operation is a fixed head, then the parts that its flags announce, then what its tag demands, then key and value:

    tag u8 | flags u8 | slot i16 | key bytes u16 | value bytes u32
    [stamp: session u64, sequence u64, first unacked u64]         flag STAMPED, commands only
    [reserved: namespace u32, ttl u64, lease u64]                 flag EXTENDED, where one of them is not 0
    [conditions: count u16, each kind u8 ...]                     flag CONDITIONED
    body of the tag | key | value

Many puts are columns, so that they are packed and unpacked by the column: count u32, the lengths of keys u16 and of
values u32, then the keys, then the values.

Rules of this file:
- decoding is strict and canonical: what decodes encodes back to the same bytes. Anything else raises `MalformedBytes`,
  and a version above ours `UnsupportedVersion`; nothing else is ever raised, whatever the bytes;
- a new tag, flag or field needs a new version: a release that knows the version knows all of it;
- lengths are not checked slice by slice. A slice past the end comes out short, the position still moves on, and the one
  check at the end sees that it is not where the data ends;
- encoding values that do not fit their fields raises `ValueError`; `limits.check_operation` has refused them before.

All integers are big-endian. Results are encoded in `result_codec.py`, and re-exported here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from struct import Struct, pack, unpack_from
from struct import error as struct_error
from typing import assert_never

from raftcache.ids import Slot
from raftcache.kv.layout import newer
from raftcache.kv.operations import (
    CloseSession,
    Command,
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
)
from raftcache.kv.result_codec import (
    MalformedBytes,
    decode_outcome,
    decode_result,
    encode_outcome,
    encode_result,
)
from raftcache.kv.slots import SHARD_WIDE

__all__ = [
    "Batch",
    "MalformedBytes",
    "decode_batch",
    "decode_operation",
    "decode_outcome",
    "decode_result",
    "encode_batch",
    "encode_operation",
    "encode_outcome",
    "encode_result",
]

BATCH_VERSION = 1
OPERATION_VERSION = 1

COMMANDS_PER_BATCH_MAX = 1 << 20
"""A session's id is its log index and its position in the batch, of which this many fit (see `sessions.py`)."""

_BATCH = Struct(">BQI")
"""Version, proposed_ms, count of commands."""
_HEAD = Struct(">BBhHI")
_STAMP = Struct(">QQQ")
_EXTENSION = Struct(">IQQ")
_CONDITION = Struct(">BBHIQ")
"""Kind, comparison, key bytes, value bytes, number."""
_COUNT = Struct(">H")
_LENGTH = Struct(">I")
_INCREMENT = Struct(">qq")
_SCAN = Struct(">QQ")
_TRANSACTION = Struct(">HH")
_SESSION = Struct(">Q")
_OWNERSHIP = Struct(">QH")
_RANGE = Struct(">HH")

_PUT, _DELETE, _CAS, _INCREMENT_BY, _TRANSACT, _OPEN, _CLOSE, _OWN, _PUT_MANY = range(1, 10)
_GET, _SCAN_KEYS = 16, 17

_STAMPED = 0x80
_EXTENDED = 0x40
_CONDITIONED = 0x20
_PREVIOUS = 0x01
"""Put and Delete: return what was there."""
_EXPECTED = 0x01
"""CompareAndSwap: an expected value follows; without it the key must be absent."""
_BOUNDED = 0x01
_KEYS_ONLY = 0x02
_COUNT_ONLY = 0x04

_KINDS: dict[int, ConditionKind] = {int(kind): kind for kind in ConditionKind}
_COMPARISONS: dict[int, Comparison] = {int(comparison): comparison for comparison in Comparison}

_head, _head_from = _HEAD.pack, _HEAD.unpack_from
_stamp, _stamp_from = _STAMP.pack, _STAMP.unpack_from


@dataclass(slots=True)
class Batch:
    """One log entry: many commands, and the time at which the leader proposed them."""

    proposed_ms: int
    commands: list[Command]


def encode_batch(commands: Sequence[Command], *, proposed_ms: int) -> bytes:
    """The data of one log entry. About 1 us for each plain put.

    Raises: `ValueError` where a number does not fit its field.
    """
    assert len(commands) <= COMMANDS_PER_BATCH_MAX, f"{len(commands)} commands, at most {COMMANDS_PER_BATCH_MAX}"
    try:
        parts = [_BATCH.pack(BATCH_VERSION, proposed_ms, len(commands))]
        append = parts.append
        for command in commands:
            operation = command.operation
            stamp = command.stamp
            # The plain put first: it is most of what a cache writes.
            if (
                type(operation) is Put
                and not operation.conditions
                and not operation.return_previous
                and not (operation.ttl_ms or operation.lease or operation.namespace)
            ):
                key = operation.key
                value = operation.value
                if stamp is None:
                    append(_head(_PUT, 0, command.slot, len(key), len(value)))
                else:
                    append(_head(_PUT, _STAMPED, command.slot, len(key), len(value)))
                    append(_stamp(stamp.session, stamp.sequence, stamp.first_unacked))
                append(key)
                append(value)
            else:
                _encode_operation(parts, operation, command.slot, stamp)
        return b"".join(parts)
    except struct_error as error:
        raise ValueError(f"a batch of {len(commands)} commands cannot be encoded: {error}") from error


def decode_batch(data: bytes) -> Batch:
    """The commands of one log entry. About 1.5 us for each plain put with a stamp.

    Raises: `MalformedBytes`, or `UnsupportedVersion` for a newer release's batch.
    """
    try:
        if data[0] != BATCH_VERSION:
            raise _version_error("the batch", found=data[0], known=BATCH_VERSION)
        _, proposed_ms, count = _BATCH.unpack_from(data)
        if count > COMMANDS_PER_BATCH_MAX:
            raise MalformedBytes(f"the batch claims {count} commands, at most {COMMANDS_PER_BATCH_MAX}")
        at = _BATCH.size
        commands: list[Command] = []
        append = commands.append
        for _ in range(count):
            tag, flags, slot, key_bytes, value_bytes = _head_from(data, at)
            if tag == _PUT and not flags & ~_STAMPED:
                at += 10
                stamp = None
                if flags:
                    stamp = SessionStamp(*_stamp_from(data, at))
                    at += 24
                value_at = at + key_bytes
                end = value_at + value_bytes
                append(Command(Put(data[at:value_at], data[value_at:end]), slot, stamp))
                at = end
            else:
                operation, slot, stamp, at = _decode_operation(data, at)
                if isinstance(operation, (Get, Scan)):
                    raise MalformedBytes(f"a read (tag {tag}) stands in the batch")
                append(Command(operation, slot, stamp))
    except (struct_error, IndexError) as error:
        raise MalformedBytes(f"the batch of {len(data)} bytes is cut short: {error}") from error
    if at != len(data):
        raise MalformedBytes(f"the batch has {len(data)} bytes, its commands end at {at}")
    return Batch(proposed_ms, commands)


def encode_operation(operation: Operation) -> bytes:
    """One operation by itself, reads included: what a gateway forwards. Raises: `ValueError` as `encode_batch`."""
    parts = [bytes([OPERATION_VERSION])]
    try:
        _encode_operation(parts, operation, SHARD_WIDE, None)
    except struct_error as error:
        raise ValueError(f"the operation {type(operation).__name__} cannot be encoded: {error}") from error
    return b"".join(parts)


def decode_operation(data: bytes) -> Operation:
    """The inverse of `encode_operation`. Raises: `MalformedBytes`, `UnsupportedVersion`."""
    try:
        if data[0] != OPERATION_VERSION:
            raise _version_error("the operation", found=data[0], known=OPERATION_VERSION)
        operation, slot, stamp, at = _decode_operation(data, 1)
    except (struct_error, IndexError) as error:
        raise MalformedBytes(f"the operation of {len(data)} bytes is cut short: {error}") from error
    if at != len(data) or slot != SHARD_WIDE or stamp is not None:
        raise MalformedBytes(f"the operation of {len(data)} bytes ends at {at}, slot {slot}, stamp {stamp}")
    return operation


# --- Encoding ----------------------------------------------------------------------------------------------------


def _encode_operation(parts: list[bytes], operation: Operation, slot: Slot, stamp: SessionStamp | None) -> None:
    flags = 0 if stamp is None else _STAMPED
    prefix = b"" if stamp is None else _stamp(stamp.session, stamp.sequence, stamp.first_unacked)
    match operation:
        case Put() | Delete():
            value = operation.value if isinstance(operation, Put) else b""
            flags |= _PREVIOUS if operation.return_previous else 0
            extension = _encode_extension(operation)
            conditions = _encode_conditions(operation.conditions)
            flags |= (_EXTENDED if extension else 0) | (_CONDITIONED if conditions else 0)
            tag = _PUT if isinstance(operation, Put) else _DELETE
            head = _head(tag, flags, slot, len(operation.key), len(value))
            parts += (head, prefix, extension, conditions, operation.key, value)
        case CompareAndSwap():
            extension = _encode_extension(operation)
            flags |= _EXTENDED if extension else 0
            expected = b""
            if operation.expected is not None:
                flags |= _EXPECTED
                expected = _LENGTH.pack(len(operation.expected)) + operation.expected
            head = _head(_CAS, flags, slot, len(operation.key), len(operation.value))
            parts += (head, prefix, extension, expected, operation.key, operation.value)
        case Increment():
            extension = _encode_extension(operation)
            flags |= _EXTENDED if extension else 0
            head = _head(_INCREMENT_BY, flags, slot, len(operation.key), 0)
            parts += (head, prefix, extension, _INCREMENT.pack(operation.delta, operation.initial), operation.key)
        case PutMany():
            keys, values = operation.keys, operation.values
            count = len(keys)
            if not count or count != len(values):
                raise ValueError(f"many puts of {count} keys and {len(values)} values cannot be encoded")
            parts += (_head(_PUT_MANY, flags, slot, 0, 0), prefix, _LENGTH.pack(count))
            parts.append(pack(f">{count}H", *map(len, keys)))
            parts.append(pack(f">{count}I", *map(len, values)))
            parts += keys
            parts += values
        case Transaction():
            extension = _encode_extension(operation)
            conditions = _encode_conditions(operation.conditions)
            flags |= (_EXTENDED if extension else 0) | (_CONDITIONED if conditions else 0)
            parts += (_head(_TRANSACT, flags, slot, 0, 0), prefix, extension, conditions)
            parts.append(_TRANSACTION.pack(len(operation.then), len(operation.otherwise)))
            for inner in operation.then + operation.otherwise:
                _encode_operation(parts, inner, SHARD_WIDE, None)
        case Get():
            extension = _encode_extension(operation)
            flags |= _EXTENDED if extension else 0
            parts += (_head(_GET, flags, slot, len(operation.key), 0), prefix, extension, operation.key)
        case Scan():
            extension = _encode_extension(operation)
            flags |= (_EXTENDED if extension else 0) | (0 if operation.hi is None else _BOUNDED)
            flags |= (_KEYS_ONLY if operation.keys_only else 0) | (_COUNT_ONLY if operation.count_only else 0)
            hi = operation.hi or b""
            head = _head(_SCAN_KEYS, flags, slot, len(operation.lo), len(hi))
            parts += (head, prefix, extension, _SCAN.pack(operation.limit, operation.bytes_max), operation.lo, hi)
        case OpenSession():
            parts += (_head(_OPEN, flags, slot, 0, 0), prefix)
        case CloseSession():
            parts += (_head(_CLOSE, flags, slot, 0, 0), prefix, _SESSION.pack(operation.session))
        case SetOwnership():
            parts += (_head(_OWN, flags, slot, 0, 0), prefix)
            parts.append(_OWNERSHIP.pack(operation.epoch, len(operation.ranges)))
            parts += [_RANGE.pack(lo, hi) for lo, hi in operation.ranges]
        case _:
            assert_never(operation)


def _encode_extension(
    operation: Put | Delete | CompareAndSwap | Increment | Transaction | Get | Scan,
) -> bytes:
    ttl_ms = lease = 0
    if isinstance(operation, (Put, CompareAndSwap)):
        ttl_ms, lease = operation.ttl_ms, operation.lease
    if not (operation.namespace or ttl_ms or lease):
        return b""
    return _EXTENSION.pack(operation.namespace, ttl_ms, lease)


def _encode_conditions(conditions: tuple[Condition, ...]) -> bytes:
    if not conditions:
        return b""
    parts = [_COUNT.pack(len(conditions))]
    for one in conditions:
        parts.append(_CONDITION.pack(one.kind, one.comparison, len(one.key), len(one.value), one.number))
        parts.append(one.key)
        parts.append(one.value)
    return b"".join(parts)


# --- Decoding ----------------------------------------------------------------------------------------------------

_FLAGS = {
    _PUT: _STAMPED | _EXTENDED | _CONDITIONED | _PREVIOUS,
    _DELETE: _STAMPED | _EXTENDED | _CONDITIONED | _PREVIOUS,
    _CAS: _STAMPED | _EXTENDED | _EXPECTED,
    _INCREMENT_BY: _STAMPED | _EXTENDED,
    _TRANSACT: _STAMPED | _EXTENDED | _CONDITIONED,
    _OPEN: _STAMPED,
    _CLOSE: _STAMPED,
    _OWN: _STAMPED,
    _PUT_MANY: _STAMPED,
    _GET: _EXTENDED,
    _SCAN_KEYS: _EXTENDED | _BOUNDED | _KEYS_ONLY | _COUNT_ONLY,
}
"""The flags each tag may carry."""
_KEYLESS = (_TRANSACT, _OPEN, _CLOSE, _OWN, _PUT_MANY)
_VALUELESS = (_DELETE, _INCREMENT_BY, _GET, *_KEYLESS)
_EXPIRING = (_PUT, _CAS)


def _decode_operation(data: bytes, at: int) -> tuple[Operation, Slot, SessionStamp | None, int]:
    """The operation whose head is at `at`: with its slot, its stamp, and where it ends."""
    tag, flags, slot, key_bytes, value_bytes = _head_from(data, at)
    allowed = _FLAGS.get(tag)
    if allowed is None or flags & ~allowed:
        raise MalformedBytes(f"operation at {at}: unknown tag {tag} or flags {flags:#x}")
    if (key_bytes and tag in _KEYLESS) or (value_bytes and tag in _VALUELESS):
        raise MalformedBytes(
            f"operation at {at}: tag {tag} with a key of {key_bytes} or a value of {value_bytes} bytes"
        )
    at += _HEAD.size
    stamp = None
    if flags & _STAMPED:
        stamp = SessionStamp(*_stamp_from(data, at))
        at += _STAMP.size
    namespace = ttl_ms = lease = 0
    if flags & _EXTENDED:
        namespace, ttl_ms, lease = _EXTENSION.unpack_from(data, at)
        at += _EXTENSION.size
        if not (namespace or ttl_ms or lease) or ((ttl_ms or lease) and tag not in _EXPIRING):
            raise MalformedBytes(f"operation before {at}: tag {tag} with extension {namespace}, {ttl_ms}, {lease}")
    conditions: tuple[Condition, ...] = ()
    if flags & _CONDITIONED:
        conditions, at = _decode_conditions(data, at)
    operation: Operation
    if tag == _PUT:
        key, value, at = _key_value(data, at, key_bytes, value_bytes)
        operation = Put(key, value, conditions, bool(flags & _PREVIOUS), ttl_ms, lease, namespace)
    elif tag == _DELETE:
        key, _, at = _key_value(data, at, key_bytes, 0)
        operation = Delete(key, conditions, bool(flags & _PREVIOUS), namespace)
    elif tag == _CAS:
        expected = None
        if flags & _EXPECTED:
            (length,) = _LENGTH.unpack_from(data, at)
            expected, _, at = _key_value(data, at + _LENGTH.size, length, 0)
        key, value, at = _key_value(data, at, key_bytes, value_bytes)
        operation = CompareAndSwap(key, expected, value, ttl_ms, lease, namespace)
    elif tag == _INCREMENT_BY:
        delta, initial = _INCREMENT.unpack_from(data, at)
        key, _, at = _key_value(data, at + _INCREMENT.size, key_bytes, 0)
        operation = Increment(key, delta, initial, namespace)
    elif tag == _GET:
        key, _, at = _key_value(data, at, key_bytes, 0)
        operation = Get(key, namespace)
    elif tag == _SCAN_KEYS:
        limit, bytes_max = _SCAN.unpack_from(data, at)
        lo, hi, at = _key_value(data, at + _SCAN.size, key_bytes, value_bytes)
        if hi and not flags & _BOUNDED:
            raise MalformedBytes(f"scan before {at}: an end without the flag that announces it")
        bound = hi if flags & _BOUNDED else None
        keys_only, count_only = bool(flags & _KEYS_ONLY), bool(flags & _COUNT_ONLY)
        operation = Scan(lo, bound, limit, bytes_max, keys_only, count_only, namespace)
    elif tag == _TRANSACT:
        operation, at = _decode_transaction(data, at, conditions, namespace)
    elif tag == _PUT_MANY:
        operation, at = _decode_put_many(data, at)
    else:
        operation, at = _decode_system(data, at, tag)
    return operation, slot, stamp, at


def _key_value(data: bytes, at: int, key_bytes: int, value_bytes: int) -> tuple[bytes, bytes, int]:
    value_at = at + key_bytes
    end = value_at + value_bytes
    return data[at:value_at], data[value_at:end], end


def _decode_conditions(data: bytes, at: int) -> tuple[tuple[Condition, ...], int]:
    (count,) = _COUNT.unpack_from(data, at)
    at += _COUNT.size
    conditions: list[Condition] = []
    for _ in range(count):
        kind, comparison, key_bytes, value_bytes, number = _CONDITION.unpack_from(data, at)
        if kind not in _KINDS or comparison not in _COMPARISONS:
            raise MalformedBytes(f"condition at {at}: unknown kind {kind} or comparison {comparison}")
        key, value, at = _key_value(data, at + _CONDITION.size, key_bytes, value_bytes)
        conditions.append(Condition(key, _KINDS[kind], _COMPARISONS[comparison], number, value))
    if not conditions:
        raise MalformedBytes(f"conditions before {at} are announced, and none follows")
    return tuple(conditions), at


def _decode_put_many(data: bytes, at: int) -> tuple[PutMany, int]:
    (count,) = _LENGTH.unpack_from(data, at)
    at += _LENGTH.size
    if not count:
        raise MalformedBytes(f"many puts before {at} are announced, and none follows")
    key_lengths = unpack_from(f">{count}H", data, at)
    at += 2 * count
    value_lengths = unpack_from(f">{count}I", data, at)
    at += 4 * count
    ends = list(accumulate((*key_lengths, *value_lengths), initial=at))
    parts = [data[start:end] for start, end in pairwise(ends)]
    return PutMany(parts[:count], parts[count:]), ends[-1]


def _decode_transaction(
    data: bytes, at: int, conditions: tuple[Condition, ...], namespace: int
) -> tuple[Transaction, int]:
    then_count, otherwise_count = _TRANSACTION.unpack_from(data, at)
    at += _TRANSACTION.size
    operations: list[Put | Delete | CompareAndSwap | Increment | Get] = []
    for _ in range(then_count + otherwise_count):
        # The tag is looked at before it is decoded: a transaction inside a transaction must not recurse.
        if data[at] in _KEYLESS or data[at] == _SCAN_KEYS:
            raise MalformedBytes(f"operation at {at}: tag {data[at]} inside a transaction")
        inner, slot, stamp, end = _decode_operation(data, at)
        if slot != SHARD_WIDE or stamp is not None:
            raise MalformedBytes(f"operation at {at}: slot {slot} or stamp {stamp} inside a transaction")
        assert isinstance(inner, (Put, Delete, CompareAndSwap, Increment, Get)), type(inner)
        operations.append(inner)
        at = end
    then, otherwise = tuple(operations[:then_count]), tuple(operations[then_count:])
    return Transaction(conditions, then, otherwise, namespace), at


def _decode_system(data: bytes, at: int, tag: int) -> tuple[OpenSession | CloseSession | SetOwnership, int]:
    if tag == _OPEN:
        return OpenSession(), at
    if tag == _CLOSE:
        (session,) = _SESSION.unpack_from(data, at)
        return CloseSession(session), at + _SESSION.size
    assert tag == _OWN, f"tag {tag} has flags but no decoder"
    epoch, count = _OWNERSHIP.unpack_from(data, at)
    at += _OWNERSHIP.size
    ranges: list[tuple[Slot, Slot]] = []
    for _ in range(count):
        lo, hi = _RANGE.unpack_from(data, at)
        ranges.append((Slot(lo), Slot(hi)))
        at += _RANGE.size
    return SetOwnership(tuple(ranges), epoch), at


def _version_error(what: str, *, found: int, known: int) -> Exception:
    return newer(what, found=found, known=known) if found > known else MalformedBytes(f"{what} has version {found}")
