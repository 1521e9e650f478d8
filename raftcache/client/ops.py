"""Operations as values, for `batch` and `txn`; the client's own methods make the same ones.

    from raftcache import ops

    rc.batch([ops.put("a", b"1"), ops.get("b"), ops.incr("hits")])

An operation knows its protobuf message, where it goes and how its answer is read. It is not changed by being sent, so one
may be used many times.
"""

from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from raftcache.client.errors import ConditionFailed
from raftcache.client.keys import encode_key, encode_value
from raftcache.client.results import CasResult, DeleteResult, Entry, OperationValue, PutResult, TxnResult
from raftcache.client.when import Condition, fill_condition
from raftcache.errors import InvalidRequest, error_of
from raftcache.kv.slots import slot_of
from raftcache.v1 import kv_pb2, shard_map_pb2, types_pb2

T_co = TypeVar("T_co", covariant=True)

SERVICE = "raftcache.v1.KvService"


class Method(NamedTuple):
    """One unary method of the service."""

    path: str
    parse: Callable[[bytes], Any]
    """From the answer's bytes."""


class Kind(NamedTuple):
    """One kind of operation."""

    field: str
    """Its name in `Operation` and `OperationResult`."""
    method: Method
    writes: bool
    read: Callable[[Any, bytes], Any]
    """From the answer's message, and the key, to what the caller gets."""


class Operation(Generic[T_co]):
    """One operation; made by the functions of this module."""

    __slots__ = ("keys", "kind", "message", "size", "slot")

    def __init__(self, kind: Kind, message: Any, keys: tuple[bytes, ...], size: int) -> None:
        self.kind = kind
        self.message = message
        self.keys = keys
        """All keys it names, the first of which decides its slot."""
        self.slot: int = slot_of(keys[0])
        self.size = size
        """Bytes of keys and values."""

    def result_of(self, response: Any) -> T_co:
        """What the caller gets. Raises: `ConditionFailed`."""
        result: T_co = self.kind.read(response, self.keys[0])
        return result

    def __repr__(self) -> str:
        shown = ", ".join(repr(key) for key in self.keys[:3])
        return f"<{self.kind.field} {shown}{', ...' if len(self.keys) > 3 else ''}>"


# --- The operations -------------------------------------------------------------------------------------------------


def get(key: str | bytes) -> Operation[Entry | None]:
    """Reads a key: its entry, or None where it is absent."""
    data = encode_key(key)
    return Operation(GET, kv_pb2.GetRequest(key=data), (data,), len(data))


def put(
    key: str | bytes,
    value: bytes,
    *,
    if_absent: bool = False,
    if_exists: bool = False,
    if_version: int | None = None,
    if_revision: int | None = None,
    return_previous: bool = False,
) -> Operation[PutResult]:
    """Writes a key if all conditions hold, else `ConditionFailed`."""
    data, content = encode_key(key), encode_value(value)
    message = kv_pb2.PutRequest(key=data, value=content)
    if return_previous:
        message.return_previous = True
    if if_absent or if_exists or if_version is not None or if_revision is not None:
        _fill_own(message.conditions.add, if_absent, if_exists, if_version, if_revision)
    return Operation(PUT, message, (data,), len(data) + len(content))


def delete(
    key: str | bytes,
    *,
    if_absent: bool = False,
    if_exists: bool = False,
    if_version: int | None = None,
    if_revision: int | None = None,
    return_previous: bool = False,
) -> Operation[DeleteResult]:
    """Removes a key if all conditions hold, else `ConditionFailed`."""
    data = encode_key(key)
    message = kv_pb2.DeleteRequest(key=data)
    if return_previous:
        message.return_previous = True
    if if_absent or if_exists or if_version is not None or if_revision is not None:
        _fill_own(message.conditions.add, if_absent, if_exists, if_version, if_revision)
    return Operation(DELETE, message, (data,), len(data))


def cas(key: str | bytes, expected: bytes | None, value: bytes) -> Operation[CasResult]:
    """Writes a key if its value is `expected`; None expects it to be absent."""
    data, content = encode_key(key), encode_value(value)
    message = kv_pb2.CompareAndSwapRequest(key=data, value=content)
    size = len(data) + len(content)
    if expected is not None:
        message.expected = encode_value(expected)
        size += len(message.expected)
    return Operation(CAS, message, (data,), size)


def incr(key: str | bytes, delta: int = 1, *, initial: int = 0) -> Operation[int]:
    """Adds to the signed 64-bit number at a key, which counts as `initial` where absent; the number after it."""
    data = encode_key(key)
    return Operation(INCR, kv_pb2.IncrementRequest(key=data, delta=delta, initial=initial), (data,), len(data) + 16)


def txn(
    conditions: Sequence[Condition] = (),
    then: Sequence[Operation[Any]] = (),
    otherwise: Sequence[Operation[Any]] = (),
) -> Operation[TxnResult]:
    """If all conditions hold runs `then`, else `otherwise`, atomically. All keys lie in one slot: give them a common `{tag}`."""
    message = kv_pb2.TransactionRequest()
    keys: dict[bytes, None] = {}
    size = 0
    for condition in conditions:
        fill_condition(message.conditions.add(), condition)
        keys[condition.key] = None
        size += len(condition.key) + (len(condition.operand) if isinstance(condition.operand, bytes) else 8)
    for branch, operations in ((message.then, then), (message.otherwise, otherwise)):
        for operation in operations:
            if operation.kind is TXN:
                raise InvalidRequest("a transaction stands inside a transaction")
            fill_operation(branch.add(), operation)
            keys.update(dict.fromkeys(operation.keys))
            size += operation.size
    if not keys:
        raise InvalidRequest("the transaction has neither conditions nor operations")
    return Operation(TXN, message, tuple(keys), size)


def fill_operation(message: kv_pb2.Operation, operation: Operation[Any]) -> Any:
    """Copies an operation into one of many; returns the copy, so that it can be stamped."""
    copy = getattr(message, operation.kind.field)
    copy.CopyFrom(operation.message)
    return copy


def _fill_own(
    add: Callable[[], types_pb2.Condition],
    if_absent: bool,
    if_exists: bool,
    if_version: int | None,
    if_revision: int | None,
) -> None:
    """Conditions on the key of the operation itself."""
    if if_absent or if_exists:
        if if_absent and if_exists:
            raise InvalidRequest("if_absent and if_exists cannot both hold")
        add().exists = if_exists
    if if_version is not None:
        add().version = if_version
    if if_revision is not None:
        add().mod_revision = if_revision


# --- Their answers --------------------------------------------------------------------------------------------------


def entry_of(message: types_pb2.KeyEntry, age: float = 0.0) -> Entry:
    """A key as the answer tells it."""
    return Entry(message.key, message.value, message.version, message.mod_revision, message.create_revision, age)


def _read_get(response: kv_pb2.GetResponse, _: bytes) -> Entry | None:
    if not response.HasField("entry"):
        return None
    age_ms = response.header.age_ms
    return entry_of(response.entry, age_ms / 1000 if age_ms else 0.0)


def _read_put(response: kv_pb2.PutResponse, key: bytes) -> PutResult:
    header = response.header
    if not response.succeeded:
        raise _condition_failed(response, key)
    previous = entry_of(response.previous) if response.HasField("previous") else None
    return PutResult(header.revision, header.shard, previous)


def _read_delete(response: kv_pb2.DeleteResponse, key: bytes) -> DeleteResult:
    header = response.header
    if not response.succeeded:
        raise _condition_failed(response, key)
    previous = entry_of(response.previous) if response.HasField("previous") else None
    return DeleteResult(response.deleted, header.revision, header.shard, previous)


def _condition_failed(response: kv_pb2.PutResponse | kv_pb2.DeleteResponse, key: bytes) -> ConditionFailed:
    current = entry_of(response.current) if response.HasField("current") else None
    stored = f"it has version {current.version}, revision {current.revision}" if current else "it is absent"
    error = ConditionFailed(f"a condition on {key!r} does not hold: {stored}; nothing was changed", current=current)
    error.shard = response.header.shard
    return error


def _read_cas(response: kv_pb2.CompareAndSwapResponse, _: bytes) -> CasResult:
    current = entry_of(response.current) if response.HasField("current") else None
    return CasResult(response.succeeded, current, response.header.revision, response.header.shard)


def _read_incr(response: kv_pb2.IncrementResponse, _: bytes) -> int:
    return response.value


def _read_txn(response: kv_pb2.TransactionResponse, _: bytes) -> TxnResult:
    results: list[OperationValue] = []
    for item in response.results:
        name = item.WhichOneof("result")
        if name == "error" or name is None:
            raise error_of(item.error.reason, item.error.message, dict(item.error.metadata))
        # Results inside a transaction have no headers: they share the transaction's.
        inner = getattr(item, name)
        inner.header.CopyFrom(response.header)
        results.append(KINDS[name].read(inner, b""))
    header = response.header
    return TxnResult(response.succeeded, tuple(results), header.revision, header.shard)


def method_of(name: str, response: Any) -> Method:
    """A unary method of the service, by its name and the class of its answer."""
    return Method(f"/{SERVICE}/{name}", response.FromString)


GET = Kind("get", method_of("Get", kv_pb2.GetResponse), False, _read_get)
PUT = Kind("put", method_of("Put", kv_pb2.PutResponse), True, _read_put)
DELETE = Kind("delete", method_of("Delete", kv_pb2.DeleteResponse), True, _read_delete)
CAS = Kind("compare_and_swap", method_of("CompareAndSwap", kv_pb2.CompareAndSwapResponse), True, _read_cas)
INCR = Kind("increment", method_of("Increment", kv_pb2.IncrementResponse), True, _read_incr)
TXN = Kind("transaction", method_of("Transaction", kv_pb2.TransactionResponse), True, _read_txn)

KINDS = {kind.field: kind for kind in (GET, PUT, DELETE, CAS, INCR, TXN)}

SCAN = method_of("Scan", kv_pb2.ScanResponse)
BATCH = method_of("Batch", kv_pb2.BatchResponse)
OPEN_SESSION = method_of("OpenSession", kv_pb2.OpenSessionResponse)
CLOSE_SESSION = method_of("CloseSession", kv_pb2.CloseSessionResponse)
SHARD_MAP = method_of("ShardMap", shard_map_pb2.ShardMapResponse)
PIPELINE_PATH = f"/{SERVICE}/Pipeline"
