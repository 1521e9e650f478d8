"""Conditions of a transaction, written as comparisons:

    from raftcache import when

    rc.txn([when.version("{cart}.v") == 3, when.absent("{cart}.lock")], then=[...])

An absent key has version 0 and revisions 0; a comparison of its value is false. Values compare byte by byte.
"""

from dataclasses import dataclass

from raftcache.client.keys import encode_key, encode_value
from raftcache.v1 import types_pb2


@dataclass(frozen=True, slots=True)
class Condition:
    """One comparison on one key; made by the functions of this module."""

    key: bytes
    target: str
    """`exists`, `version`, `mod_revision`, `create_revision` or `value`."""
    comparison: str
    """`==`, `!=`, `>` or `<`."""
    operand: bool | int | bytes


_COMPARISONS = {
    "==": types_pb2.COMPARISON_EQUAL,
    "!=": types_pb2.COMPARISON_NOT_EQUAL,
    ">": types_pb2.COMPARISON_GREATER,
    "<": types_pb2.COMPARISON_LESS,
}


def fill_condition(message: types_pb2.Condition, condition: Condition) -> None:
    """Writes a condition into its message."""
    message.key = condition.key
    message.comparison = _COMPARISONS[condition.comparison]
    setattr(message, condition.target, condition.operand)


class _Number:
    """A number of a key, waiting to be compared."""

    __slots__ = ("_key", "_target")
    # What compares to a condition must not be a key of a dict by accident.
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, key: bytes, target: str) -> None:
        self._key = key
        self._target = target

    def __eq__(self, number: int) -> Condition:  # type: ignore[override]
        return Condition(self._key, self._target, "==", number)

    def __ne__(self, number: int) -> Condition:  # type: ignore[override]
        return Condition(self._key, self._target, "!=", number)

    def __gt__(self, number: int) -> Condition:
        return Condition(self._key, self._target, ">", number)

    def __lt__(self, number: int) -> Condition:
        return Condition(self._key, self._target, "<", number)


class _Value:
    """The value of a key, waiting to be compared."""

    __slots__ = ("_key",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, key: bytes) -> None:
        self._key = key

    def __eq__(self, value: bytes) -> Condition:  # type: ignore[override]
        return Condition(self._key, "value", "==", encode_value(value))

    def __ne__(self, value: bytes) -> Condition:  # type: ignore[override]
        return Condition(self._key, "value", "!=", encode_value(value))

    def __gt__(self, value: bytes) -> Condition:
        return Condition(self._key, "value", ">", encode_value(value))

    def __lt__(self, value: bytes) -> Condition:
        return Condition(self._key, "value", "<", encode_value(value))


def exists(key: str | bytes) -> Condition:
    """The key is there."""
    return Condition(encode_key(key), "exists", "==", True)


def absent(key: str | bytes) -> Condition:
    """The key is not there."""
    return Condition(encode_key(key), "exists", "==", False)


def version(key: str | bytes) -> _Number:
    """How often the key was written since it was created."""
    return _Number(encode_key(key), "version")


def revision(key: str | bytes) -> _Number:
    """The shard's revision at which the key was last written: `Entry.revision`."""
    return _Number(encode_key(key), "mod_revision")


def create_revision(key: str | bytes) -> _Number:
    """The shard's revision at which the key was created."""
    return _Number(encode_key(key), "create_revision")


def value(key: str | bytes) -> _Value:
    """The key's value, as bytes."""
    return _Value(encode_key(key))
