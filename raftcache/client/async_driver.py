"""Does what flows ask for, with grpc.aio on one event loop. Decides nothing.

One `AsyncDriver` belongs to one process and one loop.
"""

import asyncio
import os
from typing import Any, TypeVar, cast

import grpc
import grpc.aio

from raftcache.client.errors import ClientClosed
from raftcache.client.failure import Failure, Metadata, failure_of_status
from raftcache.client.flows import close_sessions
from raftcache.client.ops import Method
from raftcache.client.options import CHANNEL_OPTIONS, Options
from raftcache.client.steps import Call, Flow, Pause, Together, Wait
from raftcache.client.sync_driver import Callee, credentials_of, new_core, serialize

T = TypeVar("T")


class AsyncDriver:
    """Runs flows in the caller's task."""

    def __init__(self, options: Options, loop: asyncio.AbstractEventLoop) -> None:
        self.core = new_core(options, asyncio.Event)
        self.process_id = os.getpid()
        self.loop = loop
        self._tls = options.tls
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._callees: dict[tuple[str, str], Callee] = {}

    async def run(self, flow: Flow[T]) -> T:
        """Runs a flow to its end. Raises what it raises. Cancelling it leaves the outcome of a write unknown."""
        answer: Any = None
        try:
            while True:
                step = flow.send(answer)
                if type(step) is Call:
                    answer = await self._call(step)
                else:
                    answer = await self._others(step)
        except StopIteration as stop:
            result: T = stop.value
            return result
        finally:
            flow.close()

    def channel(self, endpoint: str) -> grpc.aio.Channel:
        """The one channel to an endpoint. Raises: `ClientClosed`."""
        channel = self._channels.get(endpoint)
        if channel is None:
            if self.core.closed:
                raise ClientClosed("the client is closed")
            if self._tls is None:
                channel = grpc.aio.insecure_channel(endpoint, CHANNEL_OPTIONS)
            else:
                channel = grpc.aio.secure_channel(endpoint, credentials_of(self._tls), CHANNEL_OPTIONS)
            self._channels[endpoint] = channel
        return channel

    async def close(self) -> None:
        """Says goodbye and closes every channel; calls in flight end. May be called again."""
        core = self.core
        if not core.closed and core.sessions is not None:
            await self.run(close_sessions(core, core.sessions.idle()))
        core.closed = True
        channels = list(self._channels.values())
        self._channels.clear()
        self._callees.clear()
        for channel in channels:
            await channel.close()

    async def _call(self, call: Call) -> Any:
        try:
            started = self._callee(call.endpoint, call.method)(call.message, timeout=call.seconds)
        except (ClientClosed, grpc.aio.UsageError) as error:
            return self._closed_or_raise(error)
        return await self._answer(call, started)

    async def _others(self, step: Call | Together | Pause | Wait) -> Any:
        match step:
            case Together(calls):
                return await self._together(calls)
            case Pause(seconds):
                await asyncio.sleep(seconds)
            case Wait(waiter, seconds):
                try:
                    async with asyncio.timeout(seconds):
                        await cast(asyncio.Event, waiter).wait()
                except TimeoutError:
                    pass
            case Call():
                return await self._call(step)
        return None

    async def _together(self, calls: list[Call]) -> list[Any]:
        started: list[Any] = []
        try:
            try:
                for call in calls:
                    callee = self._callee(call.endpoint, call.method)
                    started.append(callee(call.message, timeout=call.seconds))
            except (ClientClosed, grpc.aio.UsageError) as error:
                failure = self._closed_or_raise(error)
                failure.definite = not started
                return [failure] * len(calls)
            # They run since they were made; one is awaited after the other.
            return [await self._answer(call, one) for call, one in zip(calls, started, strict=True)]
        finally:
            for one in started:
                one.cancel()

    async def _answer(self, call: Call, started: Any) -> Any:
        try:
            return await started
        except grpc.aio.AioRpcError as error:
            return failure_of_aio(call.endpoint, error)
        except asyncio.CancelledError:
            # A closed channel cancels its calls, and grpc.aio then cancels whoever waits, who was not asked to stop.
            task = asyncio.current_task()
            if not self.core.closed or (task is not None and task.cancelling()):
                raise
            return failure_of_status(call.endpoint, grpc.StatusCode.CANCELLED, "the client was closed", None)

    def _callee(self, endpoint: str, method: Method) -> Callee:
        callee = self._callees.get((endpoint, method.path))
        if callee is None:
            made: Any = self.channel(endpoint).unary_unary(
                method.path, request_serializer=serialize, response_deserializer=method.parse
            )
            callee = self._callees[endpoint, method.path] = made
        return callee

    def _closed_or_raise(self, error: Exception) -> Failure:
        if not self.core.closed:
            raise error
        return Failure(ClientClosed("the client is closed"), definite=True, again=False)


def failure_of_aio(endpoint: str, error: grpc.aio.AioRpcError) -> Failure:
    """What an error of grpc.aio means."""
    trailers = cast(Metadata | None, error.trailing_metadata())
    return failure_of_status(endpoint, error.code(), error.details(), trailers)
