"""Calls of the fast front, each between its HTTP/2 stream and the handlers.

    HeadersReceived ─► a call, by the kind of its method
    DataReceived ────► on_data ─► MessageReader ─► handlers
    StreamReset ─────► on_reset

Rules of this file:
- a call is its own `Peer`, and a unary one its own token: nothing else is made for it but the contract's `Call`;
- a call is *over* once it is answered or reset; after that it does nothing, whoever still knows it;
- a request that arrives whole in one frame, as most do, is never buffered.

A call that expects a message larger than its stream's window asks its connection for room; see `FastConnection.want`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from raftcache.clock import NS_PER_MS, NS_PER_SECOND
from raftcache.edge.front import NO_DEADLINE, Call, Refusal, Stream, StreamService
from raftcache.edge.front_config import BUG
from raftcache.wire import grpc_wire
from raftcache.wire.grpc_wire import INTERNAL, MessageReader, RequestHead, WireError, whole_message

if TYPE_CHECKING:
    from raftcache.edge.fast_connection import FastConnection
    from raftcache.edge.fast_front import Route
    from raftcache.wire.http2_stream import Stream as Http2Stream

REQUEST_NS: Final = 60 * NS_PER_SECOND
"""For a unary request to arrive: 4 MiB in a minute are half a megabit per second."""
REFUSAL_SECONDS: Final = 0.05
"""How long a refusal waits for the end of its request: longer than most clients take that have one to send."""
ANSWER_GRACE_NS: Final = 500 * NS_PER_MS
"""Handlers answer by the caller's deadline themselves, and know whether anything was done. This long after it, the front does."""


class FastCall:
    """What calls of all kinds have. Is the `Peer` of its call."""

    __slots__ = (
        "begun_ns",
        "connection",
        "expires_ns",
        "head",
        "over",
        "promised",
        "reader",
        "route",
        "stream",
        "submitted",
    )

    def __init__(self, connection: FastConnection, stream: Http2Stream, head: RequestHead, route: Route) -> None:
        self.connection = connection
        self.stream = stream
        self.head = head
        self.route = route
        self.begun_ns = now_ns = connection.now_ns
        self.expires_ns = now_ns + REQUEST_NS
        """When the front gives the call up."""
        self.over = False
        self.submitted = False
        """The handlers have it."""
        self.reader: MessageReader | None = None
        self.promised = 0
        """Room that the connection has set aside for this call's large message."""

    @property
    def address(self) -> str:
        """As in `127.0.0.1:40000`."""
        return self.connection.address

    @property
    def identities(self) -> Sequence[str]:
        """Subject alternative names, or else the common name."""
        return self.connection.identities

    @property
    def metadata(self) -> Mapping[str, str | bytes]:
        """The call's metadata."""
        return grpc_wire.metadata_of(self.head.fields)

    @property
    def deadline_ns(self) -> int:
        """By the node's clock."""
        timeout_ns = self.head.timeout_ns
        return NO_DEADLINE if timeout_ns is None else self.begun_ns + timeout_ns

    def on_data(self, data: bytes, ended: bool) -> None:
        """Takes what has arrived."""
        raise NotImplementedError

    def on_reset(self) -> None:
        """The client or its connection is gone."""
        raise NotImplementedError

    def expire(self) -> None:
        """`expires_ns` has passed."""
        raise NotImplementedError

    def feed(self, data: bytes) -> MessageReader:
        """Buffers `data`, and counts it. Raises: `WireError`."""
        reader = self.reader
        if reader is None:
            reader = self.reader = MessageReader(self.connection.front.message_bytes_max, gzip=self.head.gzip)
        self.connection.buffered += len(data)
        reader.feed(data)
        return reader

    def release(self) -> None:
        """Drops what is buffered."""
        if self.reader is not None:
            self.connection.buffered -= self.reader.buffered
            self.reader = None
        if self.promised:
            self.connection.release(self)


class RefusedCall(FastCall):
    """A call that is refused for what its head says, or because of a limit.

    The refusal waits for the end of the request, if not for long: grpcio's asyncio client takes an answer that overtakes one of
    its own messages for a failure of its own, and reports INTERNAL in the status's place.
    """

    __slots__ = ("_refusal", "_waits")

    def __init__(
        self, connection: FastConnection, stream: Http2Stream, head: RequestHead, route: Route, refusal: Refusal
    ) -> None:
        super().__init__(connection, stream, head, route)
        self._refusal = refusal
        self._waits = False

    def on_data(self, data: bytes, ended: bool) -> None:
        if ended:
            self.expire()
        elif not self._waits:
            self._waits = True
            self.connection.front.call_later(REFUSAL_SECONDS, self._on_waited)

    def _on_waited(self) -> None:
        self.expire()
        self.connection.flush()

    def on_reset(self) -> None:
        self.over = True
        self.stream.call = None

    def expire(self) -> None:
        if not self.over:
            self.on_reset()
            self.connection.refuse(self.stream, self._refusal)


class UnaryCall(FastCall):
    """A call of a `UnaryService`."""

    __slots__ = ()

    def on_data(self, data: bytes, ended: bool) -> None:
        """Hands the request on when it is complete."""
        if self.over:
            return
        message = whole_message(data) if ended and self.reader is None else None
        if message is not None:
            self.submit(message)
            return
        try:
            reader = self.feed(data)
            if not ended:
                self.connection.want(self, reader.missing)
                return
            held = reader.buffered
            message = reader.next()
            self.connection.buffered -= held - reader.buffered
            if message is None or reader.buffered:
                raise WireError(INTERNAL, "the request is not exactly one message")
        except WireError as error:
            self.refuse(error.refusal)
            return
        self.release()
        self.submit(message)

    def submit(self, message: bytes) -> None:
        """The request is complete."""
        front = self.connection.front
        if front.in_flight >= front.in_flight_max:
            self.refuse(front.overloaded())
            return
        front.in_flight += 1
        self.submitted = True
        deadline_ns = self.deadline_ns
        self.expires_ns = deadline_ns + ANSWER_GRACE_NS
        self.hand_on(Call(self.head.method, message, deadline_ns, self, self))

    def hand_on(self, call: Call) -> None:
        """To the handlers, with the others of this turn."""
        calls = self.route.calls
        if not calls:
            self.connection.front.schedule()
        calls.append(call)

    def refuse(self, refusal: Refusal) -> None:
        """Answers in the handlers' place."""
        self.end()
        self.connection.refuse(self.stream, refusal)
        self._report(refusal.code)

    def on_reset(self) -> None:
        if not self.over:
            self.end()
            self._report(grpc_wire.CANCELLED)

    def _report(self, code: int) -> None:
        front = self.connection.front
        took_ns = front.clock.monotonic_ns() - self.begun_ns
        front.on_ended(self.route.name, grpc_wire.STATUS_NAMES[code], took_ns)

    def end(self) -> None:
        """The call is over."""
        if not self.over:
            self.over = True
            self.stream.call = (
                None  # a call and its stream know each other: without this, only a collection would free them
            )
            self.release()
            if self.submitted:
                self.connection.front.in_flight -= 1

    def expire(self) -> None:
        self.refuse(
            Refusal(grpc_wire.DEADLINE_EXCEEDED, "the deadline passed; the request may have been carried out or not")
            if self.submitted
            else Refusal(grpc_wire.DEADLINE_EXCEEDED, "the request did not arrive in time; nothing was done")
        )


class AwaitedCall(UnaryCall):
    """A call of an awaited method: a unary one whose handler has a task of its own."""

    __slots__ = ("_task",)

    def hand_on(self, call: Call) -> None:
        # Not in a TaskGroup: no coroutine lives as long as the front does. It is named, held here, and ends with the call.
        self._task = asyncio.get_running_loop().create_task(self._answer(call), name=f"serve {call.method}")

    async def _answer(self, call: Call) -> None:
        front = self.connection.front
        assert self.route.awaited is not None, f"{call.method} is not awaited"
        try:
            answer = await self.route.awaited(call)
        except asyncio.CancelledError as error:
            if self.over:
                raise
            front.on_bug(RuntimeError(f"{call.method} was cancelled from within: {error!r}"))
            answer = Refusal(INTERNAL, BUG)
        except Exception as error:  # noqa: BLE001 - the supervisor of handlers: one call's bug leaves no caller waiting
            front.on_bug(error)
            answer = Refusal(INTERNAL, BUG)
        front.deliver([(call, answer)])

    def end(self) -> None:
        if self.submitted and not self.over:
            self._task.cancel()
        super().end()


class StreamCall(FastCall):
    """A call of a `StreamService`. Is the `StreamSink` of its `Stream`."""

    __slots__ = ("_closed", "_ended", "_handler", "_head_sent")

    def __init__(self, connection: FastConnection, stream: Http2Stream, head: RequestHead, route: Route) -> None:
        super().__init__(connection, stream, head, route)
        self._handler: Stream | None = None
        self._head_sent = False
        self._ended = False
        """The client has sent all."""
        self._closed = False
        """... and the handler knows."""

    def open(self, service: StreamService) -> None:
        """Begins the stream."""
        self.expires_ns = self.deadline_ns
        self.feed(b"")
        self._handler = service.open(Call(self.head.method, b"", self.deadline_ns, self, self), self)
        if self.over:
            self._handler.cancel()

    # --- From the client ----------------------------------------------------------------------------------------------

    def on_data(self, data: bytes, ended: bool) -> None:
        if self.over:
            return
        self._ended = self._ended or ended
        try:
            self.feed(data)
        except WireError as error:
            self.finish(error.refusal)
            return
        self.read()

    def read(self) -> None:
        """Hands on what the handler wants to read, and lets the client send as much again."""
        handler = self._handler
        if self.over or handler is None:
            return
        try:
            self._read(handler)
        except WireError as error:
            self.finish(error.refusal)
        except Exception as error:  # noqa: BLE001 - the supervisor of handlers: one stream's bug leaves no caller waiting
            self.connection.front.on_bug(error)
            # Without details: with them, the status would say that what is not answered had no effect.
            self.finish(Refusal(INTERNAL, BUG))

    def _read(self, handler: Stream) -> None:
        reader = self.reader
        assert reader is not None, "a stream that is not over has a reader"
        while handler.reading and not self.over:
            held = reader.buffered
            message = reader.next()
            if message is None:
                break
            self.connection.buffered -= held - reader.buffered
            if self.promised:
                self.connection.release(self)
            handler.receive([message])
        if self.over:
            return
        if self._ended:
            if reader.missing and not self._closed:
                if reader.buffered:
                    raise WireError(INTERNAL, "the stream ends inside of a message")
                self._closed = True
                handler.half_close()
        elif handler.reading:
            self.connection.want(self, reader.missing)

    def on_reset(self) -> None:
        self._end()

    def expire(self) -> None:
        self.finish(Refusal(grpc_wire.DEADLINE_EXCEEDED, "the stream's deadline has passed"))

    # --- From the handler ---------------------------------------------------------------------------------------------

    def send(self, messages: list[bytes]) -> None:
        """Queues messages."""
        if self.over:
            return
        connection = self.connection
        if connection.is_full:
            self.finish(connection.full_refusal())
            return
        sender = connection.http2.sender
        if not self._head_sent:
            self._head_sent = True
            sender.send_headers(self.stream, grpc_wire.RESPONSE_HEAD)
        sender.send_data(self.stream, [grpc_wire.framed(message) for message in messages])
        connection.front.touch(connection)

    def finish(self, refusal: Refusal | None) -> None:
        """Ends the stream behind what is queued."""
        if self.over:
            return
        self._end()
        connection = self.connection
        if not self._head_sent and refusal is not None:
            connection.refuse(self.stream, refusal)
        else:
            sender = connection.http2.sender
            if not self._head_sent:
                sender.send_headers(self.stream, grpc_wire.RESPONSE_HEAD)
            trailers = grpc_wire.OK_TRAILERS if refusal is None else grpc_wire.trailers_of(refusal)
            sender.end(self.stream, trailers)
        connection.front.touch(connection)

    def resume(self) -> None:
        """The handler reads again. Later, not now: it is in the middle of something."""
        if not self.over:
            self.connection.front.resume(self)

    def report_sent(self) -> None:
        """Tells the handler what the transport has taken."""
        count, self.stream.chunks_taken = self.stream.chunks_taken, 0
        if count and not self.over and self._handler is not None:
            self._handler.sent(count)

    def drain(self) -> None:
        """The server is stopping."""
        if not self.over and self._handler is not None:
            self._handler.drain()

    def _end(self) -> None:
        if not self.over:
            self.over = True
            self.stream.call = None
            self.release()
            self.connection.front.in_flight -= 1
            if self._handler is not None:
                self._handler.cancel()
