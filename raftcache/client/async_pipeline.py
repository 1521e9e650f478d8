"""A pipeline for asyncio: one stream, a task that writes and a task that reads."""

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from raftcache.client import ops
from raftcache.client.async_driver import AsyncDriver, AsyncStream
from raftcache.client.errors import ClientClosed
from raftcache.client.failure import Failure, lost
from raftcache.client.flows import ping
from raftcache.client.ops import Operation
from raftcache.client.results import CasResult, DeleteResult, Entry, PutResult, TxnResult
from raftcache.client.stream import GRACE_SECONDS, StreamState
from raftcache.client.when import Condition

T = TypeVar("T")


class AsyncPipeline:
    """Many operations in flight at once on one stream; made by `AsyncClient.pipeline`.

        async with rc.pipeline() as p:
            put, get = await p.put("a", b"1"), await p.get("a")
        print(await get)

    As `Pipeline`. The methods are awaited for their place in the window, and return a future.
    """

    def __init__(self, driver: AsyncDriver, timeout: float, window: int) -> None:
        self._driver = driver
        self._timeout = timeout
        self._window = window
        self._state: StreamState[asyncio.Future[Any]] | None = None
        self._call: AsyncStream | None = None
        self._more = asyncio.Event()
        """Something to send, or the end: for the writer."""
        self._room = asyncio.Event()
        """Something was answered: for those who wait for their place."""
        self._tasks = asyncio.TaskGroup()

    async def __aenter__(self) -> Self:
        # A stream to a node that is not there would fail at the first operation. This one answered just now.
        endpoint = (await self._driver.run(ping(self._driver.core, self._timeout))).address
        self._state = StreamState(endpoint, self._timeout, self._window, self._driver.core.clock)
        self._call = self._driver.transport.open_stream(endpoint)
        await self._tasks.__aenter__()
        self._tasks.create_task(self._write(self._state, self._call), name="raftcache-pipeline-writer")
        self._tasks.create_task(self._read(self._state, self._call), name="raftcache-pipeline-reader")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        state = self._state
        assert state is not None
        state.closing = True
        self._more.set()
        if kind is not None and self._call is not None:
            self._call.cancel()
        # The body's exception is not the group's: it would come out wrapped.
        await self._tasks.__aexit__(None, None, None)

    async def get(self, key: str | bytes) -> "asyncio.Future[Entry | None]":
        """See `AsyncClient.get`."""
        return await self._enqueue(ops.get(key))

    async def put(
        self,
        key: str | bytes,
        value: bytes,
        *,
        if_absent: bool = False,
        if_exists: bool = False,
        if_version: int | None = None,
        if_revision: int | None = None,
        return_previous: bool = False,
    ) -> "asyncio.Future[PutResult]":
        """See `AsyncClient.put`."""
        return await self._enqueue(
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

    async def delete(
        self,
        key: str | bytes,
        *,
        if_absent: bool = False,
        if_exists: bool = False,
        if_version: int | None = None,
        if_revision: int | None = None,
        return_previous: bool = False,
    ) -> "asyncio.Future[DeleteResult]":
        """See `AsyncClient.delete`."""
        return await self._enqueue(
            ops.delete(
                key,
                if_absent=if_absent,
                if_exists=if_exists,
                if_version=if_version,
                if_revision=if_revision,
                return_previous=return_previous,
            )
        )

    async def cas(self, key: str | bytes, expected: bytes | None, value: bytes) -> "asyncio.Future[CasResult]":
        """See `AsyncClient.cas`."""
        return await self._enqueue(ops.cas(key, expected, value))

    async def incr(self, key: str | bytes, delta: int = 1, *, initial: int = 0) -> "asyncio.Future[int]":
        """See `AsyncClient.incr`."""
        return await self._enqueue(ops.incr(key, delta, initial=initial))

    async def txn(
        self,
        conditions: Sequence[Condition] = (),
        then: Sequence[Operation[Any]] = (),
        otherwise: Sequence[Operation[Any]] = (),
    ) -> "asyncio.Future[TxnResult]":
        """See `AsyncClient.txn`."""
        return await self._enqueue(ops.txn(conditions, then, otherwise))

    async def _enqueue(self, operation: Operation[T]) -> "asyncio.Future[T]":
        state = self._state
        if state is None:
            raise ClientClosed("the pipeline is not open: use it in an `async with` block")
        while not state.has_room():
            self._room.clear()
            await self._room.wait()
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        state.enqueue(operation, future)
        self._more.set()
        return future

    async def _write(self, state: StreamState[Any], call: AsyncStream) -> None:
        """The writer task: sends what there is, and ends a stream that does not answer in time."""
        half_closed = False
        patience = self._timeout + GRACE_SECONDS
        try:
            while not state.finished():
                request = state.next_request()
                if request is not None:
                    async with asyncio.timeout(patience):
                        if not await call.write(request):
                            return
                elif state.closing and not half_closed:
                    half_closed = True
                    await call.end()
                elif state.expires_in() == 0:
                    call.cancel()
                    return
                else:
                    await self._wait_for_more(state)
            if not half_closed:
                await call.end()
        except TimeoutError:
            call.cancel()

    async def _wait_for_more(self, state: StreamState[Any]) -> None:
        """Until there is something to send, or the oldest answer is overdue."""
        self._more.clear()
        try:
            async with asyncio.timeout(state.expires_in()):
                await self._more.wait()
        except TimeoutError:
            return

    async def _read(self, state: StreamState[Any], call: AsyncStream) -> None:
        """The reader task: until the stream ends."""
        # Unless it is read to its end.
        failure: Failure | None = lost(state.endpoint, "the pipeline was ended")
        try:
            while (response := await call.read()) is not None:
                for one in state.on_response(response):
                    one.apply()
                self._room.set()
                if state.closing:
                    self._more.set()
            failure = call.failure
        finally:
            for one in state.on_end(failure):
                one.apply()
            self._room.set()
            self._more.set()
