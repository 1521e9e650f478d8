"""How calls are made with the client's own transport, on an asyncio event loop of whatever kind."""

import asyncio
import ssl
from collections.abc import AsyncGenerator
from typing import Any

from google.protobuf.message import DecodeError

from raftcache.client import ops
from raftcache.client.errors import ClientClosed
from raftcache.client.failure import Failure, lost, never_sent
from raftcache.client.fast_calls import AsyncCall, Outcome, StreamCall
from raftcache.client.fast_channel import FastChannels
from raftcache.client.options import Options, Tls
from raftcache.client.steps import Call
from raftcache.client.tls import client_context
from raftcache.clock import Clock
from raftcache.v1 import kv_pb2
from raftcache.wire.grpc_wire import framed


class FastAsyncTransport:
    """The channels of one loop."""

    def __init__(self, options: Options, loop: asyncio.AbstractEventLoop, clock: Clock) -> None:
        self._loop = loop
        self._clock = clock
        self._tls = options.tls
        self._channels: FastChannels | None = None
        self._guard: AsyncGenerator[None, None] | None = None
        self._closed = False

    async def call(self, call: Call) -> Any:
        """The answer's message, or a `Failure`."""
        channels = self._channels or await self._opened()
        started = AsyncCall(call, self._loop.create_future())
        channels.start(started)
        try:
            outcome = await started.future
        except BaseException:
            channels.abandon(started)
            raise
        return answer_of(call, outcome)

    async def together(self, calls: list[Call]) -> list[Any]:
        """As `call`, several at once."""
        channels = self._channels or await self._opened()
        started = [AsyncCall(call, self._loop.create_future()) for call in calls]
        for one in started:
            channels.start(one)
        try:
            # They run since they were started; one is awaited after the other.
            return [answer_of(call, await one.future) for call, one in zip(calls, started, strict=True)]
        except BaseException:
            for one in started:
                channels.abandon(one)
            raise

    def open_stream(self, endpoint: str) -> "FastAsyncStream":
        """A pipeline. There has been a call before."""
        if self._closed or self._channels is None:
            raise ClientClosed("the client is closed")
        return FastAsyncStream(self._channels, endpoint)

    async def close(self) -> None:
        """Closes all connections; calls in flight end."""
        self._closed = True
        guard, self._guard = self._guard, None
        if guard is not None:
            await guard.aclose()

    async def _opened(self) -> FastChannels:
        channels = self._channels = FastChannels(self._loop, self._clock, context_of(self._tls))
        if self._closed:
            channels.refuse()
        else:
            self._guard = _closed_at_last(channels)
            await anext(self._guard)
        return channels


async def _closed_at_last(channels: FastChannels) -> AsyncGenerator[None, None]:
    """Closes the channels of a client that nobody closes: a loop finishes its generators when it ends, as `asyncio.run` does, and
    when nobody knows them any more."""
    try:
        yield
    finally:
        await channels.close()


class FastAsyncStream:
    """One pipeline's stream."""

    def __init__(self, channels: FastChannels, endpoint: str) -> None:
        self._channels = channels
        self._call = StreamCall(endpoint, ops.PIPELINE_PATH)
        self.failure: Failure | None = None
        channels.start(self._call)

    async def write(self, request: kv_pb2.PipelineRequest) -> bool:
        """Sends; false if the stream is over."""
        return await self._call.write(framed(request.SerializeToString()))

    async def end(self) -> None:
        """There is no more to send."""
        self._call.end()

    async def read(self) -> kv_pb2.PipelineResponse | None:
        """The next response; None: there are no more."""
        data = await self._call.read()
        if data is not None:
            try:
                return kv_pb2.PipelineResponse.FromString(data)
            except DecodeError:
                self.failure = lost(self._call.endpoint, "a response is no message of the pipeline")
                self._channels.abandon(self._call)
                self._call.settle(self.failure)  # whoever writes may be waiting for room
                return None
        self.failure = self._call.failure
        return None

    def cancel(self) -> None:
        """Ends it."""
        if not self._call.over:
            sent = self._call.connection is not None
            self._channels.abandon(self._call)
            self._call.settle(
                lost(self._call.endpoint, "it was ended") if sent else never_sent(self._call.endpoint, "it was ended")
            )


def context_of(tls: Tls | None) -> ssl.SSLContext | None:
    """The context of `Tls`. Raises: `ConfigError`."""
    return None if tls is None else client_context(tls)


def answer_of(call: Call, outcome: Outcome) -> Any:
    """The answer's message, or a `Failure`."""
    if type(outcome) is not bytes:
        return outcome
    try:
        return call.method.parse(outcome)
    except DecodeError:
        return lost(call.endpoint, f"the answer is no message of {call.method.path}")
