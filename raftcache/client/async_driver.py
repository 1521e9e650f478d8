"""Does what flows ask for, in the caller's task. Decides nothing; how calls are made is its transport's.

One `AsyncDriver` belongs to one process and one loop.
"""

import asyncio
import os
from typing import Any, Protocol, TypeVar, cast

from raftcache.client.course import Core
from raftcache.client.failure import Failure
from raftcache.client.flows import close_sessions
from raftcache.client.options import Options
from raftcache.client.steps import Call, Flow, Pause, Together, Wait
from raftcache.client.sync_driver import new_core
from raftcache.v1 import kv_pb2

T = TypeVar("T")


class AsyncTransport(Protocol):
    """How calls are made, on one loop."""

    async def call(self, call: Call) -> Any:
        """The answer's message, or a `Failure`. Raises: `ConfigError` for what no attempt can mend."""
        ...

    async def together(self, calls: list[Call]) -> list[Any]:
        """As `call`, several at once; in their order."""
        ...

    def open_stream(self, endpoint: str) -> "AsyncStream":
        """A pipeline. Raises: `ClientClosed`."""
        ...

    async def close(self) -> None:
        """Closes all connections; calls in flight end."""
        ...


class AsyncStream(Protocol):
    """One pipeline's stream, for one task that writes and one that reads."""

    failure: Failure | None
    """Why it ended; None: well, or it has not. After `read` has returned None."""

    async def write(self, request: kv_pb2.PipelineRequest) -> bool:
        """Sends; returns when more may be sent, and false if the stream is over."""
        ...

    async def end(self) -> None:
        """There is no more to send."""
        ...

    async def read(self) -> kv_pb2.PipelineResponse | None:
        """The next response; None: there are no more."""
        ...

    def cancel(self) -> None:
        """Ends it."""
        ...


class AsyncDriver:
    """Runs flows in the caller's task."""

    def __init__(self, options: Options, loop: asyncio.AbstractEventLoop) -> None:
        self.core = new_core(options, asyncio.Event)
        self.process_id = os.getpid()
        self.loop = loop
        self.transport = _transport_of(options, loop, self.core)

    async def run(self, flow: Flow[T]) -> T:
        """Runs a flow to its end. Raises what it raises. Cancelling it leaves the outcome of a write unknown."""
        answer: Any = None
        call = self.transport.call
        try:
            while True:
                step = flow.send(answer)
                answer = await (call(step) if type(step) is Call else self._others(step))
        except StopIteration as stop:
            result: T = stop.value
            return result
        finally:
            flow.close()

    async def close(self) -> None:
        """Says goodbye and closes every connection; calls in flight end. May be called again."""
        core = self.core
        if not core.closed and core.sessions is not None:
            await self.run(close_sessions(core, core.sessions.idle()))
        core.closed = True
        await self.transport.close()

    async def _others(self, step: Call | Together | Pause | Wait) -> Any:
        match step:
            case Together(calls):
                return await self.transport.together(calls)
            case Pause(seconds):
                await asyncio.sleep(seconds)
            case Wait(waiter, seconds):
                try:
                    async with asyncio.timeout(seconds):
                        await cast(asyncio.Event, waiter).wait()
                except TimeoutError:
                    pass
            case Call():
                return await self.transport.call(step)
        return None


def _transport_of(options: Options, loop: asyncio.AbstractEventLoop, core: Core) -> AsyncTransport:
    # Each is imported where it is used: grpcio takes a while to import, and starts threads that survive no fork.
    if options.transport == "grpcio":
        from raftcache.client.grpcio_async import GrpcioAsyncTransport

        return GrpcioAsyncTransport(options)
    from raftcache.client.fast_async import FastAsyncTransport

    return FastAsyncTransport(options, loop, core.clock)
