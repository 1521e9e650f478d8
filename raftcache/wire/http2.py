"""An HTTP/2 connection without I/O (RFC 9113): bytes in, events out; calls in, bytes out.

    bytes ─► receive ─► [Event]            (streams, what comes on them, and how they end)
    bytes ◄─ sender.out ◄─ request, respond, send_headers, send_data, end, reset, allow, ping, go_away

Rules of this file:
- no sockets, no clock, no tasks: time is handed in. What a peer may do wrong is a `ConnectionViolation` or a
  `StreamViolation` here, and for the layer above an event; what the layer above does wrong is an assertion;
- it knows nothing of gRPC. `HeadersReceived`, `DataReceived`... carry the `Stream`, on which the layer above keeps its own;
- everything is bounded: streams, header blocks, frames, and, by `http2_floods`, what is not work;
- the peer's DATA is given back to the connection's window when it arrives: memory is bounded by the streams' windows, which
  only `allow` opens. So one stream whose reader is slow holds up no other.

Both roles share all of this. What they differ in, who opens streams, what a header list must look like, when a stream is over
and what saying goodbye means, stands in `http2_server` and `http2_client`.

Caveats: priorities are read past (deprecated by RFC 9113 §5.3.2); CONNECT is no method here, and has a malformed head; nobody
here asks with HEAD or for a 304, whose `content-length` would be another's. Section numbers are those of RFC 9113.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from raftcache.wire import http2_floods as floods
from raftcache.wire import http2_frames as frames
from raftcache.wire.hpack import Decoder, HeaderList
from raftcache.wire.http2_errors import (
    COMPRESSION_ERROR,
    ENHANCE_YOUR_CALM,
    FLOW_CONTROL_ERROR,
    FRAME_SIZE_ERROR,
    PROTOCOL_ERROR,
    STREAM_CLOSED,
    ConnectionViolation,
    HpackError,
    StreamViolation,
)
from raftcache.wire.http2_frames import FRAME_HEADER, FRAME_HEADER_BYTES, WINDOW_DEFAULT, WINDOW_MAX
from raftcache.wire.http2_headers import flaw_of_trailers
from raftcache.wire.http2_sending import Sender
from raftcache.wire.http2_stream import (
    ConnectionEnded,
    DataReceived,
    Event,
    HeadersReceived,
    PingAcknowledged,
    Stream,
    StreamReset,
)

_FRAME_MAX: Final = frames.FRAME_BYTES_DEFAULT + FRAME_HEADER_BYTES
STREAMS_UNTIL_TOLD: Final = 100
"""The least that a peer should accept at once (§6.5.2)."""
CONTINUATIONS_MAX: Final = 16
"""Frames of one header block, be they as small as they like."""


@dataclass(frozen=True, slots=True)
class Http2Limits:
    """What one end of a connection accepts."""

    streams_max: int = 1_000
    """SETTINGS_MAX_CONCURRENT_STREAMS."""
    stream_window: int = 64 << 10
    """SETTINGS_INITIAL_WINDOW_SIZE: what a stream may send before anybody looked at it. `allow` raises it for a large message."""
    connection_window: int = 8 << 20
    """Given back as data arrives. 8 MiB are what a gigabit link holds in 60 ms."""
    header_list_bytes_max: int = 16 << 10
    """SETTINGS_MAX_HEADER_LIST_SIZE (gRPC's default: 16 KiB), and a block's encoded size."""


class Connection:
    """One end, as far as both are alike."""

    _hello = b""
    """What the peer must send before its first frame."""
    _enable_push_max = 1
    """What SETTINGS_ENABLE_PUSH may be (§6.5.2)."""
    _recently_reset_max = 200
    """Streams that we reset and whose peer may not know yet. Frames on older ones cost the peer an allowance."""

    def __init__(self, limits: Http2Limits, now_ns: int, hello: list[bytes]) -> None:
        """`hello`: what this end sends first, its SETTINGS included."""
        self._limits = limits
        self._now_ns = now_ns
        self.sender = Sender(self._on_local_ended)
        self.streams: dict[int, Stream] = {}
        """The open ones, by id."""
        self._decoder = Decoder(limits.header_list_bytes_max)
        self._rest = b""
        """The incomplete frame at the end of what was received: less than one frame."""
        self._events: list[Event] = []
        """Of the `receive` that is under way."""
        self._hello_due = len(self._hello) > 0
        self._only: int | None = frames.SETTINGS
        """The one kind of frame that may come now: SETTINGS at first (§3.4), CONTINUATION inside of a header block (§6.10)."""
        self._ended = False
        self._block: _HeaderBlock | None = None
        """A header block whose END_HEADERS has not come."""
        self._last_stream_id = 0
        """The highest that was opened, by the client of course."""
        self._window = WINDOW_DEFAULT
        """Bytes of DATA that the peer may send on the connection."""
        self._window_full = max(limits.connection_window, WINDOW_DEFAULT)
        self.peer_streams_max = STREAMS_UNTIL_TOLD
        """The peer's SETTINGS_MAX_CONCURRENT_STREAMS."""
        self._recently_reset: dict[int, None] = {}
        """Ids, oldest first."""
        self._resets = floods.Meter(floods.RESETS, now_ns)
        self._control = floods.Meter(floods.CONTROL, now_ns)
        self._settings = floods.Meter(floods.SETTINGS, now_ns)
        self._windows = floods.Meter(floods.WINDOWS, now_ns)
        self._handlers: tuple[Callable[[int, int, bytes], None], ...] = (
            self._on_data,
            self._on_headers,
            self._on_priority,
            self._on_rst_stream,
            self._on_settings,
            self._on_push_promise,
            self._on_ping,
            self._on_goaway,
            self._on_window_update,
            self._on_continuation,
        )
        """By the frame's kind."""
        self.sender.out += hello
        self._refill_window()

    @property
    def settled(self) -> bool:
        """Whether the peer's first SETTINGS have arrived."""
        return self._only != frames.SETTINGS

    # --- What the layer above does ------------------------------------------------------------------------------------

    def receive(self, data: bytes, now_ns: int) -> list[Event]:
        """Takes what has arrived. Raises nothing for what the peer did wrong.

        A stream may begin and be over in one piece: at its first events it is in `streams` no more, and nothing may be sent on it.
        """
        events: list[Event] = []
        if self._ended:
            return events
        self._events, self._now_ns = events, now_ns
        if self._rest:
            data = self._rest + data
        position = 0
        try:
            if self._hello_due:
                position = self._on_hello(data)
            position = self._on_frames(data, position)
            if self._window < self._window_full // 2:
                self._refill_window()
        except ConnectionViolation as violation:
            self._end(violation.code, violation.reason)
            position = len(data)
        self._rest = data[position:]
        return events

    def reset(self, stream: Stream, code: int) -> None:
        """Ends a stream at once."""
        if self.streams.pop(stream.id, None) is not None:
            self.sender.discard(stream)
            self._write_reset(stream.id, code)

    def allow(self, stream: Stream, wanted: int, *, at_once: bool = False) -> None:
        """Lets the peer have `wanted` more bytes of DATA under way on the stream.

        Told in steps of at least half of that, by who says it with all DATA that comes; `at_once` by who says it only once.
        """
        if stream.remote_ended or stream.id not in self.streams:
            return
        if wanted - stream.receive_window >= (1 if at_once else max(wanted >> 1, 1)):
            self.sender.out.append(frames.window_update(stream.id, wanted - stream.receive_window))
            stream.receive_window = wanted

    def ping(self, data: bytes) -> None:
        """Asks the peer for a sign of life, which comes as `PingAcknowledged`."""
        self.sender.out.append(frames.frame(frames.PING, 0, 0, data))

    def end(self, code: int, reason: str) -> list[Event]:
        """Ends the connection: a GOAWAY, and nothing is read any more. For limits of the layer above."""
        self._events = []
        if not self._ended:
            self._end(code, reason)
        return self._events

    # --- Frames -------------------------------------------------------------------------------------------------------

    def _on_hello(self, data: bytes) -> int:
        hello = self._hello
        if not data.startswith(hello[: len(data)]):
            raise ConnectionViolation(PROTOCOL_ERROR, "this port speaks HTTP/2 and gRPC; that was something else")
        if len(data) < len(hello):
            return 0
        self._hello_due = False
        return len(hello)

    def _on_frames(self, data: bytes, position: int) -> int:
        """Goes through all whole frames from `position`; where the incomplete one begins."""
        if self._hello_due:
            return position
        end, unpack, handlers = len(data), FRAME_HEADER.unpack_from, self._handlers
        while end - position >= FRAME_HEADER_BYTES:
            upper, lower, kind, flags, stream_id = unpack(data, position)
            stop = position + FRAME_HEADER_BYTES + (upper << 8 | lower)
            if stop - position > _FRAME_MAX:
                raise ConnectionViolation(FRAME_SIZE_ERROR, f"a frame of {upper << 8 | lower} bytes")
            if stop > end:
                break
            payload = data[position + FRAME_HEADER_BYTES : stop]
            position = stop
            if self._only is not None and kind != self._only:
                raise ConnectionViolation(PROTOCOL_ERROR, f"a frame of kind {kind} where one of {self._only} is due")
            try:
                if kind < len(handlers):
                    handlers[kind](flags, stream_id & WINDOW_MAX, payload)
                else:
                    self._control.spend(self._now_ns, self.sender.finished)  # §4.1: unknown frames are ignored
            except StreamViolation as violation:
                self._on_stream_violation(violation)
        return position

    def _on_data(self, flags: int, stream_id: int, payload: bytes) -> None:
        length = len(payload)
        self._window -= length
        if self._window < 0:
            raise ConnectionViolation(FLOW_CONTROL_ERROR, "DATA beyond the connection's window")
        stream = self.streams.get(stream_id)
        if stream is None:
            self._on_closed_stream(stream_id)
            return
        if stream.remote_ended:
            raise StreamViolation(stream_id, STREAM_CLOSED, "DATA after END_STREAM")
        if not stream.headed:
            raise StreamViolation(stream_id, PROTOCOL_ERROR, "DATA before HEADERS")
        stream.receive_window -= length
        if stream.receive_window < 0:
            raise StreamViolation(stream_id, FLOW_CONTROL_ERROR, "DATA beyond the stream's window")
        ended = bool(flags & frames.END_STREAM)
        if flags & frames.PADDED:
            payload = _unpadded(payload)
            if not ended:
                # It counts against the window (RFC 9113 §6.1), and nobody above knows of it.
                padding = length - len(payload)
                stream.receive_window += padding
                self.sender.out.append(frames.window_update(stream_id, padding))
        if stream.length_left is not None:
            count_down(stream, len(payload), ended)
        if ended:
            stream.remote_ended = True
        elif not payload:
            self._control.spend(self._now_ns, self.sender.finished)
        events = self._events
        if events and type(head := events[-1]) is HeadersReceived and head.stream is stream and not head.data:
            head.data, head.ended = payload, ended
        else:
            events.append(DataReceived(stream, payload, ended))
        if ended:
            self._on_remote_ended(stream)

    def _on_headers(self, flags: int, stream_id: int, payload: bytes) -> None:
        if flags & (frames.PADDED | frames.PRIORITY_FIELDS):
            if flags & frames.PADDED:
                payload = _unpadded(payload)
            if flags & frames.PRIORITY_FIELDS:
                if len(payload) < 5:
                    raise ConnectionViolation(FRAME_SIZE_ERROR, "HEADERS with half a priority")
                payload = payload[5:]
        ended = bool(flags & frames.END_STREAM)
        if flags & frames.END_HEADERS:
            self._on_header_block(stream_id, payload, ended)
        else:
            self._block = _HeaderBlock(stream_id, ended, payload)
            self._only = frames.CONTINUATION

    def _on_continuation(self, flags: int, stream_id: int, payload: bytes) -> None:
        block = self._block
        if block is None or stream_id != block.stream_id:
            raise ConnectionViolation(PROTOCOL_ERROR, "CONTINUATION without its HEADERS")
        block.data += payload
        block.continuations += 1
        if len(block.data) > self._limits.header_list_bytes_max or block.continuations > CONTINUATIONS_MAX:
            # It cannot be skipped: without it the compression state is lost.
            raise ConnectionViolation(ENHANCE_YOUR_CALM, "a header block is too large")
        if flags & frames.END_HEADERS:
            self._block = self._only = None
            self._on_header_block(stream_id, block.data, block.ended)

    def _on_header_block(self, stream_id: int, block: bytes, ended: bool) -> None:
        try:
            headers = self._decoder.decode(block)
        except HpackError as error:
            raise ConnectionViolation(COMPRESSION_ERROR, str(error)) from None
        self._on_header_list(stream_id, headers, ended)

    def _on_priority(self, flags: int, stream_id: int, payload: bytes) -> None:
        self._control.spend(self._now_ns, self.sender.finished)
        if not stream_id:
            raise ConnectionViolation(PROTOCOL_ERROR, "PRIORITY on stream 0")
        if len(payload) != 5:
            if self._is_idle(stream_id):
                # §6.4: a stream that is idle cannot be reset.
                raise ConnectionViolation(FRAME_SIZE_ERROR, "PRIORITY has five bytes")
            raise StreamViolation(stream_id, FRAME_SIZE_ERROR, "PRIORITY has five bytes")

    def _on_rst_stream(self, flags: int, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionViolation(FRAME_SIZE_ERROR, "RST_STREAM has four bytes")
        if self._is_idle(stream_id):
            raise ConnectionViolation(PROTOCOL_ERROR, f"RST_STREAM on stream {stream_id}, which is idle")
        self._resets.spend(self._now_ns, self.sender.finished)
        stream = self.streams.pop(stream_id, None)
        if stream is not None:
            self.sender.discard(stream)
            stream.remote_ended = True
            self._on_reset(stream, int.from_bytes(payload, "big"))

    def _on_settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise ConnectionViolation(PROTOCOL_ERROR, "SETTINGS on a stream")
        if len(payload) % 6 or (flags & frames.ACK and payload):
            raise ConnectionViolation(FRAME_SIZE_ERROR, f"SETTINGS of {len(payload)} bytes")
        self._settings.spend(self._now_ns, self.sender.finished)
        if flags & frames.ACK:
            return
        if self._only == frames.SETTINGS:
            self._only = None
            self.peer_streams_max = WINDOW_MAX  # unless it says otherwise now
        initial_window = self.sender.initial_window
        for setting, value in frames.settings_of(payload):
            if setting == frames.INITIAL_WINDOW_SIZE:
                if value > WINDOW_MAX:
                    raise ConnectionViolation(FLOW_CONTROL_ERROR, f"an initial window of {value}")
                initial_window = value
            elif setting == frames.MAX_FRAME_SIZE:
                if not frames.FRAME_BYTES_DEFAULT <= value <= frames.FRAME_BYTES_CEILING:
                    raise ConnectionViolation(PROTOCOL_ERROR, f"a largest frame of {value}")
                # More than the default would only make one stream hold up the others for longer.
            elif setting == frames.HEADER_TABLE_SIZE:
                self.sender.on_table_size(value)
            elif setting == frames.ENABLE_PUSH and value > self._enable_push_max:
                raise ConnectionViolation(PROTOCOL_ERROR, f"ENABLE_PUSH is {value}")
            elif setting == frames.MAX_CONCURRENT_STREAMS:
                self.peer_streams_max = value
        # §6.5.3. In front of the DATA for which there is room now: a peer may hold to its old windows until it reads this.
        self.sender.out.append(frames.frame(frames.SETTINGS, frames.ACK, 0, b""))
        if initial_window != self.sender.initial_window:
            # Once for each frame, however often the frame says it: it touches every stream.
            self.sender.on_initial_window(initial_window, list(self.streams.values()))

    def _on_push_promise(self, flags: int, stream_id: int, payload: bytes) -> None:
        # A client never pushes (§8.4), and a server was told not to.
        raise ConnectionViolation(PROTOCOL_ERROR, "nobody pushes here")

    def _on_ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise ConnectionViolation(PROTOCOL_ERROR, "PING on a stream")
        if len(payload) != 8:
            raise ConnectionViolation(FRAME_SIZE_ERROR, "PING has eight bytes")
        self._control.spend(self._now_ns, self.sender.finished)
        if flags & frames.ACK:
            self._events.append(PingAcknowledged(payload))
        else:
            self.sender.out.append(frames.frame(frames.PING, frames.ACK, 0, payload))

    def _on_goaway(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise ConnectionViolation(PROTOCOL_ERROR, "GOAWAY on a stream")
        if len(payload) < 8:
            raise ConnectionViolation(FRAME_SIZE_ERROR, "GOAWAY has at least eight bytes")
        self._control.spend(self._now_ns, self.sender.finished)
        last_stream_id, code = frames.goaway_of(payload)
        self._on_goodbye(last_stream_id, code, payload[8:])

    def _on_window_update(self, flags: int, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionViolation(FRAME_SIZE_ERROR, "WINDOW_UPDATE has four bytes")
        # A stream may live for ever, and a call be as large as it likes: DATA counts, by what a full frame holds.
        frames_sent = self.sender.framed_bytes // frames.FRAME_BYTES_DEFAULT
        self._windows.spend(self._now_ns, self.sender.finished + frames_sent)
        increment = int.from_bytes(payload, "big") & WINDOW_MAX
        if not stream_id:
            if not increment:
                raise ConnectionViolation(PROTOCOL_ERROR, "WINDOW_UPDATE by nothing")
            self.sender.on_window_update(increment)
            return
        stream = self.streams.get(stream_id)
        if stream is None:
            if self._is_idle(stream_id):
                raise ConnectionViolation(PROTOCOL_ERROR, f"WINDOW_UPDATE on stream {stream_id}, which is idle")
            return  # §5.1: it may have been under way when the stream ended
        if not increment:
            raise StreamViolation(stream_id, PROTOCOL_ERROR, "WINDOW_UPDATE by nothing")
        self.sender.on_stream_window_update(stream, increment)

    # --- What the roles differ in -------------------------------------------------------------------------------------

    def _is_idle(self, stream_id: int) -> bool:
        """§5.1: never opened. 0 is no stream, and even ids are a server's own, which does not push and opens none."""
        return stream_id > self._last_stream_id or not stream_id & 1

    def _last_of_peer(self) -> int:
        """What GOAWAY says: the highest stream that the peer has opened, and that we did not ignore."""
        raise NotImplementedError

    def _is_ignored(self, stream_id: int) -> bool:
        """Whether what comes on a stream that is not open needs no answer."""
        return False

    def _on_header_list(self, stream_id: int, headers: HeaderList, ended: bool) -> None:
        """A whole header block has come."""
        raise NotImplementedError

    def _on_remote_ended(self, stream: Stream) -> None:
        """The peer has ended its half."""
        raise NotImplementedError

    def _on_local_ended(self, stream: Stream) -> None:
        """We have ended ours."""
        raise NotImplementedError

    def _on_reset(self, stream: Stream, code: int) -> None:
        """The peer has reset a stream, which is open no more."""
        raise NotImplementedError

    def _on_goodbye(self, last_stream_id: int, code: int, reason: bytes) -> None:
        """GOAWAY."""
        raise NotImplementedError

    # --- What goes wrong ----------------------------------------------------------------------------------------------

    def _on_closed_stream(self, stream_id: int) -> None:
        """DATA for a stream that is not open."""
        if self._is_idle(stream_id):
            raise ConnectionViolation(PROTOCOL_ERROR, f"DATA on stream {stream_id}, which is idle")
        if stream_id not in self._recently_reset and not self._is_ignored(stream_id):
            raise StreamViolation(stream_id, STREAM_CLOSED, "DATA on a closed stream")

    def _on_stream_violation(self, violation: StreamViolation) -> None:
        self._resets.spend(self._now_ns, self.sender.finished)
        stream = self.streams.pop(violation.stream_id, None)
        if stream is not None:
            self.sender.discard(stream)
            self._events.append(StreamReset(stream, violation.code))
        self._write_reset(violation.stream_id, violation.code)

    def _write_reset(self, stream_id: int, code: int) -> None:
        self.sender.out.append(frames.rst_stream(stream_id, code))
        self._recently_reset[stream_id] = None
        if len(self._recently_reset) > self._recently_reset_max:
            del self._recently_reset[next(iter(self._recently_reset))]

    def _end(self, code: int, reason: str) -> None:
        self._ended = True
        for stream in self.streams.values():
            self.sender.discard(stream)
            self._events.append(StreamReset(stream, code))
        self.streams.clear()
        self._events.append(ConnectionEnded(code, reason))
        self.sender.out.append(frames.goaway(self._last_of_peer(), code, reason.encode()))

    def _refill_window(self) -> None:
        self.sender.out.append(frames.window_update(0, self._window_full - self._window))
        self._window = self._window_full


def count_down(stream: Stream, received: int, ended: bool) -> None:
    """§8.1.1: what has another length than its `content-length` is malformed. Raises: `StreamViolation`."""
    assert stream.length_left is not None, f"stream {stream.id} has no content-length"
    stream.length_left -= received
    if stream.length_left < 0 or (ended and stream.length_left):
        raise StreamViolation(stream.id, PROTOCOL_ERROR, "DATA is not as long as content-length says")


def take_length(stream: Stream, headers: HeaderList, ended: bool) -> None:
    """Notes what a head's `content-length` promises, if it has one. Raises: `StreamViolation`."""
    if headers.content_length is not None:
        stream.length_left = headers.content_length
        count_down(stream, 0, ended)


def take_trailers(stream: Stream, headers: HeaderList, ended: bool) -> None:
    """§8.1: trailers end what the peer sends, and nothing else follows a head. Raises: `StreamViolation`."""
    flaw = "a second header block that does not end the stream" if not ended else flaw_of_trailers(headers.fields)
    if flaw:
        raise StreamViolation(stream.id, PROTOCOL_ERROR, flaw)
    if stream.length_left is not None:
        count_down(stream, 0, ended)
    stream.remote_ended = True


@dataclass(slots=True)
class _HeaderBlock:
    """A header block that is arriving in pieces."""

    stream_id: int
    ended: bool
    data: bytes
    continuations: int = 0


def _unpadded(payload: bytes) -> bytes:
    """§6.1: a length, what is meant, and as much padding. Raises: `ConnectionViolation`."""
    if not payload:
        raise ConnectionViolation(FRAME_SIZE_ERROR, "a padded frame without the padding's length")  # §4.2
    if payload[0] >= len(payload):
        raise ConnectionViolation(PROTOCOL_ERROR, "more padding than payload")
    return payload[1 : len(payload) - payload[0]]
