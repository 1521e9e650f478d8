"""From protobuf messages to the operations of the data model.

Rules of this file:
- only shapes are translated here; limits, reserved fields and slots are `kv.limits.check_operation`'s, so that every way
  into the node is held to the same;
- an enum value that this release does not know is refused, never taken for a default;
- each function takes one kind of message; those of `Operation` return what `Decoded` names.

Raises, throughout: `InvalidRequest`, definite.
"""

from collections.abc import Callable, Sequence
from typing import Any

from raftcache.errors import InvalidRequest
from raftcache.kv.operations import (
    CompareAndSwap,
    Comparison,
    Condition,
    ConditionKind,
    Delete,
    Get,
    Increment,
    Put,
    SessionStamp,
    Transaction,
    TransactionOperation,
)
from raftcache.node.api import Consistency
from raftcache.v1 import kv_pb2, types_pb2

Decodable = Get | Put | Delete | CompareAndSwap | Increment | Transaction


Decoded = tuple[Decodable, SessionStamp | None, Consistency, bool]
"""One operation with what goes beside it in a request: its stamp, its consistency, and whether it writes.

A plain tuple: a named one takes five times as long to make, and one is made for every operation.
"""

_LINEARIZABLE = Consistency.LINEARIZABLE

_CONSISTENCIES = {
    types_pb2.CONSISTENCY_UNSPECIFIED: Consistency.LINEARIZABLE,
    types_pb2.CONSISTENCY_LINEARIZABLE: Consistency.LINEARIZABLE,
    types_pb2.CONSISTENCY_STALE: Consistency.STALE,
}

_COMPARISONS = {
    types_pb2.COMPARISON_UNSPECIFIED: Comparison.EQUAL,
    types_pb2.COMPARISON_EQUAL: Comparison.EQUAL,
    types_pb2.COMPARISON_NOT_EQUAL: Comparison.NOT_EQUAL,
    types_pb2.COMPARISON_GREATER: Comparison.GREATER,
    types_pb2.COMPARISON_LESS: Comparison.LESS,
}

_NUMBERS = {
    "version": ConditionKind.VERSION,
    "mod_revision": ConditionKind.MOD_REVISION,
    "create_revision": ConditionKind.CREATE_REVISION,
}


def consistency_of(number: types_pb2.Consistency.ValueType) -> Consistency:
    """The consistency that a client named by its number."""
    found = _CONSISTENCIES.get(number)
    if found is None:
        raise InvalidRequest(f"consistency {number} is not known to this release", metadata={"field": "consistency"})
    return found


def stamp_of(stamp: types_pb2.SessionStamp) -> SessionStamp:
    """A session's stamp, as it came."""
    return SessionStamp(stamp.session, stamp.sequence, stamp.first_unacked)


def decode_get(message: kv_pb2.GetRequest) -> Decoded:
    """Of `Get`."""
    consistency = message.consistency
    return (
        Get(message.key, message.namespace),
        None,
        consistency_of(consistency) if consistency else _LINEARIZABLE,
        False,
    )


def decode_put(message: kv_pb2.PutRequest) -> Decoded:
    """Of `Put`."""
    key = message.key
    operation = Put(
        key,
        message.value,
        _conditions(message.conditions, key),
        message.return_previous,
        message.ttl_ms,
        message.lease,
        message.namespace,
    )
    return operation, stamp_of(message.stamp) if message.HasField("stamp") else None, _LINEARIZABLE, True


def decode_delete(message: kv_pb2.DeleteRequest) -> Decoded:
    """Of `Delete`."""
    key = message.key
    operation = Delete(key, _conditions(message.conditions, key), message.return_previous, message.namespace)
    return operation, stamp_of(message.stamp) if message.HasField("stamp") else None, _LINEARIZABLE, True


def decode_compare_and_swap(message: kv_pb2.CompareAndSwapRequest) -> Decoded:
    """Of `CompareAndSwap`."""
    operation = CompareAndSwap(
        message.key,
        message.expected if message.HasField("expected") else None,
        message.value,
        message.ttl_ms,
        message.lease,
        message.namespace,
    )
    return operation, stamp_of(message.stamp) if message.HasField("stamp") else None, _LINEARIZABLE, True


def decode_increment(message: kv_pb2.IncrementRequest) -> Decoded:
    """Of `Increment`."""
    delta = message.delta if message.HasField("delta") else 1
    operation = Increment(message.key, delta, message.initial, message.namespace)
    return operation, stamp_of(message.stamp) if message.HasField("stamp") else None, _LINEARIZABLE, True


def decode_transaction(message: kv_pb2.TransactionRequest) -> Decoded:
    """Of `Transaction`."""
    operation = Transaction(
        _conditions(message.conditions, b""),
        tuple(_inner(item, "then") for item in message.then),
        tuple(_inner(item, "otherwise") for item in message.otherwise),
        message.namespace,
    )
    return operation, stamp_of(message.stamp) if message.HasField("stamp") else None, _LINEARIZABLE, True


# Each entry takes the type of message that its name has in `Operation`, which a type of a dict cannot say.
DECODERS: dict[str, Callable[[Any], Decoded]] = {
    "get": decode_get,
    "put": decode_put,
    "delete": decode_delete,
    "compare_and_swap": decode_compare_and_swap,
    "increment": decode_increment,
    "transaction": decode_transaction,
}
"""By the field's name in `Operation`."""


def decode_item(message: kv_pb2.Operation) -> tuple[str, Decoded]:
    """One of many operations: the field's name, and what it holds."""
    name = message.WhichOneof("operation")
    if name is None:
        raise InvalidRequest(
            "the operation is empty, or of a kind that this release does not know", metadata={"field": "operation"}
        )
    return name, DECODERS[name](getattr(message, name))


def _inner(message: kv_pb2.Operation, branch: str) -> TransactionOperation:
    name, (operation, stamp, _, _) = decode_item(message)
    if isinstance(operation, Transaction):
        raise InvalidRequest("a transaction stands inside a transaction", metadata={"field": f"{branch}.transaction"})
    if stamp is not None:
        raise InvalidRequest(
            "an operation inside a transaction has a stamp: stamp the transaction",
            metadata={"field": f"{branch}.{name}.stamp"},
        )
    if name == "get" and message.get.consistency:
        raise InvalidRequest(
            "a read inside a transaction sees the transaction's own revision: leave `consistency` unset",
            metadata={"field": f"{branch}.get.consistency"},
        )
    return operation


def _conditions(messages: Sequence[types_pb2.Condition], own_key: bytes) -> tuple[Condition, ...]:
    return tuple([_condition(message, own_key) for message in messages]) if messages else ()


def _condition(message: types_pb2.Condition, own_key: bytes) -> Condition:
    key = message.key or own_key
    comparison = _COMPARISONS.get(message.comparison)
    if comparison is None:
        raise InvalidRequest(
            f"comparison {message.comparison} is not known to this release", metadata={"field": "conditions.comparison"}
        )
    name = message.WhichOneof("target")
    if name is None:
        raise InvalidRequest(
            "a condition compares nothing, or something that this release does not know: set one of exists, version, "
            "mod_revision, create_revision, value",
            metadata={"field": "conditions.target"},
        )
    if name == "exists":
        return Condition(key, ConditionKind.EXISTS if message.exists else ConditionKind.ABSENT)
    if name == "value":
        return Condition(key, ConditionKind.VALUE, comparison, value=message.value)
    return Condition(key, _NUMBERS[name], comparison, number=getattr(message, name))
