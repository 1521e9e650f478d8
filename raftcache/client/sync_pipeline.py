"""A pipeline for threads: one stream, written by the transport's thread, read by one of ours.

Caveat: while the writing thread is blocked on a node that stopped reading, nobody looks at the time unless the user does; the
connection's keepalive ends a stream to a node that is gone after some 25 s.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from threading import Condition, Thread
from types import TracebackType
from typing import Any, Self, TypeVar

from raftcache.client import ops
from raftcache.client.errors import ClientClosed
from raftcache.client.flows import ping
from raftcache.client.ops import Operation
from raftcache.client.results import CasResult, DeleteResult, Entry, PutResult, TxnResult
from raftcache.client.stream import GRACE_SECONDS, Settled, StreamState
from raftcache.client.sync_driver import SyncDriver, SyncStream
from raftcache.client.when import Condition as WhenCondition
from raftcache.v1 import kv_pb2

T = TypeVar("T")


class Pipeline:
    """Many operations in flight at once on one stream; made by `Client.pipeline`.

        with rc.pipeline() as p:
            put, get = p.put("a", b"1"), p.get("a")
        print(get.result())

    Each method enqueues an operation and returns a future of what the client's method of that name would return or raise. It
    waits while `window` operations are unanswered. Operations on one key take effect in the order in which they were enqueued.

    Nothing is repeated: when the stream breaks, writes without an answer fail with `AmbiguousResult`. Leaving the block waits
    for all answers; leaving it by an exception does not. Safe with threads.
    """

    def __init__(self, driver: SyncDriver, timeout: float, window: int) -> None:
        self._driver = driver
        self._timeout = timeout
        self._window = window
        self._changed = Condition()
        """Guards the state; notified whenever it changed."""
        self._state: StreamState[Future[Any]] | None = None
        self._call: SyncStream | None = None
        self._reader: Thread | None = None

    def __enter__(self) -> Self:
        # A stream to a node that is not there would fail at the first operation. This one answered just now.
        endpoint = self._driver.run(ping(self._driver.core, self._timeout)).address
        self._state = StreamState(endpoint, self._timeout, self._window, self._driver.core.clock)
        self._call = self._driver.transport.open_stream(endpoint, self._requests(self._state))
        self._reader = Thread(
            target=self._read, args=(self._state, self._call), name="raftcache-pipeline-reader", daemon=True
        )
        self._reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        state, reader, call = self._state, self._reader, self._call
        assert state is not None
        assert reader is not None
        assert call is not None
        try:
            with self._changed:
                state.closing = True
                self._changed.notify_all()
                while kind is None and not state.finished():
                    self._wait(state)
        finally:
            if state.finished():
                # Everything was answered; the node has the stream's end still to confirm.
                reader.join(GRACE_SECONDS)
            call.cancel()
            reader.join()

    def get(self, key: str | bytes) -> "Future[Entry | None]":
        """See `Client.get`."""
        return self._enqueue(ops.get(key))

    def put(
        self,
        key: str | bytes,
        value: bytes,
        *,
        if_absent: bool = False,
        if_exists: bool = False,
        if_version: int | None = None,
        if_revision: int | None = None,
        return_previous: bool = False,
    ) -> "Future[PutResult]":
        """See `Client.put`."""
        return self._enqueue(
            ops.put(
                key,
                value,
                if_absent=if_absent,
                if_exists=if_exists,
                if_version=if_version,
                if_revision=if_revision,
                return_previous=return_previous,
            )
        )

    def delete(
        self,
        key: str | bytes,
        *,
        if_absent: bool = False,
        if_exists: bool = False,
        if_version: int | None = None,
        if_revision: int | None = None,
        return_previous: bool = False,
    ) -> "Future[DeleteResult]":
        """See `Client.delete`."""
        return self._enqueue(
            ops.delete(
                key,
                if_absent=if_absent,
                if_exists=if_exists,
                if_version=if_version,
                if_revision=if_revision,
                return_previous=return_previous,
            )
        )

    def cas(self, key: str | bytes, expected: bytes | None, value: bytes) -> "Future[CasResult]":
        """See `Client.cas`."""
        return self._enqueue(ops.cas(key, expected, value))

    def incr(self, key: str | bytes, delta: int = 1, *, initial: int = 0) -> "Future[int]":
        """See `Client.incr`."""
        return self._enqueue(ops.incr(key, delta, initial=initial))

    def txn(
        self,
        conditions: Sequence[WhenCondition] = (),
        then: Sequence[Operation[Any]] = (),
        otherwise: Sequence[Operation[Any]] = (),
    ) -> "Future[TxnResult]":
        """See `Client.txn`."""
        return self._enqueue(ops.txn(conditions, then, otherwise))

    def _enqueue(self, operation: Operation[T]) -> "Future[T]":
        future: Future[T] = Future()
        state = self._state
        if state is None:
            raise ClientClosed("the pipeline is not open: use it in a `with` block")
        with self._changed:
            while not state.has_room():
                self._wait(state)
            state.enqueue(operation, future)
            self._changed.notify_all()
        return future

    def _wait(self, state: StreamState[Any]) -> None:
        """Waits for a change, and ends the stream if there is none in time. Under the lock."""
        seconds = state.expires_in()
        if seconds == 0 and self._call is not None:
            self._call.cancel()
            seconds = None
        self._changed.wait(seconds)

    def _requests(self, state: StreamState[Any]) -> Iterator[kv_pb2.PipelineRequest]:
        """What is sent, by the transport's thread."""
        while True:
            with self._changed:
                while (request := state.next_request()) is None:
                    if state.finished() or (state.closing and not state.queued()):
                        return
                    self._wait(state)
            yield request

    def _read(self, state: StreamState[Any], call: SyncStream) -> None:
        """The reader thread: until the stream ends."""
        for response in call:
            with self._changed:
                settled = state.on_response(response)
                self._changed.notify_all()
            _apply(settled)
        with self._changed:
            settled = state.on_end(call.failure)
            self._changed.notify_all()
        _apply(settled)


def _apply(settled: list[Settled[Any]]) -> None:
    for one in settled:
        one.apply()
