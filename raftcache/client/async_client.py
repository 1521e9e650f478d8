"""The client for programs on an asyncio event loop.

    import raftcache

    async with raftcache.AsyncClient("n1:7400,n2:7400,n3:7400") as rc:
        await rc.put("user:42", b"ada")
        print((await rc.get("user:42")).value)

What it does is decided in `flows`; here are names, signatures and a task that waits. `Client` has the same names and
signatures, and says more about each.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Iterable, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from raftcache.client import flows, ops
from raftcache.client.async_driver import AsyncDriver
from raftcache.client.async_pipeline import AsyncPipeline
from raftcache.client.batch import Batch, Outcome
from raftcache.client.errors import ClientClosed
from raftcache.client.keys import bounds_of
from raftcache.client.ops import Operation
from raftcache.client.options import DEFAULT_TIMEOUT_SECONDS, Configured, Consistency, Routing, Tls, Transport
from raftcache.client.results import CasResult, DeleteResult, Entry, Pong, PutResult, ShardMap, TxnResult
from raftcache.client.stream import DEFAULT_WINDOW
from raftcache.client.when import Condition

T = TypeVar("T")

_PREVIOUS: list[AsyncDriver] = []
"""Drivers of loops that have ended, and of a process that this one was forked from: never used again, and never let go of,
because to close their connections would need their loop, or would be done with the parent's sockets."""


class AsyncClient(Configured):
    """A client of a raftcache cluster, for one event loop at a time: as `Client`, with methods to await.

    Safe with many tasks and after a fork. A write whose task is cancelled may have been applied.
    """

    def __init__(
        self,
        endpoints: str | Iterable[str],
        *,
        routing: Routing = "direct",
        timeout: float = DEFAULT_TIMEOUT_SECONDS,
        consistency: Consistency = "linearizable",
        sessions: bool = True,
        tls: Tls | None = None,
        transport: Transport = "fast",
    ) -> None:
        super().__init__(
            endpoints,
            routing=routing,
            timeout=timeout,
            consistency=consistency,
            sessions=sessions,
            tls=tls,
            transport=transport,
        )
        self._driver: AsyncDriver | None = None
        self._closed = False

    async def get(
        self, key: str | bytes, *, consistency: Consistency | None = None, timeout: float | None = None
    ) -> Entry | None:
        """The entry of a key; None where it is absent."""
        driver = self._here()
        return await driver.run(flows.run_operation(driver.core, ops.get(key), timeout, consistency))

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
        timeout: float | None = None,
    ) -> PutResult:
        """Writes a key if all conditions hold. `if_revision` compares `Entry.revision`; 0 means that the key is absent.

        Raises: `ConditionFailed` with what is stored; `AmbiguousResult`.
        """
        operation = ops.put(
            key,
            value,
            if_absent=if_absent,
            if_exists=if_exists,
            if_version=if_version,
            if_revision=if_revision,
            return_previous=return_previous,
        )
        return await self._run(operation, timeout)

    async def delete(
        self,
        key: str | bytes,
        *,
        if_absent: bool = False,
        if_exists: bool = False,
        if_version: int | None = None,
        if_revision: int | None = None,
        return_previous: bool = False,
        timeout: float | None = None,
    ) -> DeleteResult:
        """Removes a key if all conditions hold. To remove what is absent is no error; the result says so.

        Raises: `ConditionFailed` with what is stored; `AmbiguousResult`.
        """
        operation = ops.delete(
            key,
            if_absent=if_absent,
            if_exists=if_exists,
            if_version=if_version,
            if_revision=if_revision,
            return_previous=return_previous,
        )
        return await self._run(operation, timeout)

    async def cas(
        self, key: str | bytes, expected: bytes | None, value: bytes, *, timeout: float | None = None
    ) -> CasResult:
        """Writes a key if its value is `expected`; None expects it to be absent. Raises: `AmbiguousResult`."""
        return await self._run(ops.cas(key, expected, value), timeout)

    async def incr(self, key: str | bytes, delta: int = 1, *, initial: int = 0, timeout: float | None = None) -> int:
        """Adds to the number at a key, stored as decimal digits; an absent key counts as `initial`. Returns the sum.

        Raises: `InvalidRequest` where no number is stored or the sum leaves 64 bits; `AmbiguousResult`.
        """
        return await self._run(ops.incr(key, delta, initial=initial), timeout)

    async def txn(
        self,
        conditions: Sequence[Condition] = (),
        then: Sequence[Operation[Any]] = (),
        otherwise: Sequence[Operation[Any]] = (),
        *,
        timeout: float | None = None,
    ) -> TxnResult:
        """If all conditions hold runs `then`, else `otherwise`, atomically. All keys lie in one slot: give them a `{tag}`.

        Raises: `CrossSlot`, `InvalidRequest`, `AmbiguousResult`.
        """
        return await self._run(ops.txn(conditions, then, otherwise), timeout)

    async def batch(
        self,
        operations: Sequence[Operation[Any]],
        *,
        consistency: Consistency | None = None,
        timeout: float | None = None,
    ) -> list[Outcome]:
        """Runs many operations, each on its own, and returns a result or an error for each, in their order.

        Not atomic. Operations on one key take effect in the order given, one after the other.
        """
        driver = self._here()
        return await driver.run(Batch(driver.core, operations, timeout, consistency).run())

    def scan(
        self,
        *,
        prefix: str | bytes | None = None,
        start: str | bytes | None = None,
        end: str | bytes | None = None,
        limit: int | None = None,
        keys_only: bool = False,
        consistency: Consistency | None = None,
        timeout: float | None = None,
    ) -> AsyncIterator[Entry]:
        """The entries with a prefix, or in `[start, end)`, in key order, fetched page by page.

        There is no common snapshot of pages, nor of shards. `timeout` is each page's.
        """
        driver = self._here()
        lo, hi = bounds_of(prefix, start, end)
        scan = flows.Scan(
            driver.core,
            lo,
            hi,
            limit=limit,
            keys_only=keys_only,
            count_only=False,
            consistency=consistency,
            timeout=timeout,
        )
        return self._pages(scan)

    async def count(
        self,
        *,
        prefix: str | bytes | None = None,
        start: str | bytes | None = None,
        end: str | bytes | None = None,
        consistency: Consistency | None = None,
        timeout: float | None = None,
    ) -> int:
        """How many keys there are with a prefix, or in `[start, end)`. Counts as `scan` reads."""
        driver = self._here()
        lo, hi = bounds_of(prefix, start, end)
        scan = flows.Scan(
            driver.core,
            lo,
            hi,
            limit=None,
            keys_only=True,
            count_only=True,
            consistency=consistency,
            timeout=timeout,
        )
        while not scan.done:
            await self._here().run(scan.page())
        return scan.count

    def pipeline(self, *, window: int = DEFAULT_WINDOW, timeout: float | None = None) -> AsyncPipeline:
        """A stream of operations, for use in a `async with` block: see `AsyncPipeline`. `timeout` is each operation's."""
        driver = self._here()
        return AsyncPipeline(driver, self._options.timeout if timeout is None else timeout, window)

    async def shard_map(self, *, timeout: float | None = None) -> ShardMap:
        """The routing table, as some node knows it now."""
        driver = self._here()
        return await driver.run(flows.fetch_shard_map(driver.core, timeout))

    async def ping(self, *, timeout: float | None = None) -> Pong:
        """Asks any node whether it is there."""
        driver = self._here()
        return await driver.run(flows.ping(driver.core, timeout))

    async def close(self) -> None:
        """Ends what is in flight and closes the connections. May be called again; everything else then raises `ClientClosed`."""
        self._closed = True
        driver = self._driver
        if driver is not None and driver.process_id == os.getpid() and driver.loop is asyncio.get_running_loop():
            await driver.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _run(self, operation: Operation[T], timeout: float | None) -> T:
        driver = self._here()
        return await driver.run(flows.run_operation(driver.core, operation, timeout))

    async def _pages(self, scan: flows.Scan) -> AsyncIterator[Entry]:
        while not scan.done:
            for entry in await self._here().run(scan.page()):
                yield entry

    def _here(self) -> AsyncDriver:
        """The driver of this process and loop."""
        driver, loop = self._driver, asyncio.get_running_loop()
        if driver is None or driver.loop is not loop or driver.process_id != os.getpid():
            driver = self._driver = self._elsewhere(driver, loop)
        return driver

    def _elsewhere(self, driver: AsyncDriver | None, loop: asyncio.AbstractEventLoop) -> AsyncDriver:
        if self._closed:
            raise ClientClosed("the client is closed")
        if driver is not None:
            if driver.process_id == os.getpid() and driver.loop.is_running():
                raise RuntimeError("this AsyncClient is in use on another event loop: make one for each loop")
            _PREVIOUS.append(driver)
        return AsyncDriver(self._options, loop)
