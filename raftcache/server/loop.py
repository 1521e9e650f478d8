"""The engine on an asyncio loop: soon, later, off the loop, and the tick.

Rules of this file:
- one worker thread does what must not hold the loop up (a slow fdatasync, allocating ahead), one thing after the other;
- what leaves the engine's turn as an exception is no replica's doing (the engine supervises those): it ends the process.
  An event loop would only log it, and go on with an engine that has lost what it was about to make durable;
- a tick that comes late is one tick, however late: time that the process slept through (a stopped process, a stalled
  disk) must not be made up for in one go, or a leader that was merely paused would be voted out by its own followers' clocks.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from raftcache.clock import NS_PER_SECOND, Clock


class LoopScheduler:
    """Implements the engine's `Scheduler` on the running loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, on_error: Callable[[BaseException], None]) -> None:
        self._loop = loop
        self._on_error = on_error
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="raftcache-sync")

    def call_soon(self, function: Callable[[], None]) -> None:
        """Runs `function` in the loop's next round."""
        self._loop.call_soon(self.guarded, function)

    def guarded(self, function: Callable[[], None]) -> None:
        """Runs `function`; see the module on what it raises."""
        try:
            function()
        except Exception as error:  # noqa: BLE001 - the supervisor of the process
            self._on_error(error)

    def run_blocking(self, work: Callable[[], None], done: Callable[[], None]) -> None:
        """Runs `work` in the worker thread, then `done` on the loop."""

        def finished(future: Future[None]) -> None:
            error = future.exception()
            if error is None:
                self.guarded(done)
            else:
                self._on_error(error)

        future = self._worker.submit(work)
        future.add_done_callback(lambda done_future: self._loop.call_soon_threadsafe(finished, done_future))

    def wait(self) -> None:
        """Returns when all work that was given to the thread has ended."""
        self._worker.submit(lambda: None).result()

    def close(self) -> None:
        """Ends the thread."""
        self._worker.shutdown(wait=True)


class Ticker:
    """Calls `tick` every `interval_ns`; see the module on late ticks."""

    def __init__(self, clock: Clock, interval_ns: int, tick: Callable[[], None]) -> None:
        self._clock = clock
        self._interval_ns = interval_ns
        self._tick = tick
        self._due_ns = 0
        self._handle: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begins; needs a running loop."""
        assert self._handle is None, "started twice"
        self._due_ns = self._clock.monotonic_ns()
        self._arm()

    def stop(self) -> None:
        """Ends; may be called twice."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _arm(self) -> None:
        now_ns = self._clock.monotonic_ns()
        self._due_ns = max(self._due_ns + self._interval_ns, now_ns)
        delay = (self._due_ns - now_ns) / NS_PER_SECOND
        self._handle = asyncio.get_running_loop().call_later(delay, self._run)

    def _run(self) -> None:
        self._arm()
        self._tick()
