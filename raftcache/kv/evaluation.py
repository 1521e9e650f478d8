"""What an operation would do: conditions, branches and numbers, evaluated without writing anything.

Rules of this file:
- pure: it reads through the function it is given and collects writes in a dict; `machine.py` makes them afterwards.
  Therefore every check comes before the first write, and whatever is refused has changed nothing;
- a refusal is an `InvalidRequest`, and depends on the command and the state alone;
- within a branch an operation sees the writes of those before it.
"""

from collections.abc import Callable
from typing import TypeVar, assert_never

from raftcache.errors import BatchTooLarge, InvalidRequest
from raftcache.ids import Revision
from raftcache.kv.limits import INTEGER_MAX, INTEGER_MIN, TRANSACTION_REPLY_BYTES_CEILING, shown
from raftcache.kv.operations import (
    CompareAndSwap,
    Comparison,
    Condition,
    ConditionKind,
    Delete,
    Get,
    GetResult,
    Increment,
    IncrementResult,
    KeyEntry,
    Put,
    Transaction,
    TransactionOperation,
    TransactionResult,
    WriteResult,
    value_bytes,
)

_Comparable = TypeVar("_Comparable", int, bytes)

OperationResult = GetResult | WriteResult | IncrementResult

INTEGER_DIGITS_MAX = len(str(INTEGER_MIN))


class Evaluation:
    """Operations evaluated against the state and their own writes. One command, one evaluation, one revision."""

    def __init__(self, read: Callable[[bytes], KeyEntry | None], *, revision: Revision) -> None:
        self._read = read
        self._revision = revision
        """What the command's writes will carry, if there are any: the shard's revision plus 1."""
        self.writes: dict[bytes, KeyEntry | None] = {}
        """Key -> what it is to be; None = deleted. In the order of the operations."""
        self._seen: dict[bytes, KeyEntry | None] = {}
        """What was read, and then written: own writes are seen, and no record is read twice."""

    @property
    def revision_after(self) -> Revision:
        """The shard's revision after the command: one more if it writes anything."""
        return self._revision if self.writes else Revision(self._revision - 1)

    def run(self, operation: Put | Delete | CompareAndSwap | Increment) -> OperationResult:
        """Evaluate one write by itself. Raises: `InvalidRequest`; nothing may be written then."""
        result = self._evaluate(operation)
        result.revision = self.revision_after
        return result

    def run_transaction(self, transaction: Transaction) -> TransactionResult:
        """Evaluate a transaction. Raises: `InvalidRequest`; nothing may be written then."""
        succeeded = all(self.holds(condition) for condition in transaction.conditions)
        results: list[OperationResult] = []
        reply_bytes = 0
        for operation in transaction.then if succeeded else transaction.otherwise:
            result = self._evaluate(operation)
            reply_bytes += value_bytes(result)
            if reply_bytes > TRANSACTION_REPLY_BYTES_CEILING:
                raise BatchTooLarge(
                    f"the transaction's results have more than {TRANSACTION_REPLY_BYTES_CEILING} bytes; read less in it"
                )
            results.append(result)
        # All of it happens at one revision, and only now is it known whether that is a new one.
        for result in results:
            result.revision = self.revision_after
        return TransactionResult(self.revision_after, succeeded, list(results))

    def holds(self, condition: Condition) -> bool:
        """Whether one condition is true of the state (and own writes)."""
        entry = self._entry(condition.key)
        match condition.kind:
            case ConditionKind.ABSENT:
                return entry is None
            case ConditionKind.EXISTS:
                return entry is not None
            case ConditionKind.VERSION:
                return _compare(entry.version if entry else 0, condition.comparison, condition.number)
            case ConditionKind.MOD_REVISION:
                return _compare(entry.mod_revision if entry else 0, condition.comparison, condition.number)
            case ConditionKind.CREATE_REVISION:
                return _compare(entry.create_revision if entry else 0, condition.comparison, condition.number)
            case ConditionKind.VALUE:
                # As in etcd: an absent key has no value, and every comparison with it is false, NOT_EQUAL too.
                return entry is not None and _compare(entry.value, condition.comparison, condition.value)
            case _:
                assert_never(condition.kind)

    def _entry(self, key: bytes) -> KeyEntry | None:
        if key in self._seen:
            return self._seen[key]
        entry = self._seen[key] = self._read(key)
        return entry

    def _evaluate(self, operation: TransactionOperation) -> OperationResult:
        key = operation.key
        entry = self._entry(key)
        match operation:
            case Get():
                return GetResult(self._revision, entry)
            case Put():
                if operation.conditions and not all(self.holds(condition) for condition in operation.conditions):
                    return WriteResult(self._revision, False, None, entry)
                self._set(key, operation.value, entry)
                return WriteResult(self._revision, True, entry if operation.return_previous else None)
            case Delete():
                if operation.conditions and not all(self.holds(condition) for condition in operation.conditions):
                    return WriteResult(self._revision, False, None, entry)
                if entry is None:
                    return WriteResult(self._revision)
                self.writes[key] = self._seen[key] = None
                return WriteResult(self._revision, True, entry if operation.return_previous else None, None, True)
            case CompareAndSwap():
                if (None if entry is None else entry.value) != operation.expected:
                    return WriteResult(self._revision, False, None, entry)
                self._set(key, operation.value, entry)
                return WriteResult(self._revision)
            case Increment():
                number = operation.initial if entry is None else number_of(entry)
                number += operation.delta
                if not INTEGER_MIN <= number <= INTEGER_MAX:
                    raise InvalidRequest(
                        f"adding {operation.delta} to {shown(key)} gives {number}, which is no signed 64-bit number; "
                        f"nothing was changed"
                    )
                self._set(key, b"%d" % number, entry)
                return IncrementResult(self._revision, number)
            case _:
                assert_never(operation)

    def _set(self, key: bytes, value: bytes, before: KeyEntry | None) -> None:
        revision = self._revision
        if before is None:
            entry = KeyEntry(key, value, 1, revision, revision)
        else:
            entry = KeyEntry(key, value, before.version + 1, before.create_revision, revision)
        self.writes[key] = self._seen[key] = entry


def number_of(entry: KeyEntry) -> int:
    """The signed 64-bit number that an entry holds, in plain decimal ASCII. Raises: `InvalidRequest`.

    Only the form that `Increment` itself writes: no plus, no leading zero, no space.
    """
    value = entry.value
    if len(value) <= INTEGER_DIGITS_MAX:
        try:
            number = int(value)
        except ValueError:
            pass
        else:
            # `int` takes more than we do ("+1", "1_0", " 1"): what it made of the bytes must be what the bytes say.
            if b"%d" % number == value and INTEGER_MIN <= number <= INTEGER_MAX:
                return number
    raise InvalidRequest(
        f"the value of {shown(entry.key)} ({len(value)} bytes) is no signed 64-bit number in decimal; nothing was changed"
    )


def _compare(actual: _Comparable, comparison: Comparison, wanted: _Comparable) -> bool:
    match comparison:
        case Comparison.EQUAL:
            return actual == wanted
        case Comparison.NOT_EQUAL:
            return actual != wanted
        case Comparison.GREATER:
            return actual > wanted
        case Comparison.LESS:
            return actual < wanted
        case _:
            assert_never(comparison)
