"""The front on grpcio's asyncio server: a setting (`front.kind`), and the oracle that the fast front is compared with.

    grpc.aio ─ one coroutine per call ─► _calls ─ once per loop turn ─► handlers
                     future of the call ◄─ deliver ◄──────────────────────┘

Rules of this file:
- grpcio is known here and nowhere above: what leaves it are bytes, deadlines and `Peer`s;
- the one future per call lives and dies here. All calls of one loop turn are handed over in one list for each service;
- methods are found by a generic handler, with raw bytes both ways. No interceptors, and no methods registered with the
  core: each would cost every call something (for registered ones, a task that is waited on beside all the others);
- streams are async generators: interceptors that wrap the server from outside break the other style;
- a bug above us must not leave callers waiting: who is not answered gets INTERNAL, which promises nothing, and `on_bug` is
  told.

Limits: calls in flight, streams per connection, connections and message size. grpcio refuses the last three by itself, without
our details: a message beyond `message_bytes_max` is RESOURCE_EXHAUSTED, a connection beyond `connections_max` is closed.

Caveats: grpcio turns a caller's timeout into a wall-clock time and back, so a wall clock that is set makes the deadlines of
calls in flight wrong by as much. It costs some 125 us per call, whatever is done here.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from raftcache.clock import NS_PER_SECOND, Clock
from raftcache.edge.front import (
    NO_DEADLINE,
    Answer,
    AwaitedMethod,
    Call,
    Handlers,
    Refusal,
    Stream,
    StreamService,
    UnaryService,
)
from raftcache.edge.front_config import (
    BUG,
    KEEPALIVE_TIME_MS,
    KEEPALIVE_TIMEOUT_MS,
    LIVENESS,
    READINESS,
    FrontConfig,
    TlsFiles,
    cannot_listen,
    overloaded,
    stopping,
)
from raftcache.errors import RaftCacheError
from raftcache.wire.grpc_wire import DETAILS_TRAILER, INTERNAL

PING_INTERVAL_MIN_MS = 5_000
"""How often clients may ping: they need 20 to 30 s through NAT and load balancers, and grpcio's default, 5 min, would
cut them off as abusive."""

_CODES = {code.value[0]: code for code in grpc.StatusCode}
_DETAILS_TRAILER = DETAILS_TRAILER.decode()
_BUG = Refusal(INTERNAL, BUG)

_Context = grpc.aio.ServicerContext[bytes, bytes]
_MethodHandler: TypeAlias = "grpc.RpcMethodHandler[bytes, bytes]"


class GrpcioPeer:
    """Who calls, as grpcio tells it."""

    __slots__ = ("_context",)

    def __init__(self, context: _Context) -> None:
        self._context = context

    @property
    def address(self) -> str:
        """As in `ipv4:127.0.0.1:40000`."""
        return self._context.peer()

    @property
    def identities(self) -> Sequence[str]:
        """Subject alternative names, or else the common name."""
        return [identity.decode("utf-8", "replace") for identity in self._context.peer_identities() or ()]

    @property
    def metadata(self) -> Mapping[str, str | bytes]:
        """The call's metadata."""
        return {str(key): value for key, value in self._context.invocation_metadata() or ()}


class GrpcFront:
    """A grpcio server over `Handlers`. Is the `CallSink` of its calls."""

    def __init__(
        self,
        handlers: Handlers,
        config: FrontConfig,
        clock: Clock,
        on_ended: Callable[[str, str, int], None] = lambda method, code, took_ns: None,
        on_bug: Callable[[Exception], None] = lambda error: None,
    ) -> None:
        """`on_ended` is told of every unary call that could be read, also where the front answers by itself: its method without
        the service, the gRPC code (CANCELLED: its connection or the client gave it up), nanoseconds. `on_bug` gets what a handler
        raised, which it must not."""
        self._on_ended = on_ended
        self._on_bug = on_bug
        self.handlers = handlers
        self._config = config
        self._clock = clock
        self._submits = handlers.attach(self)
        """By `id` of the service, which the handlers keep alive."""
        self._calls: dict[int, list[Call]] = {}
        """Calls of this loop turn, by service; empty = no flush is scheduled."""
        self._streams: set[_GrpcioStream] = set()
        self._in_flight = 0
        self._stopping = False
        self._server: grpc.aio.Server | None = None
        self._health: Any = None  # grpc_health has no types
        self.port = 0
        """The port that is listened on; 0 before `start`."""

    @property
    def in_flight(self) -> int:
        """Calls and streams that are not answered."""
        return self._in_flight

    async def start(self) -> None:
        """Listens. Nothing is reported healthy but liveness until `set_serving`.

        Raises: `ConfigError` if the address cannot be listened on (in use, not of this machine, not allowed).
        """
        config = self._config
        server = grpc.aio.server(options=_options(config))
        self._health = health.aio.HealthServicer()
        for name in (*self.handlers.health_names, READINESS):
            await self._health.set(name, health_pb2.HealthCheckResponse.NOT_SERVING)
        await self._health.set(LIVENESS, health_pb2.HealthCheckResponse.SERVING)
        generic: list[grpc.GenericRpcHandler] = [_Methods(self._method_handlers())]
        registry = _GenericOnly(generic)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, registry)
        if config.reflection:
            names = (*self.handlers.services, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection_pb2_grpc.add_ServerReflectionServicer_to_server(
                reflection.aio.ReflectionServicer(names), registry
            )
        server.add_generic_rpc_handlers(tuple(generic))
        try:
            if config.tls is None:
                self.port = server.add_insecure_port(config.address)
            else:
                self.port = server.add_secure_port(config.address, _credentials(config.tls))
        except RuntimeError as error:
            raise cannot_listen(config.address, error) from error
        await server.start()
        self._server = server

    async def set_serving(self, serving: bool, *names: str) -> None:
        """Sets the health of `names`; of the services, "" and readiness if none is given. Liveness is never tied to them."""
        status = health_pb2.HealthCheckResponse
        for name in names or (*self.handlers.health_names, READINESS):
            await self._health.set(name, status.SERVING if serving else status.NOT_SERVING)

    async def stop(self, grace_s: float) -> None:
        """Says goodbye (GOAWAY), finishes what is in flight for up to `grace_s` seconds, cuts off the rest.

        Health turns to not serving first; streams are drained: what was read from them is answered, then they end.
        """
        server, self._server = self._server, None
        if server is None:
            return
        self._stopping = True
        await self._health.enter_graceful_shutdown()
        for stream in list(self._streams):
            stream.drain()
        await server.stop(grace_s)

    # --- Unary calls --------------------------------------------------------------------------------------------------

    def deliver(self, answers: list[Answer]) -> None:
        """Wakes the calls' coroutines."""
        for call, answer in answers:
            future = call.token
            assert isinstance(future, asyncio.Future), f"the token of a call came back as {future!r}"
            # A caller that hung up has cancelled its future.
            if not future.done():
                future.set_result(answer)

    def _flush(self) -> None:
        calls, self._calls = self._calls, {}
        for service, batch in calls.items():
            try:
                self._submits[service](batch)
            except Exception as error:  # noqa: BLE001 - the supervisor of handlers: one call's bug leaves no caller waiting
                self._on_bug(error)
                # Some of them may be on their way: those are answered twice, and the first answer counts.
                refusal = self.handlers.refusal(RaftCacheError(BUG))
                self.deliver([(call, refusal) for call in batch])

    def _method_handlers(self) -> dict[str, _MethodHandler]:
        handlers: dict[str, _MethodHandler] = {}
        unary = {method: self._gathering(service) for method, service in self.handlers.unary.items()}
        for method, answer in {**unary, **self.handlers.awaited}.items():
            handlers[method] = grpc.unary_unary_rpc_method_handler(self._unary(method, answer))
        for method, streamed in self.handlers.streams.items():
            handlers[method] = grpc.stream_stream_rpc_method_handler(self._stream(method, streamed))
        return handlers

    def _gathering(self, service: UnaryService) -> AwaitedMethod:
        """The calls of a unary service as if they were awaited: each waits for `deliver`."""
        key, loop = id(service), asyncio.get_running_loop()

        async def answer(call: Call) -> bytes | Refusal:
            call.token = future = loop.create_future()
            if not self._calls:
                loop.call_soon(self._flush)
            self._calls.setdefault(key, []).append(call)
            answer: bytes | Refusal = await future
            return answer

        return answer

    def _unary(self, method: str, answer: AwaitedMethod) -> Callable[..., Any]:
        name, monotonic_ns, on_ended = method.rpartition("/")[2], self._clock.monotonic_ns, self._on_ended

        async def handle(message: bytes, context: _Context) -> bytes:
            began_ns = monotonic_ns()
            try:
                reply = await self._reply(self._call(method, message, context), answer)
            except asyncio.CancelledError:
                on_ended(name, grpc.StatusCode.CANCELLED.name, monotonic_ns() - began_ns)
                raise
            code = _CODES[reply.code].name if isinstance(reply, Refusal) else "OK"
            on_ended(name, code, monotonic_ns() - began_ns)
            if isinstance(reply, Refusal):
                await self._refuse(context, reply)
            assert isinstance(reply, bytes), reply
            return reply

        return handle

    async def _reply(self, call: Call, answer: AwaitedMethod) -> bytes | Refusal:
        if self._in_flight >= self._config.in_flight_max:
            return self._overloaded()
        self._in_flight += 1
        try:
            return await answer(call)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            self._on_bug(RuntimeError(f"{call.method} was cancelled from within: {error!r}"))
            return _BUG
        except Exception as error:  # noqa: BLE001 - the supervisor of handlers: one call's bug leaves no caller waiting
            self._on_bug(error)
            return _BUG
        finally:
            self._in_flight -= 1

    def _call(self, method: str, message: bytes, context: _Context) -> Call:
        deadline_ns = _deadline_ns(context.time_remaining(), self._clock.monotonic_ns())
        return Call(method, message, deadline_ns, GrpcioPeer(context), None)

    def _overloaded(self) -> Refusal:
        return self.handlers.refusal(overloaded(self._in_flight, self._config.in_flight_max))

    async def _refuse(self, context: _Context, refusal: Refusal) -> None:
        """Ends the call; raises what grpcio ends coroutines with."""
        trailers = ((_DETAILS_TRAILER, refusal.details),) if refusal.details else ()
        await context.abort(_CODES[refusal.code], refusal.message, trailers)

    # --- Streams ------------------------------------------------------------------------------------------------------

    def _stream(self, method: str, service: StreamService) -> Callable[..., Any]:
        async def handle(requests: AsyncIterator[bytes], context: _Context) -> AsyncIterator[bytes]:
            if self._in_flight >= self._config.in_flight_max:
                await self._refuse(context, self._overloaded())
            if self._stopping:
                await self._refuse(context, self.handlers.refusal(stopping()))
            stream = _GrpcioStream(self._on_bug)
            try:
                stream.open(service.open(self._call(method, b"", context), stream))
            except Exception as error:  # noqa: BLE001 - the supervisor of handlers: one stream's bug leaves no caller waiting
                self._on_bug(error)
                await self._refuse(context, _BUG)
            self._streams.add(stream)
            self._in_flight += 1
            # The one task outside of a TaskGroup: a generator must not hold a group open across a `yield`. It is named,
            # held here, and ends with the stream in every case.
            reader = asyncio.get_running_loop().create_task(stream.read(requests), name=f"read {method}")
            try:
                # grpcio only drops the generator of a call that was cut off; its `finally` may run much later.
                on_done: Any = partial(_cut_off, stream, reader)  # the stubs ask for a parameter's name
                context.add_done_callback(on_done)
                while await stream.has_outgoing():
                    yield stream.next_outgoing()
                    stream.taken()
            finally:
                stream.cut_off(reader)
                self._streams.discard(stream)
                self._in_flight -= 1
            if stream.refusal is not None:
                await self._refuse(context, stream.refusal)

        return handle


class _GrpcioStream:
    """One stream between grpcio's coroutines and the handlers. Is the `StreamSink` of its `Stream`."""

    def __init__(self, on_bug: Callable[[Exception], None]) -> None:
        self._on_bug = on_bug
        self._handler: Stream | None = None
        self._outgoing: deque[bytes] = deque()
        self._wake_writer = asyncio.Event()
        self._wake_reader = asyncio.Event()
        self._finished = False
        self.refusal: Refusal | None = None
        """How the stream ends, once it is finished."""

    def open(self, handler: Stream) -> None:
        """Joins the handler's end, which was made with this one."""
        self._handler = handler

    def send(self, messages: list[bytes]) -> None:
        """Queues messages; bounded by the handler's window."""
        self._outgoing.extend(messages)
        self._wake_writer.set()

    def finish(self, refusal: Refusal | None) -> None:
        """Ends the stream behind what is queued."""
        self.refusal = refusal
        self._finished = True
        self._wake_writer.set()

    def resume(self) -> None:
        """The window has room again."""
        self._wake_reader.set()

    def drain(self) -> None:
        """The server is stopping."""
        assert self._handler is not None
        self._handler.drain()

    def cut_off(self, reader: asyncio.Task[None]) -> None:
        """The stream is over, whatever the reason."""
        assert self._handler is not None
        reader.cancel()
        self._handler.cancel()

    async def read(self, requests: AsyncIterator[bytes]) -> None:
        """Reads while the window has room; runs as a task of its own."""
        handler = self._handler
        assert handler is not None
        try:
            async for message in requests:
                handler.receive([message])
                while not handler.reading and not self._finished:
                    self._wake_reader.clear()
                    await self._wake_reader.wait()
            handler.half_close()
        except (grpc.aio.AbortError, grpc.aio.UsageError):
            # The call ended while a read was under way; its own coroutine knows how.
            return
        except Exception as error:  # noqa: BLE001 - the supervisor of handlers: one stream's bug leaves no caller waiting
            self._on_bug(error)
            handler.cancel()
            # Without details: with them, the status would say that what is not answered had no effect.
            self.finish(_BUG)

    async def has_outgoing(self) -> bool:
        """Waits for a message to send; false when the stream is finished and all are sent."""
        while not self._outgoing:
            if self._finished:
                return False
            self._wake_writer.clear()
            await self._wake_writer.wait()
        return True

    def next_outgoing(self) -> bytes:
        """The message to send next."""
        return self._outgoing.popleft()

    def taken(self) -> None:
        """grpcio has taken the last one."""
        assert self._handler is not None
        self._handler.sent(1)


class _Methods(grpc.GenericRpcHandler):
    """Finds methods by their full names."""

    def __init__(self, handlers: dict[str, _MethodHandler]) -> None:
        self._handlers = handlers

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "_MethodHandler | None":
        return self._handlers.get(handler_call_details.method)


class _GenericOnly:
    """What generated `add_..._to_server` functions see in place of a server: keeps their generic handlers alone.

    They would also register each method with the core, for which grpcio's server waits in a task per method.
    """

    def __init__(self, handlers: list[grpc.GenericRpcHandler]) -> None:
        self._handlers = handlers

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        self._handlers.extend(generic_rpc_handlers)

    def add_registered_method_handlers(self, service_name: str, method_handlers: object) -> None:
        return


def _cut_off(stream: _GrpcioStream, reader: asyncio.Task[None], _: object) -> None:
    stream.cut_off(reader)


def _deadline_ns(remaining_s: float | None, now_ns: int) -> int:
    # grpcio's stubs do not say so, but a call without a deadline has None left.
    return NO_DEADLINE if remaining_s is None else now_ns + int(remaining_s * NS_PER_SECOND)


def _options(config: FrontConfig) -> list[tuple[str, int]]:
    return [
        # A second process on the same port would silently take half of the connections.
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", config.message_bytes_max),
        # Replies are bounded by the limits of their requests; a second bound could only cut off what was agreed.
        ("grpc.max_send_message_length", -1),
        ("grpc.max_concurrent_streams", config.streams_per_connection_max),
        ("grpc.max_allowed_incoming_connections", config.connections_max),
        ("grpc.keepalive_time_ms", KEEPALIVE_TIME_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", PING_INTERVAL_MIN_MS),
    ]


def _credentials(tls: TlsFiles) -> grpc.ServerCredentials:
    return grpc.ssl_server_credentials(
        [(tls.private_key, tls.certificate_chain)],
        root_certificates=tls.client_authorities or None,
        require_client_auth=bool(tls.client_authorities),
    )
