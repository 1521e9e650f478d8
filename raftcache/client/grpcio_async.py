"""How calls are made with grpc.aio. Caveats: see `grpcio_sync`."""

import asyncio
from typing import Any, cast

import grpc
import grpc.aio

from raftcache.client import ops
from raftcache.client.errors import ClientClosed
from raftcache.client.failure import Failure, closed
from raftcache.client.grpcio_sync import Callee, Metadata, credentials_of, failure_of_grpcio, serialize
from raftcache.client.ops import Method
from raftcache.client.options import CHANNEL_OPTIONS, Options
from raftcache.client.steps import Call
from raftcache.v1 import kv_pb2


class GrpcioAsyncTransport:
    """One channel to each endpoint."""

    def __init__(self, options: Options) -> None:
        self._tls = options.tls
        self._closed = False
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._callees: dict[tuple[str, str], Callee] = {}

    async def call(self, call: Call) -> Any:
        """The answer's message, or a `Failure`."""
        try:
            started = self._callee(call.endpoint, call.method)(call.message, timeout=call.seconds)
        except (ClientClosed, grpc.aio.UsageError) as error:
            return self._closed_or_raise(error)
        return await self._answer(call, started)

    async def together(self, calls: list[Call]) -> list[Any]:
        """As `call`, several at once."""
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

    def open_stream(self, endpoint: str) -> "GrpcioAsyncStream":
        """A pipeline."""
        channel: Any = self._channel(endpoint)
        callee = channel.stream_stream(
            ops.PIPELINE_PATH,
            request_serializer=serialize,
            response_deserializer=kv_pb2.PipelineResponse.FromString,
        )
        return GrpcioAsyncStream(endpoint, callee())

    async def close(self) -> None:
        """Closes every channel; calls in flight end."""
        self._closed = True
        channels = list(self._channels.values())
        self._channels.clear()
        self._callees.clear()
        for channel in channels:
            await channel.close()

    async def _answer(self, call: Call, started: Any) -> Any:
        try:
            return await started
        except grpc.aio.AioRpcError as error:
            return failure_of_aio(call.endpoint, error)
        except asyncio.CancelledError:
            # A closed channel cancels its calls, and grpc.aio then cancels whoever waits, who was not asked to stop.
            if not self._closed or _is_asked_to_stop():
                raise
            return closed(sent=True)

    def _callee(self, endpoint: str, method: Method) -> Callee:
        callee = self._callees.get((endpoint, method.path))
        if callee is None:
            made: Any = self._channel(endpoint).unary_unary(
                method.path, request_serializer=serialize, response_deserializer=method.parse
            )
            callee = self._callees[endpoint, method.path] = made
        return callee

    def _channel(self, endpoint: str) -> grpc.aio.Channel:
        channel = self._channels.get(endpoint)
        if channel is None:
            if self._closed:
                raise ClientClosed("the client is closed")
            if self._tls is None:
                channel = grpc.aio.insecure_channel(endpoint, CHANNEL_OPTIONS)
            else:
                channel = grpc.aio.secure_channel(endpoint, credentials_of(self._tls), CHANNEL_OPTIONS)
            self._channels[endpoint] = channel
        return channel

    def _closed_or_raise(self, error: Exception) -> Failure:
        if not self._closed:
            raise error
        return closed(sent=False)


class GrpcioAsyncStream:
    """One pipeline's stream."""

    def __init__(self, endpoint: str, call: Any) -> None:
        self._endpoint = endpoint
        self._call = call
        self.failure: Failure | None = None

    async def write(self, request: kv_pb2.PipelineRequest) -> bool:
        """Sends; false if the stream is over."""
        try:
            await self._call.write(request)
        except (grpc.RpcError, asyncio.InvalidStateError):
            return False
        except asyncio.CancelledError:
            if _is_asked_to_stop():
                raise
            return False
        return True

    async def end(self) -> None:
        """There is no more to send."""
        try:
            await self._call.done_writing()
        except (grpc.RpcError, asyncio.InvalidStateError):
            return
        except asyncio.CancelledError:
            if _is_asked_to_stop():
                raise

    async def read(self) -> kv_pb2.PipelineResponse | None:
        """The next response; None: there are no more."""
        try:
            response = await self._call.read()
            if response is not grpc.aio.EOF:
                return cast(kv_pb2.PipelineResponse, response)
            code = await self._call.code()
            if code is not grpc.StatusCode.OK:
                details, trailers = await self._call.details(), await self._call.trailing_metadata()
                self.failure = failure_of_grpcio(self._endpoint, code, details, trailers)
        except grpc.aio.AioRpcError as error:
            self.failure = failure_of_aio(self._endpoint, error)
        except asyncio.CancelledError:
            # Cancelled was the call; unless it was this task.
            if _is_asked_to_stop():
                raise
            self.failure = failure_of_grpcio(self._endpoint, grpc.StatusCode.CANCELLED, "it was ended", None)
        return None

    def cancel(self) -> None:
        """Ends it."""
        self._call.cancel()


def failure_of_aio(endpoint: str, error: grpc.aio.AioRpcError) -> Failure:
    """What an error of grpc.aio means."""
    trailers = cast(Metadata | None, error.trailing_metadata())
    return failure_of_grpcio(endpoint, error.code(), error.details(), trailers)


def _is_asked_to_stop() -> bool:
    """Whether a CancelledError is meant for this task, and not for the call that it waits on."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
