"""Does what flows ask for, with grpcio and threads. Decides nothing.

One `SyncDriver` belongs to one process: a forked child makes its own, and lets its parent's alone.
"""

import os
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from threading import Event, Lock
from typing import Any, TypeVar, cast

import grpc

from raftcache.client.course import Core
from raftcache.client.errors import ClientClosed
from raftcache.client.failure import Failure, Metadata, failure_of_status
from raftcache.client.flows import close_sessions
from raftcache.client.ops import Method
from raftcache.client.options import CHANNEL_OPTIONS, Options, Tls
from raftcache.client.sessions import Sessions
from raftcache.client.steps import Call, Flow, Pause, Together, Wait
from raftcache.clock import SystemClock
from raftcache.errors import ConfigError

T = TypeVar("T")

Callee = Callable[..., Any]


def new_core(options: Options, new_waiter: Callable[[], Any]) -> Core:
    """What the flows of one client in one process share."""
    sessions = Sessions(new_waiter) if options.sessions else None
    # Clients that start together must not pause together.
    return Core(options, sessions, SystemClock(), Random(int.from_bytes(os.urandom(8), "big")))


def credentials_of(tls: Tls) -> grpc.ChannelCredentials:
    """gRPC's credentials from the files. Raises: `ConfigError` for one that cannot be read, or is not what it should be."""
    try:
        ca, cert, key = (Path(path).expanduser().read_bytes() if path else None for path in (tls.ca, tls.cert, tls.key))
    except OSError as error:
        raise ConfigError(f"cannot read {error.filename!r} for TLS: {error.strerror}") from error
    _check(tls)
    return grpc.ssl_channel_credentials(root_certificates=ca, private_key=key, certificate_chain=cert)


def _check(tls: Tls) -> None:
    """gRPC would go on with files that it cannot use, and fail at every connection. Raises: `ConfigError`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if tls.ca is not None:
        try:
            context.load_verify_locations(Path(tls.ca).expanduser())
        except ssl.SSLError as error:
            raise ConfigError(f"{tls.ca!r} has no certificate of an authority in PEM form") from error
    if tls.cert is not None and tls.key is not None:
        try:
            context.load_cert_chain(Path(tls.cert).expanduser(), Path(tls.key).expanduser(), password="")
        except ssl.SSLError as error:
            raise ConfigError(f"{tls.cert!r} and {tls.key!r} are no certificate and its key in PEM form") from error


class SyncDriver:
    """Runs flows in the caller's thread. Safe with threads."""

    def __init__(self, options: Options) -> None:
        self.core = new_core(options, Event)
        self.process_id = os.getpid()
        self._tls = options.tls
        self._lock = Lock()
        self._channels: dict[str, grpc.Channel] = {}
        self._callees: dict[tuple[str, str], Callee] = {}

    def run(self, flow: Flow[T]) -> T:
        """Runs a flow to its end. Raises what it raises."""
        answer: Any = None
        try:
            while True:
                step = flow.send(answer)
                kind = type(step)
                if kind is Call:
                    answer = self._call(cast(Call, step))
                else:
                    answer = self._others(step)
        except StopIteration as stop:
            result: T = stop.value
            return result
        finally:
            flow.close()

    def channel(self, endpoint: str) -> grpc.Channel:
        """The one channel to an endpoint. Raises: `ClientClosed`."""
        with self._lock:
            channel = self._channels.get(endpoint)
            if channel is None:
                if self.core.closed:
                    raise ClientClosed("the client is closed")
                if self._tls is None:
                    channel = grpc.insecure_channel(endpoint, CHANNEL_OPTIONS)
                else:
                    channel = grpc.secure_channel(endpoint, credentials_of(self._tls), CHANNEL_OPTIONS)
                self._channels[endpoint] = channel
            return channel

    def close(self) -> None:
        """Says goodbye and closes every channel; calls in flight end. May be called again."""
        core = self.core
        if not core.closed and core.sessions is not None:
            self.run(close_sessions(core, core.sessions.idle()))
        with self._lock:
            core.closed = True
            channels = list(self._channels.values())
            self._channels.clear()
            self._callees.clear()
        for channel in channels:
            channel.close()

    def _call(self, call: Call) -> Any:
        try:
            return self._callee(call.endpoint, call.method)(call.message, timeout=call.seconds)
        except grpc.RpcError as error:
            return failure_of(call.endpoint, error)
        except (ClientClosed, ValueError) as error:
            return _closed_or_raise(self.core, error)

    def _others(self, step: Call | Together | Pause | Wait) -> Any:
        match step:
            case Together(calls):
                return self._together(calls)
            case Pause(seconds):
                time.sleep(seconds)
            case Wait(waiter, seconds):
                cast(Event, waiter).wait(seconds)
            case Call():
                return self._call(step)
        return None

    def _together(self, calls: list[Call]) -> list[Any]:
        futures = []
        try:
            for call in calls:
                callee: Any = self._callee(call.endpoint, call.method)
                futures.append(callee.future(call.message, timeout=call.seconds))
        except (ClientClosed, ValueError) as error:
            # Those that are on their way will not be waited for: the client is closed.
            failure = _closed_or_raise(self.core, error)
            failure.definite = not futures
            return [failure] * len(calls)
        answers = []
        for call, future in zip(calls, futures, strict=True):
            try:
                answers.append(future.result())
            except grpc.RpcError as error:
                answers.append(failure_of(call.endpoint, error))
            except grpc.FutureCancelledError:
                answers.append(
                    failure_of_status(call.endpoint, grpc.StatusCode.CANCELLED, "the client was closed", None)
                )
        return answers

    def _callee(self, endpoint: str, method: Method) -> Callee:
        callee = self._callees.get((endpoint, method.path))
        if callee is None:
            channel = self.channel(endpoint)
            callee = channel.unary_unary(method.path, request_serializer=serialize, response_deserializer=method.parse)
            self._callees[endpoint, method.path] = callee
        return callee


def serialize(message: Any) -> bytes:
    """A message as bytes."""
    data: bytes = message.SerializeToString()
    return data


def failure_of(endpoint: str, error: grpc.RpcError) -> Failure:
    """What an error of grpcio means."""
    # What a call raises is a `grpc.Call` as well, which the stubs do not say.
    call = cast(grpc.Call, error)
    return failure_of_status(endpoint, call.code(), call.details(), cast(Metadata | None, call.trailing_metadata()))


def _closed_or_raise(core: Core, error: Exception) -> Failure:
    """grpcio says ValueError where a channel is closed: then nothing was sent."""
    if not core.closed:
        raise error
    return Failure(ClientClosed("the client is closed"), definite=True, again=False)
