"""The fast front: HTTP/2 and gRPC in Python, without a task, a future or a lock per call.

    connections ─ calls of one loop turn ─► one list per service ─► handlers
    connections ◄─ one write each ◄─ deliver ◄─ lists of answers ──┘

Rules of this file:
- HTTP/2 is in `http2`, gRPC's bytes in `grpc_wire`, calls in `fast_calls`; here is what connections share: the turn, limits,
  time, and how the whole starts and stops;
- what happens in a turn is gathered and done once at its end: calls are handed over, streams are told what was sent and read
  on, connections are flushed;
- nothing here trusts a client. When all connections together hold more than `buffered_bytes_max`, the one that holds most is
  closed, and the others do not notice (Redis evicts its clients in the same way);
- a bug above us must not leave callers waiting: who is not answered gets INTERNAL, and `on_bug` is told.
"""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from raftcache.clock import NS_PER_MS, Clock
from raftcache.config.rules import parse_address
from raftcache.edge.fast_calls import StreamCall, UnaryCall
from raftcache.edge.fast_connection import FastConnection
from raftcache.edge.front import (
    Answer,
    AwaitedMethod,
    Call,
    Handlers,
    Refusal,
    StreamService,
    UnaryService,
)
from raftcache.edge.front_config import (
    BUG,
    LIVENESS,
    READINESS,
    FrontConfig,
    cannot_listen,
    overloaded,
    stopping,
)
from raftcache.edge.health import Health
from raftcache.edge.reflection import Reflection
from raftcache.edge.server_tls import server_context
from raftcache.errors import RaftCacheError
from raftcache.wire import grpc_wire

LOOK_SECONDS: Final = 0.25
"""Between looks at deadlines; handlers look at them more often, and know better what has happened."""
LOOKS_PER_HOUSEKEEPING: Final = 4
TLS_HANDSHAKE_SECONDS: Final = 10.0
BACKLOG: Final = 1_024
AGE_SPREAD: Final = 16
"""Connections that began together end in as many groups, over a tenth of their age."""


@dataclass(frozen=True, slots=True, eq=False)
class Route:
    """What a method is. One of `service`, `awaited` and `streamed` is set."""

    name: str
    """Without the service, for metrics."""
    service: UnaryService | None = None
    awaited: AwaitedMethod | None = None
    streamed: StreamService | None = None
    calls: list[Call] = field(default_factory=list)
    """Of a unary service, those of this turn; one list for all its methods."""


class FastFront:
    """A gRPC server over `Handlers`. Is the `CallSink` of its calls."""

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
        self.config = config
        self.clock = clock
        self.on_bug = on_bug
        self.message_bytes_max = config.message_bytes_max
        self.in_flight_max = config.in_flight_max
        self.in_flight = 0
        """Calls and streams that are not answered."""
        self.port = 0
        """The port that is listened on; 0 before `start`."""
        self.on_ended = on_ended
        self.handlers = handlers
        self._submits = handlers.attach(self)
        """By `id` of the service, which the handlers keep alive."""
        self._calls: dict[int, list[Call]] = {service: [] for service in self._submits}
        """The unary calls of this turn, by service in the same way."""
        self._health = Health((*self.handlers.health_names, READINESS), LIVENESS)
        self.routes = self._all_routes()
        self.no_route = Route("unknown")
        self._connections: dict[FastConnection, None] = {}
        """In the order in which they came."""
        self._welcomed = 0
        self._held = 0
        """Bytes that all connections hold."""
        self._server: asyncio.Server | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._looks = 0
        self._look: asyncio.TimerHandle | None = None
        self._stopping = False
        self._gone = asyncio.Event()
        """Set while there are no connections and the front is stopping."""

        # Of this turn; `_on_turn` is scheduled while one of them, or of `_calls`, is not empty.
        self._scheduled = False
        self._touched: dict[FastConnection, None] = {}
        self._resumed: list[StreamCall] = []

    def _all_routes(self) -> dict[str, Route]:
        handlers, health = self.handlers, self._health
        streams: dict[str, StreamService] = dict(handlers.streams) | health.streams()
        awaited: dict[str, AwaitedMethod] = dict(handlers.awaited) | health.awaited()
        if self.config.reflection:
            streams |= Reflection((*handlers.services, *health.services)).streams()
        routes = {
            name: Route(_short(name), service=service, calls=self._calls[id(service)])
            for name, service in handlers.unary.items()
        }
        routes |= {name: Route(_short(name), awaited=method) for name, method in awaited.items()}
        routes |= {name: Route(_short(name), streamed=service) for name, service in streams.items()}
        return routes

    # --- Start and stop -----------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Listens. Nothing is reported healthy but liveness until `set_serving`.

        Raises: `ConfigError` if the address cannot be listened on (in use, not of this machine, not allowed).
        """
        config = self.config
        host, port = parse_address(config.address)
        loop = self._loop = asyncio.get_running_loop()
        tls = None if config.tls is None else server_context(config.tls)
        try:
            self._server = await loop.create_server(
                lambda: FastConnection(self),
                host or None,
                port,
                ssl=tls,
                backlog=BACKLOG,
                # A second process on the same port would silently take half of the connections.
                reuse_port=False,
                ssl_handshake_timeout=None if tls is None else TLS_HANDSHAKE_SECONDS,
            )
        except OSError as error:
            raise cannot_listen(config.address, error.strerror) from error
        self.port = _port_of(self._server)
        self._look = loop.call_later(LOOK_SECONDS, self._on_look)

    async def set_serving(self, serving: bool, *names: str) -> None:
        """Sets the health of `names`; of the services, "" and readiness if none is given. Liveness is never tied to them."""
        self._health.set(serving, names or (*self.handlers.health_names, READINESS))

    async def stop(self, grace_s: float) -> None:
        """Says goodbye (GOAWAY), finishes what is in flight for up to `grace_s` seconds, cuts off the rest.

        Health turns to not serving first; streams are drained: what was read from them is answered, then they end.
        """
        server, self._server = self._server, None
        if server is None:
            return
        server.close()
        self._stopping = True
        self._health.shut_down()
        now_ns = self.clock.monotonic_ns()
        for connection in list(self._connections):
            for call in connection.calls():
                if isinstance(call, StreamCall):
                    call.drain()
            connection.leave(now_ns)
        if self._connections:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace_s):
                    await self._gone.wait()
        for connection in list(self._connections):
            connection.abort()
        if self._connections:
            # An aborted transport reports its end in the loop's next round.
            await self._gone.wait()
        if self._look is not None:
            self._look.cancel()

    # --- Connections --------------------------------------------------------------------------------------------------

    def welcome(self, connection: FastConnection) -> bool:
        """A new connection; false if it cannot be had."""
        if self._stopping or len(self._connections) >= self.config.connections_max:
            return False
        self._connections[connection] = None
        self._welcomed += 1
        connection.number = self._welcomed
        return True

    def farewell(self, connection: FastConnection) -> None:
        """A connection is gone."""
        self._connections.pop(connection, None)
        self._held -= connection.charged
        connection.charged = 0
        if self._stopping and not self._connections:
            self._gone.set()

    def charge(self, connection: FastConnection, held: int) -> None:
        """The connection holds `held` bytes now."""
        self._held += held - connection.charged
        connection.charged = held
        if self._held > self.config.buffered_bytes_max:
            self.schedule()

    def _evict(self) -> None:
        while self._held > self.config.buffered_bytes_max and self._connections:
            largest = max(self._connections, key=lambda connection: connection.charged)
            if not largest.charged:
                break
            largest.evict()  # settles its account

    def _on_look(self) -> None:
        """Deadlines at each look, connections at every few."""
        assert self._loop is not None
        self._look = self._loop.call_later(LOOK_SECONDS, self._on_look)
        now_ns = self.clock.monotonic_ns()
        for connection in list(self._connections):
            if connection.http2.streams:
                connection.expire(now_ns)
        self._looks += 1
        if self._looks % LOOKS_PER_HOUSEKEEPING:
            return
        age_ns = self.config.connection_age_max_ms * NS_PER_MS
        for connection in list(self._connections):
            connection.look_after(now_ns)
            if age_ns:
                if now_ns - connection.born_ns > age_ns * (1 + connection.number % AGE_SPREAD / (AGE_SPREAD * 10)):
                    connection.leave(now_ns)

    # --- The turn -----------------------------------------------------------------------------------------------------

    def touch(self, connection: FastConnection) -> None:
        """The connection has something to write or to report."""
        self._touched[connection] = None
        self.schedule()

    def resume(self, call: StreamCall) -> None:
        """The stream's handler wants to read again."""
        self._resumed.append(call)
        self.schedule()

    def call_later(self, seconds: float, callback: Callable[[], None]) -> None:
        """Calls back in a later turn."""
        assert self._loop is not None
        self._loop.call_later(seconds, callback)

    def schedule(self) -> None:
        """Something of this turn is to be done at its end."""
        if not self._scheduled:
            assert self._loop is not None
            self._scheduled = True
            self._loop.call_soon(self._on_turn)

    def _on_turn(self) -> None:
        self._scheduled = False
        for service, calls in self._calls.items():
            if not calls:
                continue
            batch = calls.copy()
            calls.clear()
            try:
                self._submits[service](batch)
            except Exception as error:  # noqa: BLE001 - the supervisor of handlers: one call's bug leaves no caller waiting
                self.on_bug(error)
                # Some of them may be on their way: those are answered twice, and the first answer counts.
                refusal = self.handlers.refusal(RaftCacheError(BUG))
                self.deliver([(call, refusal) for call in batch])
        resumed, self._resumed = self._resumed, []
        for stream in resumed:
            stream.read()
            self._touched[stream.connection] = None
        touched, self._touched = self._touched, {}
        for connection in touched:
            taken = connection.http2.sender.taken
            if taken:
                reported, taken[:] = list(taken), []
                for http2_stream in reported:
                    if isinstance(http2_stream.call, StreamCall):
                        http2_stream.call.report_sent()
            connection.flush()
        if self._held > self.config.buffered_bytes_max:
            self._evict()

    # --- Answers ------------------------------------------------------------------------------------------------------

    def deliver(self, answers: list[Answer]) -> None:
        """Writes answers: one write for each connection."""
        now_ns, on_ended = self.clock.monotonic_ns(), self.on_ended
        connections: dict[FastConnection, None] = {}
        for each, answer in answers:
            call = each.token
            assert isinstance(call, UnaryCall), f"the token of a call came back as {call!r}"
            if call.over:
                continue
            call.over = True
            self.in_flight -= 1
            connection, stream = call.connection, call.stream
            connections[connection] = None
            stream.call = None
            if not isinstance(answer, Refusal) and connection.is_full:
                answer = connection.full_refusal()
            if isinstance(answer, Refusal):
                connection.refuse(stream, answer)
                code = grpc_wire.STATUS_NAMES[answer.code]
            else:
                connection.http2.sender.respond(stream, grpc_wire.OK_RESPONSE, grpc_wire.framed(answer))
                code = "OK"
            on_ended(call.route.name, code, now_ns - call.begun_ns)
        for connection in connections:
            connection.flush()

    def overloaded(self) -> Refusal:
        """At `in_flight_max`."""
        return self.handlers.refusal(overloaded(self.in_flight, self.in_flight_max))

    # --- Streams ------------------------------------------------------------------------------------------------------

    def stream_refusal(self) -> Refusal | None:
        """Why no stream can be had now."""
        if self.in_flight >= self.in_flight_max:
            return self.overloaded()
        return self.handlers.refusal(stopping()) if self._stopping else None

    def open(self, call: StreamCall) -> None:
        """Begins a stream."""
        assert call.route.streamed is not None, f"{call.head.method} is no stream"
        self.in_flight += 1
        try:
            call.open(call.route.streamed)
        except Exception as error:  # noqa: BLE001 - the supervisor of handlers: one stream's bug leaves no caller waiting
            self.on_bug(error)
            call.finish(Refusal(grpc_wire.INTERNAL, BUG))


def _port_of(server: Any) -> int:
    """Where it listens. uvloop's servers have a list of sockets where asyncio's have a tuple."""
    port: int = server.sockets[0].getsockname()[1]
    return port


def _short(method: str) -> str:
    return method.rpartition("/")[2]
