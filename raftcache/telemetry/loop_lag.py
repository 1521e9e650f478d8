"""How late the event loop is: the one number that explains most missed heartbeats of a Python server.

A timer asks to run every 50 ms and notes by how much it came too late. Caveat: a stall is seen only when it is over; a loop
that never returns is found by the supervisor's watchdog, not here.
"""

import asyncio
from collections.abc import Callable
from typing import Protocol

from raftcache.telemetry.metrics import NS_PER_SECOND

INTERVAL_SECONDS = 0.05
"""Half a tick: no stall that delays one falls between two probes. 20 timers a second cost nothing."""


class Lags(Protocol):
    """What takes the lags: a `Tally`, say."""

    def observe(self, amount: float, /) -> None:
        """One more, in seconds."""
        ...


class LoopLag:
    """Measures the running loop from `start` to `stop`."""

    __slots__ = ("_due_ns", "_handle", "_lags", "_monotonic_ns", "_on_stall", "_stall_ns")

    def __init__(
        self,
        lags: Lags,
        monotonic_ns: Callable[[], int],
        *,
        stall_ns: int = NS_PER_SECOND,
        on_stall: Callable[[int], None] | None = None,
    ) -> None:
        """`on_stall` is told every lag of `stall_ns` or more, in nanoseconds."""
        self._lags = lags
        self._monotonic_ns = monotonic_ns
        self._stall_ns = stall_ns
        self._on_stall = on_stall
        self._due_ns = 0
        self._handle: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin; needs a running loop."""
        assert self._handle is None, "started twice"
        self._arm()

    def stop(self) -> None:
        """End; may be called twice."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _arm(self) -> None:
        self._due_ns = self._monotonic_ns() + int(INTERVAL_SECONDS * NS_PER_SECOND)
        self._handle = asyncio.get_running_loop().call_later(INTERVAL_SECONDS, self._probe)

    def _probe(self) -> None:
        # A loop may run a timer up to its clock's resolution early.
        lag_ns = max(0, self._monotonic_ns() - self._due_ns)
        self._lags.observe(lag_ns / NS_PER_SECOND)
        if lag_ns >= self._stall_ns and self._on_stall is not None:
            self._on_stall(lag_ns)
        self._arm()
