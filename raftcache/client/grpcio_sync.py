"""How calls are made with grpcio and threads.

grpcio does not say whether a call was sent. The one exception is a connection that could not be made, which it says in words; if
they change, the outcome counts as unknown, which is the safe side (a test compares them with the installed library).

Caveat: it says UNKNOWN, INTERNAL or CANCELLED as well when a connection breaks in the middle of a call.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from threading import Lock
from typing import Any, cast

import grpc

from raftcache.client import ops
from raftcache.client.errors import ClientClosed
from raftcache.client.failure import Failure, closed, failure_of_status, never_sent
from raftcache.client.ops import Method
from raftcache.client.options import CHANNEL_OPTIONS, Options, Tls
from raftcache.client.steps import Call
from raftcache.client.tls import client_context
from raftcache.v1 import kv_pb2
from raftcache.wire import grpc_wire

Callee = Callable[..., Any]
Metadata = Iterable[tuple[str, str | bytes]]

DETAILS_TRAILER = grpc_wire.DETAILS_TRAILER.decode()
NEVER_CONNECTED = "failed to connect to all addresses"
"""How gRPC's core begins the details of a call that found no connection, and so was never sent."""


class GrpcioTransport:
    """One channel to each endpoint. Safe with threads."""

    def __init__(self, options: Options) -> None:
        self._tls = options.tls
        self._lock = Lock()
        self._closed = False
        self._channels: dict[str, grpc.Channel] = {}
        self._callees: dict[tuple[str, str], Callee] = {}

    def call(self, call: Call) -> Any:
        """The answer's message, or a `Failure`."""
        try:
            return self._callee(call.endpoint, call.method)(call.message, timeout=call.seconds)
        except grpc.RpcError as error:
            return failure_of(call.endpoint, error)
        except (ClientClosed, ValueError) as error:
            return self._closed_or_raise(error)

    def together(self, calls: list[Call]) -> list[Any]:
        """As `call`, several at once."""
        futures = []
        try:
            for call in calls:
                callee: Any = self._callee(call.endpoint, call.method)
                futures.append(callee.future(call.message, timeout=call.seconds))
        except (ClientClosed, ValueError) as error:
            # Those that are on their way will not be waited for: the client is closed.
            failure = self._closed_or_raise(error)
            failure.definite = not futures
            return [failure] * len(calls)
        answers: list[Any] = []
        for call, future in zip(calls, futures, strict=True):
            try:
                answers.append(future.result())
            except grpc.RpcError as error:
                answers.append(failure_of(call.endpoint, error))
            except grpc.FutureCancelledError:
                answers.append(closed(sent=True))
        return answers

    def open_stream(self, endpoint: str, requests: Iterator[kv_pb2.PipelineRequest]) -> "GrpcioStream":
        """A pipeline. `requests` is read by gRPC's own thread."""
        callee = self._channel(endpoint).stream_stream(
            ops.PIPELINE_PATH,
            request_serializer=serialize,
            response_deserializer=kv_pb2.PipelineResponse.FromString,
        )
        return GrpcioStream(endpoint, callee(requests))

    def close(self) -> None:
        """Closes every channel; calls in flight end."""
        with self._lock:
            self._closed = True
            channels = list(self._channels.values())
            self._channels.clear()
            self._callees.clear()
        for channel in channels:
            channel.close()

    def _callee(self, endpoint: str, method: Method) -> Callee:
        callee = self._callees.get((endpoint, method.path))
        if callee is None:
            channel = self._channel(endpoint)
            callee = channel.unary_unary(method.path, request_serializer=serialize, response_deserializer=method.parse)
            self._callees[endpoint, method.path] = callee
        return callee

    def _channel(self, endpoint: str) -> grpc.Channel:
        with self._lock:
            channel = self._channels.get(endpoint)
            if channel is None:
                if self._closed:
                    raise ClientClosed("the client is closed")
                if self._tls is None:
                    channel = grpc.insecure_channel(endpoint, CHANNEL_OPTIONS)
                else:
                    channel = grpc.secure_channel(endpoint, credentials_of(self._tls), CHANNEL_OPTIONS)
                self._channels[endpoint] = channel
            return channel

    def _closed_or_raise(self, error: Exception) -> Failure:
        """grpcio says ValueError where a channel is closed: then nothing was sent."""
        if not self._closed:
            raise error
        return closed(sent=False)


class GrpcioStream:
    """One pipeline's stream."""

    def __init__(self, endpoint: str, call: Any) -> None:
        self._endpoint = endpoint
        self._call = call
        self.failure: Failure | None = None

    def __iter__(self) -> Iterator[kv_pb2.PipelineResponse]:
        try:
            yield from self._call
        except grpc.RpcError as error:
            self.failure = failure_of(self._endpoint, error)

    def cancel(self) -> None:
        """Ends it, from any thread."""
        self._call.cancel()


def credentials_of(tls: Tls) -> grpc.ChannelCredentials:
    """gRPC's credentials from the files. Raises: `ConfigError`."""
    client_context(tls)  # gRPC would go on with files that it cannot use, and fail at every connection
    ca, cert, key = (Path(path).expanduser().read_bytes() if path else None for path in (tls.ca, tls.cert, tls.key))
    return grpc.ssl_channel_credentials(root_certificates=ca, private_key=key, certificate_chain=cert)


def serialize(message: Any) -> bytes:
    """A message as bytes."""
    data: bytes = message.SerializeToString()
    return data


def failure_of(endpoint: str, error: grpc.RpcError) -> Failure:
    """What an error of grpcio means."""
    # What a call raises is a `grpc.Call` as well, which the stubs do not say.
    call = cast(grpc.Call, error)
    return failure_of_grpcio(endpoint, call.code(), call.details(), cast(Metadata | None, call.trailing_metadata()))


def failure_of_grpcio(endpoint: str, code: grpc.StatusCode, message: str | None, trailers: Metadata | None) -> Failure:
    """What a status of grpcio means."""
    details = next((value for key, value in trailers or () if key == DETAILS_TRAILER), b"")
    if code is grpc.StatusCode.UNAVAILABLE and (message or "").startswith(NEVER_CONNECTED):
        return never_sent(endpoint, message or "")
    number: int = code.value[0]
    return failure_of_status(endpoint, number, message or "", details if isinstance(details, bytes) else b"")
