"""How calls are made with the client's own transport, by threads: one thread more, with an event loop, makes them all.

    caller's thread:  flow ─► SyncCall ─► inbox ─┐ (wakes the loop, unless somebody has)     ┌─► wait ─► flow
    loop's thread:                               └─► all calls of the inbox, one write ─► ... ┴ settle

Rules of this file:
- the thread starts with the first call and belongs to one process: a forked child has none, and makes its own transport;
- it ends with `close`, with the transport that nobody knows any more, or with the interpreter: nothing has to be closed for a
  program to end.
"""

import asyncio
import atexit
import concurrent.futures
import contextlib
import os
import time
import weakref
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any, TypeVar

from raftcache.client.errors import ClientClosed
from raftcache.client.failure import Failure, closed, lost
from raftcache.client.fast_async import FastAsyncStream, answer_of, context_of
from raftcache.client.fast_calls import SyncCall
from raftcache.client.fast_channel import FAREWELL_SECONDS, FastChannels
from raftcache.client.options import Options, Tls
from raftcache.client.steps import Call
from raftcache.clock import NS_PER_MS, SystemClock
from raftcache.v1 import kv_pb2

T = TypeVar("T")

GRACE_SECONDS = 5.0
"""After its deadline the loop settles a call. Should it not, because it is stuck, the caller does not wait for ever."""
JOIN_SECONDS = 5.0
GATHER_NS = 2 * NS_PER_MS
"""For other threads to call: some thirty do. One that computes does not let go for 5 ms, so it is waited for once."""


class FastTransport:
    """The channels of one process's client. Safe with threads."""

    def __init__(self, options: Options) -> None:
        self._tls = options.tls
        self._lock = Lock()
        self._thread: _LoopThread | None = None
        self._closed = False

    def call(self, call: Call) -> Any:
        """The answer's message, or a `Failure`."""
        thread = self._thread or self._started()
        if thread is None:
            return closed(sent=False)
        started = SyncCall(call)
        thread.start_call(started)
        return self._answer(thread, call, started)

    def together(self, calls: list[Call]) -> list[Any]:
        """As `call`, several at once."""
        thread = self._thread or self._started()
        if thread is None:
            return [closed(sent=False)] * len(calls)
        started = [SyncCall(call) for call in calls]
        for one in started:
            thread.start_call(one)
        return [self._answer(thread, call, one) for call, one in zip(calls, started, strict=True)]

    def open_stream(self, endpoint: str, requests: Iterator[kv_pb2.PipelineRequest]) -> "FastStream":
        """A pipeline."""
        thread = self._thread or self._started()
        if thread is None:
            raise ClientClosed("the client is closed")
        return FastStream(thread, endpoint, requests)

    def close(self) -> None:
        """Closes all connections; calls in flight end."""
        with self._lock:
            self._closed = True
            thread = self._thread
        if thread is not None:
            thread.close()

    def _started(self) -> "_LoopThread | None":
        """The thread; None if the client is closed. Raises: `ConfigError`."""
        with self._lock:
            if self._thread is None and not self._closed:
                self._thread = _LoopThread(self._tls)
                _threads.add(self._thread)
                weakref.finalize(self, self._thread.begin_to_close).atexit = False
            return self._thread

    def _answer(self, thread: "_LoopThread", call: Call, started: SyncCall) -> Any:
        try:
            outcome = started.wait(call.seconds + GRACE_SECONDS)
        except BaseException:
            # A signal's handler has raised, as Ctrl-C does.
            thread.do(lambda: thread.channels.abandon(started))
            raise
        if outcome is None:
            thread.do(lambda: thread.channels.abandon(started))
            outcome = lost(call.endpoint, "this client's own thread does not get to it")
        return answer_of(call, outcome)


_threads: "weakref.WeakSet[_LoopThread]" = weakref.WeakSet()


def _close_all() -> None:
    """At the interpreter's end: a thread that is cut off in the middle of its loop may take the process down with it."""
    for thread in list(_threads):
        thread.close()


atexit.register(_close_all)


class _LoopThread:
    """An event loop in a thread of its own. Knows nothing of the transport, so that it does not keep it alive."""

    def __init__(self, tls: Tls | None) -> None:
        context = context_of(tls)
        self._process_id = os.getpid()
        self.loop = asyncio.new_event_loop()
        self._clock = SystemClock()
        self.channels = FastChannels(self.loop, self._clock, context)
        self._inbox: deque[SyncCall] = deque()
        self._woken = False
        """The loop will look into the inbox."""
        self._called_together = 0
        """Calls that were in the inbox when it was last looked into."""
        self._awaited: set[concurrent.futures.Future[Any]] = set()
        """What threads wait for in `run`."""
        self._stopped = False
        """The loop runs no more, even where it still takes callbacks."""
        self._closing: asyncio.Task[None] | None = None
        self._thread = Thread(target=self._run, name="raftcache-client", daemon=True)
        self._thread.start()

    def start_call(self, call: SyncCall) -> None:
        """Hands a call to the loop."""
        self._inbox.append(call)
        if not self._woken:
            self._woken = True
            if not self.do(self._on_inbox):
                self._empty_inbox()

    def do(self, what: Callable[[], object]) -> bool:
        """Does something on the loop; false if that is closed."""
        try:
            self.loop.call_soon_threadsafe(what)
        except RuntimeError:
            return False
        return True

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine on the loop, and waits. Raises: `ClientClosed`."""
        try:
            future = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        except RuntimeError:
            coroutine.close()
            raise ClientClosed("the client is closed") from None
        self._awaited.add(future)
        try:
            if self._stopped:
                future.cancel()
            return future.result()
        except concurrent.futures.CancelledError:
            if self._stopped:
                coroutine.close()  # the loop took it, and may never have begun it
            raise ClientClosed("the client is closed") from None
        finally:
            self._awaited.discard(future)

    def close(self) -> None:
        """Ends calls, connections, loop and thread."""
        self.begin_to_close()
        if self._process_id == os.getpid():
            self._thread.join(FAREWELL_SECONDS + JOIN_SECONDS)

    def begin_to_close(self) -> None:
        """As `close`, without waiting: the collector calls this, in whatever thread it likes. Does nothing in a forked child, which
        has only the memory of the thread, and whose loop would write to the parent's."""
        if self._process_id == os.getpid():
            self.do(self._on_close)

    def _on_close(self) -> None:
        if self._closing is None:
            self._closing = self.loop.create_task(self.channels.close(), name="raftcache-close")
            self._closing.add_done_callback(lambda _: self.loop.stop())

    async def _end_tasks(self) -> None:
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        if others:
            await asyncio.wait(others, timeout=FAREWELL_SECONDS)

    def _on_inbox(self) -> None:
        inbox, start = self._inbox, self.channels.start
        if self._called_together > 1:
            self._gather()
        self._woken = False
        called = 0
        while inbox:
            start(inbox.popleft())
            called += 1
        if called:  # another look may have taken what this one was meant for
            self._called_together = called

    def _gather(self) -> None:
        """Threads that were answered together call again together, one after the other, as soon as this one lets go of the
        interpreter: so their calls leave in one write, and are one batch to the node."""
        seen, until_ns = 0, self._clock.monotonic_ns() + GATHER_NS
        while len(self._inbox) > seen and self._clock.monotonic_ns() < until_ns:
            seen = len(self._inbox)
            time.sleep(0)

    def _empty_inbox(self) -> None:
        """The loop is closed: what is in the inbox will never be sent."""
        self._woken = False  # whoever comes after this looks here by himself
        while self._inbox:
            with contextlib.suppress(IndexError):  # another thread may do the same
                self._inbox.popleft().settle(closed(sent=False))

    def _run(self) -> None:
        try:
            self.loop.run_forever()
            self.loop.run_until_complete(self._end_tasks())
        finally:
            self._stopped = True
            for future in list(self._awaited):
                future.cancel()
            self.loop.close()
            self._empty_inbox()


class FastStream:
    """One pipeline's stream: a thread sends what its requests yield, and whoever iterates it gets the responses."""

    def __init__(self, thread: _LoopThread, endpoint: str, requests: Iterator[kv_pb2.PipelineRequest]) -> None:
        self._thread = thread
        self._requests = requests
        self.failure: Failure | None = None
        self._responses: SimpleQueue[kv_pb2.PipelineResponse | None] = SimpleQueue()
        self._stream = thread.run(self._open(endpoint))
        Thread(target=self._write, name="raftcache-pipeline-writer", daemon=True).start()

    def __iter__(self) -> Iterator[kv_pb2.PipelineResponse]:
        while (response := self._responses.get()) is not None:
            yield response

    def cancel(self) -> None:
        """Ends it, from any thread."""
        self._thread.do(self._stream.cancel)

    async def _open(self, endpoint: str) -> FastAsyncStream:
        stream = FastAsyncStream(self._thread.channels, endpoint)
        self._reader = self._thread.loop.create_task(self._read(stream), name="raftcache-pipeline-reader")
        # Whatever becomes of it: a task that is cancelled before it has begun does nothing at all.
        self._reader.add_done_callback(lambda _: self._responses.put(None))
        return stream

    async def _read(self, stream: FastAsyncStream) -> None:
        try:
            while (response := await stream.read()) is not None:
                self._responses.put(response)
            self.failure = stream.failure
        except asyncio.CancelledError:
            self.failure = closed(sent=True)
            raise

    def _write(self) -> None:
        try:
            for request in self._requests:
                if not self._thread.run(self._stream.write(request)):
                    return
            self._thread.run(self._stream.end())
        except ClientClosed:
            return
