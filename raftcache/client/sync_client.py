"""The client for programs without an event loop.

    import raftcache

    with raftcache.Client("n1:7400,n2:7400,n3:7400") as rc:
        rc.put("user:42", b"ada")
        print(rc.get("user:42").value)

What it does is decided in `flows`; here are names, signatures and a thread that waits. `AsyncClient` has the same names and
signatures, and a test that holds it to them.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from threading import Lock
from types import TracebackType
from typing import Any, Self, TypeVar

from raftcache.client import flows, ops
from raftcache.client.batch import Batch, Outcome
from raftcache.client.errors import ClientClosed
from raftcache.client.keys import bounds_of
from raftcache.client.ops import Operation
from raftcache.client.options import DEFAULT_TIMEOUT_SECONDS, Configured, Consistency, Routing, Tls, Transport
from raftcache.client.results import CasResult, DeleteResult, Entry, Pong, PutResult, ShardMap, TxnResult
from raftcache.client.stream import DEFAULT_WINDOW
from raftcache.client.sync_driver import SyncDriver
from raftcache.client.sync_pipeline import Pipeline
from raftcache.client.when import Condition

T = TypeVar("T")

_PARENTS: list[SyncDriver] = []
"""Drivers of a process that this one was forked from: never used again, and never let go of, because to close their
connections would be to do it with the parent's sockets."""


class Client(Configured):
    """A client of a raftcache cluster. Safe with threads, and after a fork: make one for the whole program.

    Times are in seconds. `timeout` is all that a call may take, attempts and pauses included. Every error is a
    `RaftCacheError`; writes raise `AmbiguousResult` where their outcome is not known, and any other error only if they
    certainly had no effect.
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
        self._driver = SyncDriver(self._options)
        self._lock = Lock()
        self._closed = False

    def get(
        self, key: str | bytes, *, consistency: Consistency | None = None, timeout: float | None = None
    ) -> Entry | None:
        """The entry of a key; None where it is absent."""
        driver = self._here()
        return driver.run(flows.run_operation(driver.core, ops.get(key), timeout, consistency))

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
        return self._run(operation, timeout)

    def delete(
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
        return self._run(operation, timeout)

    def cas(self, key: str | bytes, expected: bytes | None, value: bytes, *, timeout: float | None = None) -> CasResult:
        """Writes a key if its value is `expected`; None expects it to be absent. Raises: `AmbiguousResult`."""
        return self._run(ops.cas(key, expected, value), timeout)

    def incr(self, key: str | bytes, delta: int = 1, *, initial: int = 0, timeout: float | None = None) -> int:
        """Adds to the number at a key, stored as decimal digits; an absent key counts as `initial`. Returns the sum.

        Raises: `InvalidRequest` where no number is stored or the sum leaves 64 bits; `AmbiguousResult`.
        """
        return self._run(ops.incr(key, delta, initial=initial), timeout)

    def txn(
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
        return self._run(ops.txn(conditions, then, otherwise), timeout)

    def batch(
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
        return driver.run(Batch(driver.core, operations, timeout, consistency).run())

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
    ) -> Iterator[Entry]:
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

    def count(
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
            self._here().run(scan.page())
        return scan.count

    def pipeline(self, *, window: int = DEFAULT_WINDOW, timeout: float | None = None) -> Pipeline:
        """A stream of operations, for use in a `with` block: see `Pipeline`. `timeout` is each operation's."""
        driver = self._here()
        return Pipeline(driver, self._options.timeout if timeout is None else timeout, window)

    def shard_map(self, *, timeout: float | None = None) -> ShardMap:
        """The routing table, as some node knows it now."""
        driver = self._here()
        return driver.run(flows.fetch_shard_map(driver.core, timeout))

    def ping(self, *, timeout: float | None = None) -> Pong:
        """Asks any node whether it is there."""
        driver = self._here()
        return driver.run(flows.ping(driver.core, timeout))

    def close(self) -> None:
        """Ends what is in flight and closes the connections. May be called again; everything else then raises `ClientClosed`."""
        with self._lock:
            self._closed = True
            driver = self._driver
        if driver.process_id == os.getpid():
            driver.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, operation: Operation[T], timeout: float | None) -> T:
        driver = self._here()
        return driver.run(flows.run_operation(driver.core, operation, timeout))

    def _pages(self, scan: flows.Scan) -> Iterator[Entry]:
        while not scan.done:
            yield from self._here().run(scan.page())

    def _here(self) -> SyncDriver:
        """The driver of this process."""
        driver = self._driver
        if driver.process_id != os.getpid():
            driver = self._after_fork()
        return driver

    def _after_fork(self) -> SyncDriver:
        with self._lock:
            if self._closed:
                raise ClientClosed("the client is closed")
            if self._driver.process_id != os.getpid():
                _PARENTS.append(self._driver)
                self._driver = SyncDriver(self._options)
            return self._driver
