"""The lag of the event loop."""

import asyncio

from raftcache.clock import ManualClock
from raftcache.telemetry.loop_lag import INTERVAL_SECONDS, LoopLag
from raftcache.telemetry.metrics import NS_PER_SECOND


class Observed:
    """A histogram that keeps what it is told, and says so."""

    def __init__(self) -> None:
        self.amounts: list[float] = []
        self.told = asyncio.Event()

    def observe(self, amount: float) -> None:
        self.amounts.append(amount)
        self.told.set()


async def test_a_late_timer_is_observed_as_lag_and_a_long_one_as_a_stall() -> None:
    """The clock decides, so that the test does not depend on how busy the machine is."""
    clock = ManualClock()
    observed = Observed()
    stalls: list[int] = []
    lag = LoopLag(observed, clock.monotonic_ns, on_stall=stalls.append)
    lag.start()
    clock.advance_ns(int(INTERVAL_SECONDS * NS_PER_SECOND) + 2 * NS_PER_SECOND)
    await observed.told.wait()
    observed.told.clear()
    # The clock stands still: the next probe is early, which is no lag.
    await observed.told.wait()
    lag.stop()
    lag.stop()
    assert [2.0, 0.0] == observed.amounts[:2]
    assert [2 * NS_PER_SECOND] == stalls
