"""Latency against offered load: an open loop, which sends when it is time to, whatever comes back.

Rules of this file:
- a latency is counted from the time at which a request was meant to be sent, so that waiting for a slow server counts, whether
  the request waited there or here (no "coordinated omission");
- the times are those of independent callers: gaps are exponential, from a seed, the same for both systems;
- on the one connection at most `OUTSTANDING_MAX` are outstanding, as in the heaviest closed loop; what is due beyond waits;
- what became due is sent to the last, so no latency of an overload is left out. A curve ends with its first overload.

The loop is not uvloop's, whose timers know whole milliseconds only, but one on select(2), which knows microseconds.
"""

import asyncio
import random
import selectors
import time
from array import array
from collections.abc import Sequence

from benchmarks.figures import percentile
from benchmarks.loader import ANSWER_SECONDS_MAX, LoadResult, Requests, Target, UnaryLoad, connected, measured
from benchmarks.measurement import Measurement
from benchmarks.systems import System
from benchmarks.throughput import KEYS, SEED, Checked, Plan, fill, keys_of, random_requests, take, unary

OUTSTANDING_MAX = 256
TICK_SECONDS = 0.0001
"""Requests that fall due within it leave together."""
RATES = tuple(round(500 * 2 ** (step / 2)) for step in range(15))
"""A second: 500 to 64,000, each 1.4 times the one before."""
LATE_SHARE_MAX = 0.1
"""A load that takes so much longer than it was offered for is more than the system can do."""


class OpenLoad(UnaryLoad):
    """So many unary requests a second, for a time."""

    def __init__(self, requests: Requests, rate: float, *, outstanding_max: int = OUTSTANDING_MAX) -> None:
        super().__init__(requests, outstanding_max)
        self.late_us = array("q")
        """By how much each was sent too late, be it that this process was, or that too many were outstanding."""
        self._rate = rate
        self._dice = random.Random(SEED)
        self._due_ns = 0
        self._end_ns = 0

    async def run(self, seconds: float) -> LoadResult:
        """As `UnaryLoad.run`."""
        began_ns = time.perf_counter_ns()
        cpu = time.process_time()
        self.offer(began_ns, seconds)
        async with asyncio.timeout(seconds + ANSWER_SECONDS_MAX):
            while not self._sent_all():
                now_ns = time.perf_counter_ns()
                self.send_due(now_ns)
                for target in self.targets:
                    target.flush()
                await asyncio.sleep(max(TICK_SECONDS, (self._due_ns - now_ns) / 1e9))
            await self._done
        self.result.seconds = (time.perf_counter_ns() - began_ns) / 1e9
        self.result.loader_cpu_seconds = time.process_time() - cpu
        for target in self.targets:
            if target.lost is not None:
                raise target.lost
        return self.result

    def _go_on(self, target: Target, ended: int, now_ns: int) -> None:
        self.send_due(now_ns)

    def _sent_all(self) -> bool:
        return self._due_ns >= self._end_ns or any(target.lost is not None for target in self.targets)

    def offer(self, began_ns: int, seconds: float) -> None:
        """From then on requests fall due, for so long."""
        self._due_ns, self._end_ns = began_ns, began_ns + int(seconds * 1e9)

    def send_due(self, now_ns: int) -> None:
        """Sends what has fallen due, as far as there is room."""
        while self._due_ns <= now_ns and self._in_flight < self._outstanding and not self._sent_all():
            # What is noted as the time of sending is the time at which it was due.
            self._send(self._due_ns)
            self.late_us.append((now_ns - self._due_ns) // 1000)
            self._due_ns += int(self._dice.expovariate(self._rate) * 1e9)


def run_open(
    address: str, path: str, requests: Requests, *, rate: float, seconds: float
) -> tuple[LoadResult, "array[int]"]:
    """Offers `rate` requests a second, for `seconds`. Returns what came of it, and by how many microseconds each was late."""
    late_us = array("q")

    async def run() -> LoadResult:
        load = OpenLoad(requests, rate)
        result = await connected(load, [address], path, seconds)
        late_us.extend(load.late_us)
        return result

    result = measured(run(), lambda: asyncio.SelectorEventLoop(selectors.SelectSelector()))
    return result, late_us


def curve(system: System, plan: Plan, rates: Sequence[int] = RATES) -> None:
    """Puts and gets of random ones of 100,000 keys, at rising rates until the system cannot keep up."""
    keys = keys_of(KEYS)
    fill(system, keys)
    for operation in ("put", "get"):
        path = system.put_path if operation == "put" else system.get_path
        (_,), requests = random_requests(system, operation, keys)
        unary(system, plan, "", path, requests, OUTSTANDING_MAX, seconds=plan.warm_up_seconds)
        for rate in rates:
            measurement = _at(system, plan, operation, requests, rate)
            plan.record(measurement)
            if measurement.seconds > plan.seconds * (1 + LATE_SHARE_MAX):
                break


def _at(system: System, plan: Plan, operation: str, requests: Requests, rate: int) -> Measurement:
    load = f"{operation}, {rate:,} a second offered"
    measurement = Measurement(load, "open", system.name, 0, plan.run)
    with Checked(system, measurement) as checked:
        path = system.put_path if operation == "put" else system.get_path
        result, late_us = run_open(checked.leader, path, requests, rate=rate, seconds=plan.seconds)
        take(measurement, result)
        checked.writes = result.succeeded if operation == "put" else 0
    measurement.details["offered"] = rate
    measurement.details["sent_late_p99_us"] = percentile(sorted(late_us), 0.99)
    return measurement
