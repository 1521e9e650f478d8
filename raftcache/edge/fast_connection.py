"""One client connection of the fast front: between the transport and the HTTP/2 state machine.

    data_received ─► ServerConnection.receive ─► events ─► calls ─► the front's list of this turn
    flush ◄── sender.out ◄── answers of this turn: one write

Rules of this file:
- one pass for each `data_received`, and at most one write for each turn, however many calls it carries;
- back-pressure: while the transport's buffer is full nothing is read. While only a flow-control window is closed, reading
  goes on, because what opens it would arrive there;
- what a connection may hold is bounded: `STREAM_WINDOW` for each stream, `PROMISED_BYTES_MAX` more for large messages, which
  take turns, and `UNSENT_BYTES_MAX` of answers.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from typing import TYPE_CHECKING, Any, Final, assert_never

from raftcache.clock import NS_PER_MS, NS_PER_SECOND
from raftcache.edge.fast_calls import AwaitedCall, FastCall, RefusedCall, StreamCall, UnaryCall
from raftcache.edge.front import Refusal
from raftcache.edge.front_config import KEEPALIVE_TIME_MS, KEEPALIVE_TIMEOUT_MS
from raftcache.errors import OutcomeUnknown
from raftcache.wire import grpc_wire
from raftcache.wire import http2_frames as frames
from raftcache.wire.grpc_wire import request_head
from raftcache.wire.http2 import Http2Limits
from raftcache.wire.http2_errors import ENHANCE_YOUR_CALM
from raftcache.wire.http2_server import ServerConnection
from raftcache.wire.http2_stream import (
    ConnectionEnded,
    DataReceived,
    Event,
    HeadersReceived,
    PeerLeaving,
    PingAcknowledged,
    Stream,
    StreamRefused,
    StreamReset,
    TrailersReceived,
)

if TYPE_CHECKING:
    from raftcache.edge.fast_front import FastFront

STREAM_WINDOW: Final = 64 << 10
"""What a stream may send before its message's length is known to us. 1,000 streams hold 64 MiB with it."""
PROMISED_BYTES_MAX: Final = 32 << 20
"""For messages larger than that; several at a time, the others wait with their first 64 KiB."""
UNSENT_BYTES_MAX: Final = 128 << 20
"""Answers that a client's windows or transport do not take. Four of the largest, as `limits.batch_reply_bytes_max` is by
default."""
WRITE_BUFFER_BYTES: Final = 256 << 10
"""What the transport may hold before it pushes back: some ms of a gigabit link."""
SETTLE_NS: Final = 10 * NS_PER_SECOND
"""For the preface and the first SETTINGS to arrive."""
FAREWELL_NS: Final = 1 * NS_PER_SECOND
"""How long a client may take to acknowledge our first GOAWAY before the second, or to hang up after one that says why."""
LINGER_NS: Final = 30 * NS_PER_SECOND
"""How long a client may take to read its last answers on a connection that ends."""
_KEEPALIVE: Final = b"alive?  "
_FAREWELL: Final = b"farewell"


class FastConnection(asyncio.Protocol):
    """One connection; made by the front's listener."""

    def __init__(self, front: FastFront) -> None:
        self.front = front
        self.now_ns = self.born_ns = front.clock.monotonic_ns()
        """`now_ns`: when the last bytes arrived."""
        self.http2 = ServerConnection(
            Http2Limits(streams_max=front.config.streams_per_connection_max, stream_window=STREAM_WINDOW), self.now_ns
        )
        self.buffered = 0
        """Bytes of requests that are not complete, or not wanted yet."""
        self.charged = 0
        """What the front's total knows of this connection."""
        self.number = 0
        """The front's count of connections when it came."""
        self.address = "?"
        self._transport: asyncio.Transport | None = None
        self._identities: list[str] | None = None
        self._promised = 0
        self._wanting: deque[FastCall] = deque()
        """Calls whose large messages wait for their turn."""
        self._ping_sent_ns = 0
        self._farewell_ns = 0
        """When we said that we are leaving; 0: not yet."""
        self._accepting = True
        self._ended_ns = 0
        """When the peer broke the protocol or a limit."""
        self._half_closed_ns = 0
        """When we said our last byte; what comes after it is read and dropped."""

    # --- The transport ------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write"), transport
        self._transport = transport  # type: ignore[assignment] # uvloop's transports are no subclass of asyncio's
        peer = transport.get_extra_info("peername")
        self.address = _joined(peer)
        tls: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
        # RFC 9113 §3.3: with TLS, both sides have agreed on h2.
        if (tls is not None and tls.selected_alpn_protocol() != "h2") or not self.front.welcome(self):
            self._transport = None
            transport.abort()  # type: ignore[attr-defined]
            return
        transport.set_write_buffer_limits(WRITE_BUFFER_BYTES)  # type: ignore[attr-defined]
        self.flush()

    def data_received(self, data: bytes) -> None:
        if self._ended_ns:
            return
        self.now_ns = self.front.clock.monotonic_ns()
        if self._half_closed_ns:
            return
        self._ping_sent_ns = 0
        self._on_events(self.http2.receive(data, self.now_ns))
        self.flush()

    def pause_writing(self) -> None:
        self.http2.sender.set_writable(False)
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        if self._transport is not None:
            self._transport.resume_reading()
        self.http2.sender.set_writable(True)
        self.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._on_events(self.http2.end(0, ""))
        self.front.farewell(self)

    @property
    def identities(self) -> list[str]:
        """The names in the verified client certificate."""
        if self._identities is None:
            certificate: dict[str, Any] | None = None
            if self._transport is not None:
                certificate = self._transport.get_extra_info("peercert")
            self._identities = _names(certificate or {})
        return self._identities

    def flush(self) -> None:
        """Writes what there is, as one piece, and settles accounts with the front."""
        transport, sender = self._transport, self.http2.sender
        if transport is None or self._half_closed_ns:
            return
        while data := sender.data_to_send():
            transport.write(data)
        if sender.taken:
            self.front.touch(self)
        held = self.buffered + sender.unsent
        if held != self.charged:
            self.front.charge(self, held)
        if not self._accepting and not self.http2.streams:
            self._close(transport)

    def _close(self, transport: asyncio.Transport) -> None:
        # Were the socket closed while the peer still sends (a ping, a window), TCP would discard what it has not read yet: the last
        # answers, or why we end. So what comes is read and dropped until it hangs up, or `look_after` loses patience. (With TLS there
        # is no half of a close; GOAWAY says as much.)
        self._half_closed_ns = self.front.clock.monotonic_ns()
        if transport.can_write_eof():
            transport.write_eof()

    # --- Events -------------------------------------------------------------------------------------------------------

    def _on_events(self, events: list[Event]) -> None:
        for event in events:
            match event:
                case HeadersReceived():
                    self._begin(event)
                case DataReceived():
                    call = event.stream.call
                    if call is not None and not event.stream.local_ended:
                        call.on_data(event.data, event.ended)
                case StreamReset():
                    if event.stream.call is not None:
                        event.stream.call.on_reset()
                case PingAcknowledged():
                    if event.data == _FAREWELL:
                        self._accept_no_more()
                case ConnectionEnded():
                    self._accepting = False
                    self._ended_ns = self.now_ns
                case TrailersReceived() | StreamRefused() | PeerLeaving():
                    raise AssertionError(f"{type(event).__name__} is for clients")
                case _:
                    assert_never(event)

    def _begin(self, event: HeadersReceived) -> None:
        headers, stream = event.headers, event.stream
        if stream.local_ended:
            return  # what came behind it in the same piece has reset it
        meaning = headers.meaning
        if meaning is None:
            head = request_head(headers)
            meaning = headers.meaning = (head, self.front.routes.get(head.method))
        head, route = meaning
        refusal = head.error
        if head.http_status != b"200":
            self.http2.sender.send_headers(stream, ((b":status", head.http_status),), end=True)
            return
        if route is None:
            refusal = refusal or Refusal(grpc_wire.UNIMPLEMENTED, f"there is no method {head.method}")
        elif route.streamed is not None:
            refusal = refusal or self.front.stream_refusal()
        call: FastCall
        if route is None or refusal is not None:
            assert refusal is not None, head
            call = RefusedCall(self, stream, head, route or self.front.no_route, refusal)
        elif route.service is not None:
            call = UnaryCall(self, stream, head, route)
        elif route.awaited is not None:
            call = AwaitedCall(self, stream, head, route)
        else:
            call = StreamCall(self, stream, head, route)
        stream.call = call
        if isinstance(call, StreamCall):
            self.front.open(call)
        if event.data or event.ended or refusal is not None:
            call.on_data(event.data, event.ended)

    def refuse(self, stream: Stream, refusal: Refusal) -> None:
        """Answers a call with nothing but a status."""
        fields = grpc_wire.RESPONSE_HEAD + grpc_wire.trailers_of(refusal)
        self.http2.sender.send_headers(stream, fields, end=True)

    # --- Room for large messages --------------------------------------------------------------------------------------

    def want(self, call: FastCall, missing: int) -> None:
        """`call` expects `missing` more bytes of a message, and perhaps others after it.

        Within `STREAM_WINDOW` that is always allowed. A larger message is allowed as a whole, or waits for its turn: behind all
        that wait already, and until those before it leave room.
        """
        if call.promised:
            return
        if missing <= STREAM_WINDOW:
            self.http2.allow(call.stream, max(missing, STREAM_WINDOW - call.reader.buffered if call.reader else 0))
        elif self._wanting or not self._has_room_for(missing):
            self._wanting.append(call)
            call.promised = -1
        else:
            self._promise(call, missing)

    def release(self, call: FastCall) -> None:
        """The large message is here, or will not come."""
        if call.promised < 0:
            self._wanting.remove(call)
        else:
            self._promised -= call.promised
        call.promised = 0
        while self._wanting:
            waiting = self._wanting[0]
            assert waiting.reader is not None, "a call that waits has the beginning of its message"
            missing = waiting.reader.missing
            if not self._has_room_for(missing):
                break
            self._promise(self._wanting.popleft(), missing)

    def _has_room_for(self, missing: int) -> bool:
        return not self._promised or self._promised + missing <= PROMISED_BYTES_MAX

    def _promise(self, call: FastCall, missing: int) -> None:
        call.promised = missing
        self._promised += missing
        self.http2.allow(call.stream, missing + frames.PADDING_BYTES_MAX, at_once=True)

    @property
    def is_full(self) -> bool:
        """Whether the client leaves too much of what it asked for untaken."""
        return self.http2.sender.unsent > UNSENT_BYTES_MAX

    def full_refusal(self) -> Refusal:
        """What was asked may have been done; only its answer is not kept."""
        unsent = self.http2.sender.unsent
        return self.front.handlers.refusal(
            OutcomeUnknown(
                f"{unsent} bytes of answers wait for this client to take them; the answer to this call was dropped"
            )
        )

    # --- Housekeeping -------------------------------------------------------------------------------------------------

    def look_after(self, now_ns: int) -> None:
        """Now and then: is the client there, and does it behave?"""
        if self._transport is None:
            return
        if self._ended_ns:
            if now_ns - self._ended_ns > FAREWELL_NS:
                self.abort()
        elif self._half_closed_ns:
            if now_ns - self._half_closed_ns > LINGER_NS:
                self.abort()
        elif not self.http2.settled and now_ns - self.born_ns > SETTLE_NS:
            self.abort()
        elif self._ping_sent_ns:
            if now_ns - self._ping_sent_ns > KEEPALIVE_TIMEOUT_MS * NS_PER_MS:
                self.abort()
        elif now_ns - self.now_ns > KEEPALIVE_TIME_MS * NS_PER_MS:
            self._ping_sent_ns = now_ns
            self.http2.ping(_KEEPALIVE)
            self.flush()
        if self._farewell_ns and now_ns - self._farewell_ns > FAREWELL_NS:
            self._accept_no_more()
            self.flush()

    def expire(self, now_ns: int) -> None:
        """Ends the calls whose time has passed."""
        late = [
            stream.call for stream in self.http2.streams.values() if stream.call and stream.call.expires_ns <= now_ns
        ]
        for call in late:
            call.expire()
        if late:
            self.flush()

    def leave(self, now_ns: int) -> None:
        """Says goodbye (RFC 9113 §6.8): no new calls, please; those that are there are finished."""
        if not self._farewell_ns:
            self._farewell_ns = now_ns
            self.http2.announce_end()
            self.http2.ping(_FAREWELL)
            self.flush()

    def _accept_no_more(self) -> None:
        if self._accepting:
            self._accepting = False
            self.http2.accept_no_more()

    def evict(self) -> None:
        """This connection holds more than any other, and all of them together too much."""
        self._on_events(self.http2.end(ENHANCE_YOUR_CALM, "this connection holds too much of the server's memory"))
        self.flush()

    def abort(self) -> None:
        """Cuts the connection off."""
        if self._transport is not None:
            self._transport.abort()

    def calls(self) -> list[FastCall]:
        """Those that are not over."""
        return [stream.call for stream in self.http2.streams.values() if stream.call is not None]


def _joined(peer: Any) -> str:
    """A socket address as text; a socket that is gone has none."""
    if not isinstance(peer, tuple):
        return "?"
    host, port = peer[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _names(certificate: dict[str, Any]) -> list[str]:
    """Subject alternative names, or else the common name."""
    names = [
        value for kind, value in certificate.get("subjectAltName", ()) if kind in ("DNS", "IP Address", "URI", "email")
    ]
    if names:
        return names
    return [value for entry in certificate.get("subject", ()) for kind, value in entry if kind == "commonName"]
