"""The one place that reads a clock.

Rules of this file:
- everything above takes a `Clock` and never asks the operating system for the time (a test of the project holds this);
- `monotonic_ns` is for deadlines, timeouts and durations: it never goes back and means nothing on another machine;
- `wall_ms` is for what people read and for what a leader proposes as the shard's time. It may jump either way, so nothing
  may be decided by the difference of two of its readings.
"""

import time
from typing import Protocol

NS_PER_MS = 1_000_000
NS_PER_SECOND = 1_000_000_000


class Clock(Protocol):
    """What the node knows of time. Implemented by `SystemClock`, and by `ManualClock` in tests and in the simulator."""

    def monotonic_ns(self) -> int:
        """Nanoseconds since a point that is fixed while the process lives. Never decreases."""
        ...

    def wall_ms(self) -> int:
        """Milliseconds since 1970-01-01 UTC, as this machine believes. May jump forward and back."""
        ...


class SystemClock:
    """The operating system's clocks."""

    __slots__ = ()

    def monotonic_ns(self) -> int:
        return time.monotonic_ns()

    def wall_ms(self) -> int:
        return time.time_ns() // NS_PER_MS


class ManualClock:
    """A clock that moves only when told to; both of its hands can be moved together or apart."""

    __slots__ = ("_monotonic_ns", "_wall_ns")

    def __init__(self, *, monotonic_ns: int = 0, wall_ms: int = 1_700_000_000_000) -> None:
        assert monotonic_ns >= 0, monotonic_ns
        self._monotonic_ns = monotonic_ns
        # Kept in nanoseconds, so that a thousand advances of 1 us add up to 1 ms.
        self._wall_ns = wall_ms * NS_PER_MS

    def monotonic_ns(self) -> int:
        return self._monotonic_ns

    def wall_ms(self) -> int:
        return self._wall_ns // NS_PER_MS

    def advance_ns(self, duration_ns: int) -> None:
        """Time passes: both hands move."""
        assert duration_ns >= 0, f"monotonic time does not go back: {duration_ns}"
        self._monotonic_ns += duration_ns
        self._wall_ns += duration_ns

    def advance_ms(self, duration_ms: int) -> None:
        """Time passes: both hands move."""
        self.advance_ns(duration_ms * NS_PER_MS)

    def jump_wall_ms(self, difference_ms: int) -> None:
        """Somebody set the wall clock: it alone moves, forward or back."""
        self._wall_ns += difference_ms * NS_PER_MS
