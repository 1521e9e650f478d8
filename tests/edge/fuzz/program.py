"""A fuzzer's input read as a program: each choice takes a byte or a few, and behind the end all choices are the first."""

from collections.abc import Sequence
from typing import TypeVar

Choice = TypeVar("Choice")


class Program:
    """Bytes that are taken from the front."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def more(self) -> bool:
        """Whether anything is left."""
        return self._at < len(self._data)

    def byte(self) -> int:
        """0 to 255."""
        if not self.more:
            return 0
        self._at += 1
        return self._data[self._at - 1]

    def flag(self) -> bool:
        """One bit of a byte."""
        return bool(self.byte() & 1)

    def choice(self, among: Sequence[Choice]) -> Choice:
        """One of up to 256."""
        return among[self.byte() % len(among)]

    def size(self, limit: int) -> int:
        """A number below `limit`: mostly small, and its edges often."""
        first = self.byte()
        if first < 0xC0:
            return min(first, limit - 1)
        if first >= 0xF0:
            return max(limit - 1 - (first - 0xF0), 0)
        return (self.byte() << 16 | self.byte() << 8 | self.byte()) % limit

    def take(self, count: int) -> bytes:
        """The next bytes, as far as there are any."""
        found = self._data[self._at : self._at + count]
        self._at += len(found)
        return found

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(len(self._data) - self._at)
