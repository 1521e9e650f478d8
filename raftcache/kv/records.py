"""The ordered records that a state machine lives on: what it asks for, and the simulator's implementation in memory.

Rules of this file:
- keys and values are `bytes`, ordered as `bytes` compare; ranges are half-open `[lo, hi)`, `hi=None` is the end;
- a caller's own writes are visible to it at once; nothing is durable until the *owner* of the records commits;
- nobody writes while a scan is being consumed.

LMDB implements `Records` in `storage/`. `MemoryRecords` has the same unit of atomicity: `rollback` goes back to the
last `commit`, as an environment does whose process died.
"""

from bisect import bisect_left
from collections.abc import Iterator
from typing import Protocol


class Records(Protocol):
    """What the state machine needs of its records."""

    def get(self, key: bytes) -> bytes | None: ...
    def put(self, key: bytes, value: bytes) -> None: ...
    def delete(self, key: bytes) -> bool: ...
    def scan(self, lo: bytes, hi: bytes | None) -> Iterator[tuple[bytes, bytes]]: ...


class MemoryRecords:
    """Records in a dict; the order is made up when somebody scans.

    Puts and deletes are constant time. A scan after a put of a *new* key or a delete sorts all keys again, which is
    cheap for the simulator's thousands and wrong for millions.
    """

    def __init__(self, contents: dict[bytes, bytes] | None = None) -> None:
        self._data: dict[bytes, bytes] = {} if contents is None else dict(contents)
        self._order: list[bytes] | None = None
        """The keys in order, or None where a key came or went since it was made."""
        self._undo: dict[bytes, bytes | None] = {}
        """Per key written since the last commit: what was there then. Bounded by the keys written in between."""

    def __len__(self) -> int:
        return len(self._data)

    def get(self, key: bytes) -> bytes | None:
        return self._data.get(key)

    def put(self, key: bytes, value: bytes) -> None:
        old = self._data.get(key)
        if key not in self._undo:
            self._undo[key] = old
        if old is None:
            self._order = None
        self._data[key] = value

    def delete(self, key: bytes) -> bool:
        old = self._data.pop(key, None)
        if old is None:
            return False
        if key not in self._undo:
            self._undo[key] = old
        self._order = None
        return True

    def scan(self, lo: bytes, hi: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        if self._order is None:
            self._order = sorted(self._data)
        order = self._order
        stop = len(order) if hi is None else bisect_left(order, hi)
        for at in range(bisect_left(order, lo), stop):
            yield order[at], self._data[order[at]]

    def commit(self) -> None:
        """From here on, `rollback` comes back to this state."""
        self._undo.clear()

    def rollback(self) -> None:
        """Back to the last commit (or to the beginning)."""
        for key, value in self._undo.items():
            if value is None:
                self._data.pop(key, None)
            else:
                self._data[key] = value
        self._undo.clear()
        self._order = None

    def copy(self) -> "MemoryRecords":
        """An independent copy of what is visible now, all of it committed: a checkpoint, in the simulator."""
        return MemoryRecords(self._data)
