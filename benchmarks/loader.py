"""The load generator for everything that h2load cannot send: many keys, many servers, checked answers, streams.

A closed loop: so many requests are outstanding, and each answer sends the next one. Bodies are encoded before the clock runs.
One process, one thread, one connection to each target; a request costs some microseconds, which the benchmark compares with
h2load in the same run.
"""

import asyncio
import contextlib
import gc
import time
from array import array
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import uvloop

from benchmarks.http2 import STATUS_NONE, Connection, ProtocolError

Outcome = TypeVar("Outcome")

Requests = Iterator[tuple[int, bytes]]
"""The number of the target, and the framed message for it. A load ends when they end, or when its time is over."""

ANSWER_SECONDS_MAX = 30.0
"""Longer than any server's deadline: an answer that takes longer does not come, and the benchmark is broken."""


@dataclass
class LoadResult:
    """What came of one load."""

    seconds: float = 0.0
    latencies_ns: "array[int]" = field(default_factory=lambda: array("q"))
    """Of the requests that succeeded."""
    statuses: "Counter[int]" = field(default_factory=Counter)
    """By gRPC status; 0 is OK."""
    answers: list[bytes] = field(default_factory=list)
    """Some of the messages, for the caller to look into."""
    loader_cpu_seconds: float = 0.0

    @property
    def succeeded(self) -> int:
        return self.statuses[0]

    @property
    def failed(self) -> int:
        return sum(self.statuses.values()) - self.statuses[0]


class Target(asyncio.Protocol):
    """One connection of the loader."""

    def __init__(
        self, authority: str, path: str, on_events: "Callable[[Target, list[tuple[int, bytes | None, int]]], None]"
    ):
        self.core = Connection(authority, path)
        self.started_ns: dict[int, int] = {}
        """When each open stream was sent."""
        self._on_events = on_events
        self._transport: asyncio.Transport | None = None
        self.lost: Exception | None = None
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write"), transport
        self._transport = transport  # type: ignore[assignment]  # uvloop's transports have another base
        self.flush()

    def data_received(self, data: bytes) -> None:
        try:
            events = self.core.receive(data)
        except ProtocolError as error:
            self.fail(error)
            return
        if events:
            self._on_events(self, events)
        self.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self.fail(exc or ConnectionResetError("the server closed the connection"))
        if not self.closed.done():
            self.closed.set_result(None)

    def fail(self, error: Exception) -> None:
        """The connection is no use any more; what is open on it has failed."""
        if self.lost is not None:
            return
        self.lost = error
        open_streams = [(stream, None, STATUS_NONE) for stream in self.started_ns]
        self._on_events(self, list(open_streams))
        self.close()

    def flush(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            outgoing = self.core.take_outgoing()
            if outgoing:
                self._transport.write(outgoing)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


class UnaryLoad:
    """Keeps so many unary requests outstanding for a time."""

    def __init__(self, requests: Requests, outstanding: int, *, keep_answers: int = 0) -> None:
        self.targets: list[Target] = []
        self.result = LoadResult()
        self._requests = requests
        self._outstanding = outstanding
        self._keep_answers = keep_answers
        self._in_flight = 0
        self._stop_ns = 0
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self, seconds: float) -> LoadResult:
        """Raises: `TimeoutError`, `ProtocolError` or `OSError` where the servers end the load."""
        now_ns = time.perf_counter_ns()
        cpu = time.process_time()
        self._stop_ns = now_ns + int(seconds * 1e9)
        for _ in range(self._outstanding):
            self._send(now_ns)
        assert self._in_flight, "there is nothing to send"
        for target in self.targets:
            target.flush()
        async with asyncio.timeout(seconds + ANSWER_SECONDS_MAX):
            await self._done
        self.result.seconds = (time.perf_counter_ns() - now_ns) / 1e9
        self.result.loader_cpu_seconds = time.process_time() - cpu
        for target in self.targets:
            if target.lost is not None:
                raise target.lost
        return self.result

    def on_events(self, target: Target, events: list[tuple[int, bytes | None, int]]) -> None:
        """Takes answers, and sends as many new requests."""
        now_ns = time.perf_counter_ns()
        result, started = self.result, target.started_ns
        ended = 0
        for stream, message, status in events:
            if message is not None:
                if len(result.answers) < self._keep_answers:
                    result.answers.append(message)
                continue
            began_ns = started.pop(stream, None)
            if began_ns is None:
                continue
            result.statuses[status] += 1
            if status == 0:
                result.latencies_ns.append(now_ns - began_ns)
            ended += 1
        self._in_flight -= ended
        if target.lost is None:
            self._go_on(target, ended, now_ns)
        if self._in_flight == 0 and self._sent_all() and not self._done.done():
            self._done.set_result(None)

    def _go_on(self, target: Target, ended: int, now_ns: int) -> None:
        """So many requests to `target` ended: as many are sent, wherever to."""
        if now_ns < self._stop_ns:
            for other in {self._send(now_ns) for _ in range(ended)}:
                if other is not None and other is not target:
                    other.flush()

    def _sent_all(self) -> bool:
        """Whether nothing outstanding means the end; in a closed loop it does."""
        return True

    def _send(self, now_ns: int) -> Target | None:
        request = next(self._requests, None)
        if request is None:
            self._stop_ns = 0
            return None
        number, data = request
        target = self.targets[number]
        target.started_ns[target.core.open(data)] = now_ns
        self._in_flight += 1
        return target


class StreamLoad:
    """Keeps so many messages unanswered on one bidirectional stream; each message is answered by one."""

    def __init__(self, requests: Requests, outstanding: int, *, keep_answers: int = 0) -> None:
        self.targets: list[Target] = []
        self.result = LoadResult()
        self._requests = requests
        self._outstanding = outstanding
        self._keep_answers = keep_answers
        self._stream = 0
        self._sent_ns: list[int] = []
        """When each unanswered message was sent, oldest first: answers may overtake, so latencies are those of the window."""
        self._stop_ns = 0
        self._closing = False
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self, seconds: float) -> LoadResult:
        """As `UnaryLoad.run`."""
        (target,) = self.targets
        now_ns = time.perf_counter_ns()
        cpu = time.process_time()
        self._stop_ns = now_ns + int(seconds * 1e9)
        for _ in range(self._outstanding):
            self._send(target, now_ns)
        target.flush()
        async with asyncio.timeout(seconds + ANSWER_SECONDS_MAX):
            await self._done
        self.result.seconds = (time.perf_counter_ns() - now_ns) / 1e9
        self.result.loader_cpu_seconds = time.process_time() - cpu
        return self.result

    def on_events(self, target: Target, events: list[tuple[int, bytes | None, int]]) -> None:
        now_ns = time.perf_counter_ns()
        result = self.result
        for _, message, status in events:
            if message is None:
                if status or self._sent_ns:
                    result.statuses[status or STATUS_NONE] += max(1, len(self._sent_ns))
                if not self._done.done():
                    self._done.set_result(None)
                return
            result.latencies_ns.append(now_ns - self._sent_ns.pop(0))
            result.statuses[0] += 1
            if len(result.answers) < self._keep_answers:
                result.answers.append(message)
            if now_ns < self._stop_ns:
                self._send(target, now_ns)
        if now_ns >= self._stop_ns and not self._closing:
            self._closing = True
            target.core.half_close(self._stream)

    def _send(self, target: Target, now_ns: int) -> None:
        request = next(self._requests, None)
        if request is None:
            self._stop_ns = 0
            return
        _, data = request
        if self._stream:
            target.core.send(self._stream, data)
        else:
            self._stream = target.core.open(data, end=False)
            target.started_ns[self._stream] = now_ns
        self._sent_ns.append(now_ns)


async def connected(load: UnaryLoad | StreamLoad, addresses: Sequence[str], path: str, seconds: float) -> LoadResult:
    """Runs a load on one connection to each address."""
    loop = asyncio.get_running_loop()
    async with contextlib.AsyncExitStack() as stack:
        for address in addresses:
            host, _, port = address.rpartition(":")
            target = Target(address, path, load.on_events)
            await loop.create_connection(lambda target=target: target, host, int(port))  # type: ignore[misc]
            stack.push_async_callback(_close, target)
            load.targets.append(target)
        return await load.run(seconds)


async def _close(target: Target) -> None:
    target.lost = target.lost or ConnectionAbortedError("closed by the benchmark")
    target.close()
    await target.closed


def measured(
    coroutine: Coroutine[Any, Any, Outcome],
    loop_factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop,
) -> Outcome:
    """Runs it without garbage collections, which a million recorded latencies would only make longer."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            return runner.run(coroutine)
    finally:
        gc.enable()
        gc.unfreeze()


def run_unary(
    addresses: Sequence[str], path: str, requests: Requests, *, outstanding: int, seconds: float, keep_answers: int = 0
) -> LoadResult:
    """A closed loop of unary requests for `seconds`, and then until the last of them is answered."""

    async def run() -> LoadResult:
        load = UnaryLoad(requests, outstanding, keep_answers=keep_answers)
        return await connected(load, addresses, path, seconds)

    return measured(run())


def run_stream(
    address: str, path: str, requests: Requests, *, outstanding: int, seconds: float, keep_answers: int = 0
) -> LoadResult:
    """A closed loop of messages on one stream for `seconds`, and then until the last of them is answered."""

    async def run() -> LoadResult:
        load = StreamLoad(requests, outstanding, keep_answers=keep_answers)
        return await connected(load, [address], path, seconds)

    return measured(run())


@dataclass(frozen=True)
class Share:
    """A closed loop of unary requests that runs beside others."""

    address: str
    path: str
    requests: Requests
    outstanding: int


def run_beside(shares: Sequence[Share], *, seconds: float, keep_answers: int = 0) -> list[LoadResult]:
    """Closed loops at the same time, in one thread; each result's processor time is that of all."""

    async def one(share: Share) -> LoadResult:
        load = UnaryLoad(share.requests, share.outstanding, keep_answers=keep_answers)
        return await connected(load, [share.address], share.path, seconds)

    async def run() -> list[LoadResult]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(share), name=share.path) for share in shares]
        return [task.result() for task in tasks]

    return measured(run())
