"""One connection of the client's own transport: between asyncio's transport and the HTTP/2 state machine.

    begin ─► ClientConnection.open, sender.request ─► calls of this turn: one write
    data_received ─► ClientConnection.receive ─► events ─► calls ─► settled

Rules of this file:
- calls of one turn of the loop leave in one write, or in one for each `PIECES_MAX` of them;
- it knows of each call whether a byte of it was, or still may be, handed to the socket. A call is *definitely* without effect if
  neither is so, or if the node says that it has not looked at it. Everything else is lost, and its outcome unknown;
- one timer, for the sign of life.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING, Final, assert_never

from raftcache.client.failure import lost, never_sent, refused
from raftcache.client.fast_calls import STREAM_WINDOW, FastCall, StreamCall
from raftcache.clock import NS_PER_SECOND
from raftcache.version import VERSION
from raftcache.wire.grpc_reply import request_head, timeout_ms
from raftcache.wire.http2 import Http2Limits
from raftcache.wire.http2_client import ClientConnection
from raftcache.wire.http2_errors import CANCEL, NO_ERROR
from raftcache.wire.http2_sending import SHAPES_KEPT_MAX, RequestShape
from raftcache.wire.http2_stream import (
    ConnectionEnded,
    DataReceived,
    Event,
    HeadersReceived,
    PeerLeaving,
    PingAcknowledged,
    StreamRefused,
    StreamReset,
    TrailersReceived,
)

if TYPE_CHECKING:
    from raftcache.client.fast_channel import Channel

KEEPALIVE_SECONDS: Final = 20.0
"""Of silence, before we ask for a sign of life. Through NAT and load balancers idle connections die silently after some minutes, or
less; the server allows a ping every 5 s."""
KEEPALIVE_TIMEOUT_SECONDS: Final = 5.0
"""For it to come. A node that vanished is noticed after 25 s by this, and by the attempt's deadline long before."""
CONNECTION_WINDOW: Final = 16 << 20
WRITE_BUFFER_BYTES: Final = 256 << 10
"""What the transport may hold before it pushes back: some ms of a gigabit link."""
PIECES_MAX: Final = 32
"""Calls of one write. With more, client and node would take turns, one idle while the other works through hundreds of calls:
with 64 calls outstanding that cost more than a third of the reads per second."""
_ALIVE: Final = b"alive?  "
_AGENT: Final = f"raftcache-python/{VERSION}"


class FastConnection(asyncio.Protocol):
    """One connection; made by its channel."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self._loop = channel.loop
        self._clock = channel.clock
        self._heard_ns = now_ns = channel.clock.monotonic_ns()
        """When the last bytes arrived."""
        self.http2 = ClientConnection(
            Http2Limits(stream_window=STREAM_WINDOW, connection_window=CONNECTION_WINDOW), now_ns
        )
        self.hello: asyncio.Future[None] = channel.loop.create_future()
        """Until the node's first SETTINGS are here; an `OSError` if it says something else, or nothing."""
        self.gone: asyncio.Future[None] = channel.loop.create_future()
        self.handed_id = 0
        """The last stream of which something was handed to the socket."""
        self._transport: asyncio.Transport | None = None
        self._flushing = False
        """A flush is scheduled."""
        self._shapes: dict[tuple[str, int | None], RequestShape] = {}
        self._ended: str = ""
        """Why nothing more will be read, once that is so."""
        self._pinged = False
        self._look: asyncio.TimerHandle | None = None

    # --- Calls --------------------------------------------------------------------------------------------------------

    def begin(self, call: FastCall) -> None:
        """Sends a call. There must be room for it."""
        stream = self.http2.open()
        stream.call = call
        call.connection, call.stream = self, stream
        call.send(self, stream)
        if self.http2.leaving:
            self.channel.on_leaving(self)
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self.flush)
        elif len(self.http2.sender.out) >= PIECES_MAX:
            self._write()

    def touch(self) -> None:
        """There is something to write at the end of this turn."""
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self.flush)

    def shape(self, path: str, seconds: float | None) -> RequestShape:
        """The head of requests for a method with so much time."""
        key = (path, None if seconds is None else timeout_ms(seconds))
        shape = self._shapes.get(key)
        if shape is None:
            if len(self._shapes) >= SHAPES_KEPT_MAX:
                self._shapes.clear()
            head = request_head(
                path, key[1], authority=self.channel.authority, scheme=self.channel.scheme, agent=_AGENT
            )
            shape = self._shapes[key] = RequestShape(head)
        return shape

    def forget(self, call: FastCall) -> None:
        """The call's stream is over."""
        call.over = True
        assert call.stream is not None, "it was sent on this connection"
        call.stream.call = None
        self.channel.deadlines.discard(call)

    def abandon(self, call: FastCall) -> None:
        """Nobody waits for the call any more."""
        self.forget(call)
        assert call.stream is not None, "it was sent on this connection"
        self.http2.reset(call.stream, CANCEL)
        self.channel.on_room(self)
        self.touch()

    # --- The transport ------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write"), transport
        self._transport = transport  # type: ignore[assignment] # uvloop's transports are no subclass of asyncio's
        tls: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
        # RFC 9113 §3.3: with TLS, both sides have agreed on h2.
        if tls is not None and tls.selected_alpn_protocol() != "h2":
            self._ended = "the other end does not speak HTTP/2 over TLS"
            self.abort()
            return
        self.channel.on_open(self)
        transport.set_write_buffer_limits(WRITE_BUFFER_BYTES)  # type: ignore[attr-defined]
        self._look = self._loop.call_later(KEEPALIVE_SECONDS, self._on_look)
        self.flush()

    def data_received(self, data: bytes) -> None:
        if self._ended:
            return
        self._heard_ns = now_ns = self._clock.monotonic_ns()
        self._pinged = False
        if not self.hello.done() and data.startswith(b"HTTP/"):
            self._ended = "it speaks HTTP/1"
            self.abort()
            return
        self._on_events(self.http2.receive(data, now_ns))
        if not self.hello.done() and self.http2.settled:
            self.hello.set_result(None)
        self.channel.on_room(self)
        if self.http2.sender.out or self.http2.sender.unsent or self.http2.leaving:
            self.flush()

    def pause_writing(self) -> None:
        self.http2.sender.set_writable(False)

    def resume_writing(self) -> None:
        self.http2.sender.set_writable(True)
        self.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._look is not None:
            self._look.cancel()
        why = self._ended or (str(exc) if exc is not None else "") or "the connection was closed"
        self._ended = why
        self._on_events(self.http2.end(NO_ERROR, ""))
        if not self.hello.done():
            self.hello.set_exception(ConnectionError(why))
            self.hello.exception()  # read, whether or not anybody waits
        self.gone.set_result(None)
        self.channel.on_gone(self)

    def flush(self) -> None:
        """Writes what there is, as one piece."""
        self._flushing = False
        self._write()

    def _write(self) -> None:
        transport, sender = self._transport, self.http2.sender
        if transport is None or not self._writable:
            return
        while data := sender.data_to_send():
            self.handed_id = self.http2.last_stream_id
            transport.write(data)
        if sender.taken:
            reported, sender.taken = sender.taken, []
            for stream in reported:
                stream.chunks_taken = 0
                if isinstance(stream.call, StreamCall) and not stream.queue:
                    stream.call.on_sent()
        if self._ended or (self.http2.leaving and not self.http2.streams):
            self._hang_up(transport)

    @property
    def _writable(self) -> bool:
        # What is written to a transport that is closing goes nowhere, and the calls in it were never sent.
        return self._transport is not None and not self._transport.is_closing()

    def leave(self) -> None:
        """Closes the connection, with a word; calls on it are lost."""
        self._ended = self._ended or "the client was closed"
        self._on_events(self.http2.end(NO_ERROR, ""))
        self.flush()

    def _hang_up(self, transport: asyncio.Transport) -> None:
        if self.channel.scheme == "http":
            transport.close()
        else:
            # asyncio would wait for the other end's close_notify, and could not be told otherwise any more. GOAWAY says as much.
            transport.abort()

    def abort(self) -> None:
        """Cuts the connection off."""
        if self._transport is not None:
            self._transport.abort()

    # --- Events -------------------------------------------------------------------------------------------------------

    def _on_events(self, events: list[Event]) -> None:
        if events and type(last := events[-1]) is ConnectionEnded:
            # Calls that are lost are told why.
            self._ended = self._ended or f"the other end broke HTTP/2: {last.reason}"
        for event in events:
            match event:
                case HeadersReceived():
                    if (call := event.stream.call) is not None:
                        call.on_head(event)
                case DataReceived():
                    if (call := event.stream.call) is not None:
                        call.on_data(event.data, event.ended)
                case TrailersReceived():
                    if (call := event.stream.call) is not None:
                        call.on_trailers(event.trailers)
                case StreamReset():
                    if (call := event.stream.call) is not None:
                        self._lose(call, self._ended or f"the stream was reset, error {event.code} of HTTP/2")
                case StreamRefused():
                    if (call := event.stream.call) is not None:
                        self.forget(call)
                        call.settle(refused(call.endpoint))
                case PeerLeaving():
                    self.channel.on_leaving(self)
                    self.touch()
                case ConnectionEnded():
                    self.channel.on_leaving(self)
                case PingAcknowledged():
                    pass
                case _:
                    assert_never(event)

    def _lose(self, call: FastCall, why: str) -> None:
        assert call.stream is not None, "it was opened on this connection"
        # What is begun and not written leaves with the next write, whatever becomes of its stream.
        may_leave = call.stream.id <= self.handed_id or self._writable
        self.forget(call)
        call.settle(lost(call.endpoint, why) if may_leave else never_sent(call.endpoint, why))

    def _on_look(self) -> None:
        """Is the node there?"""
        silent = (self._clock.monotonic_ns() - self._heard_ns) / NS_PER_SECOND
        if silent < KEEPALIVE_SECONDS:
            self._look = self._loop.call_later(KEEPALIVE_SECONDS - silent, self._on_look)
        elif self._pinged:
            self._ended = "no sign of life"
            self.abort()
        else:
            self._pinged = True
            self.http2.ping(_ALIVE)
            self.flush()
            self._look = self._loop.call_later(KEEPALIVE_TIMEOUT_SECONDS, self._on_look)
