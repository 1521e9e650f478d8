"""A gRPC client's side of one HTTP/2 connection, without I/O: bytes in, events out.

    open(message) ──► outgoing bytes          receive(bytes) ──► [(stream, message) | (stream, status)]

It exists because grpcio's own client costs more than the servers it would measure, and because `raftcache.wire` is a part of what is
measured: the generator shares no code with it, and is the same for etcd. It does what a load generator needs: many requests of one method, each a message that is framed already, unary or as a stream; the statuses of all of them; flow control.

Rules of this file:
- every answer's gRPC status is read and reported: a load that fails fast must not look fast;
- the peer is trusted to speak HTTP/2 correctly; what it does that is not understood raises `ProtocolError`;
- frames are written into one list, which leaves in one write.

RFC 9113; the gRPC mapping is grpc's `doc/PROTOCOL-HTTP2.md`.
"""

import struct
from collections import deque
from typing import TypeAlias

from benchmarks.hpack import decode_block, request_blocks

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITISED = 0x1, 0x1, 0x4, 0x8, 0x20
HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE = range(1, 6)

FRAME_HEADER_BYTES = 9
WINDOW_DEFAULT = 65_535
WINDOW_MAX = (1 << 31) - 1
"""What the server may send unasked: as much as the protocol allows, so that our side never holds it up."""
TABLE_DEFAULT = 4_096
STATUS_NONE = -1
"""The stream was reset, or ended without a `grpc-status`."""

Event: TypeAlias = tuple[int, bytes | None, int]
"""Stream, then either a message and 0, or None and the gRPC status with which the stream ended."""

_FRAME = struct.Struct(">IBI")
_SETTING = struct.Struct(">HI")
_LONG = struct.Struct(">I")


class ProtocolError(Exception):
    """The server did what this client does not understand, or ended the connection."""


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return _FRAME.pack(len(payload) << 8 | kind, flags, stream) + payload


class Connection:
    """See the module."""

    def __init__(self, authority: str, path: str) -> None:
        self._first_block, self._later_block = request_blocks(authority, path)
        self._block = self._first_block
        self._next_stream = 1
        self._buffer = b""
        self._messages: dict[int, bytearray] = {}
        """Bytes of messages that are not complete, by stream."""
        self._statuses: dict[bytes, int | None] = {}
        """What each header block says of the gRPC status: None = nothing. There are a handful of distinct ones."""
        self._window = WINDOW_DEFAULT
        """Bytes that may be sent on the connection."""
        self._initial_window = WINDOW_DEFAULT
        self._windows: dict[int, int] = {}
        """... and on each stream that is not sent to its end."""
        self._blocked: deque[tuple[int, bytes, bool]] = deque()
        """What had no room: stream, data, whether the stream ends behind it."""
        self._frame_bytes_max = 16_384
        self._received = 0
        """Bytes of DATA since the connection's window was last enlarged."""
        """Streams that the server takes at a time; 0 = it did not say."""
        settings = _SETTING.pack(HEADER_TABLE_SIZE, 0) + _SETTING.pack(ENABLE_PUSH, 0)
        self._outgoing = [
            PREFACE,
            frame(SETTINGS, 0, 0, settings + _SETTING.pack(INITIAL_WINDOW_SIZE, WINDOW_MAX)),
            frame(WINDOW_UPDATE, 0, 0, _LONG.pack(WINDOW_MAX - WINDOW_DEFAULT)),
        ]

    def take_outgoing(self) -> bytes:
        """Everything that is to be written now."""
        outgoing = b"".join(self._outgoing)
        self._outgoing.clear()
        return outgoing

    # --- Out ----------------------------------------------------------------------------------------------------------

    def open(self, data: bytes, *, end: bool = True) -> int:
        """Starts a stream with a framed message; returns its number. `end`: there will be no other message."""
        stream = self._next_stream
        self._next_stream += 2
        block = self._block
        self._outgoing.append(_FRAME.pack(len(block) << 8 | HEADERS, END_HEADERS, stream) + block)
        if block is self._first_block:
            self._block = self._later_block
        size = len(data)
        if (
            end
            and not self._blocked
            and size <= self._frame_bytes_max
            and size <= min(self._window, self._initial_window)
        ):
            # The usual case: one frame, and the stream needs no window of its own.
            self._window -= size
            self._outgoing.append(_FRAME.pack(size << 8, END_STREAM, stream) + data)
            return stream
        self._windows[stream] = self._initial_window
        self.send(stream, data, end=end)
        return stream

    def send(self, stream: int, data: bytes, *, end: bool = False) -> None:
        """One more framed message on a stream."""
        self._blocked.append((stream, data, end))
        self._send_blocked()

    def half_close(self, stream: int) -> None:
        """No more messages on this stream."""
        self.send(stream, b"", end=True)

    def _send_blocked(self) -> None:
        """Sends what the windows allow. Streams wait for each other, which a load generator can live with."""
        while self._blocked:
            stream, data, end = self._blocked[0]
            window = self._windows.get(stream)
            if window is None:
                # The stream ended from the other side meanwhile.
                self._blocked.popleft()
                continue
            size = min(len(data), self._window, window, self._frame_bytes_max)
            if size <= 0 and data:
                return
            self._window -= size
            self._windows[stream] = window - size
            last = size == len(data)
            self._outgoing.append(frame(DATA, END_STREAM if end and last else 0, stream, data[:size]))
            if last:
                self._blocked.popleft()
                if end:
                    del self._windows[stream]
            else:
                self._blocked[0] = (stream, data[size:], end)

    # --- In -----------------------------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> list[Event]:
        """Takes what was read; returns messages and ends of streams. Raises: `ProtocolError`."""
        if self._buffer:
            data = self._buffer + data
        events: list[Event] = []
        position, size = 0, len(data)
        while position + FRAME_HEADER_BYTES <= size:
            word, flags, stream = _FRAME.unpack_from(data, position)
            end = position + FRAME_HEADER_BYTES + (word >> 8)
            if end > size:
                break
            payload = data[position + FRAME_HEADER_BYTES : end]
            kind = word & 0xFF
            if kind == DATA:
                self._on_data(events, stream, flags, payload)
            elif kind == HEADERS:
                self._on_headers(events, stream, flags, payload)
            else:
                self._on_control(events, kind, flags, stream, payload)
            position = end
        self._buffer = data[position:]
        return events

    def _on_data(self, events: list[Event], stream: int, flags: int, payload: bytes) -> None:
        self._received += len(payload)
        if self._received > WINDOW_MAX // 2:
            self._outgoing.append(frame(WINDOW_UPDATE, 0, 0, _LONG.pack(self._received)))
            self._received = 0
        if flags & PADDED:
            payload = payload[1 : len(payload) - payload[0]]
        partial = self._messages.get(stream)
        if partial is None and len(payload) >= 5 and int.from_bytes(payload[1:5], "big") == len(payload) - 5:
            events.append((stream, payload[5:], 0))
        elif payload:
            if partial is None:
                partial = self._messages[stream] = bytearray()
            partial += payload
            while len(partial) >= 5:
                end = 5 + int.from_bytes(partial[1:5], "big")
                if len(partial) < end:
                    break
                events.append((stream, bytes(partial[5:end]), 0))
                del partial[:end]
            if not partial:
                del self._messages[stream]
        if flags & END_STREAM:
            self._end(events, stream, STATUS_NONE)

    def _on_headers(self, events: list[Event], stream: int, flags: int, payload: bytes) -> None:
        if not flags & END_HEADERS:
            raise ProtocolError("a header block in several frames")
        if flags & PADDED:
            payload = payload[1 : len(payload) - payload[0]]
        if flags & PRIORITISED:
            payload = payload[5:]
        if payload in self._statuses:
            status = self._statuses[payload]
        else:
            status = self._statuses[payload] = _status_of(payload)
        if flags & END_STREAM:
            self._end(events, stream, STATUS_NONE if status is None else status)

    def _end(self, events: list[Event], stream: int, status: int) -> None:
        self._messages.pop(stream, None)
        self._windows.pop(stream, None)
        events.append((stream, None, status))

    def _on_control(self, events: list[Event], kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == WINDOW_UPDATE:
            (more,) = _LONG.unpack(payload)
            if stream == 0:
                self._window += more
            elif stream in self._windows:
                self._windows[stream] += more
            self._send_blocked()
        elif kind == SETTINGS:
            if not flags & ACK:
                self._on_settings(payload)
                self._outgoing.append(frame(SETTINGS, ACK, 0))
        elif kind == PING:
            if not flags & ACK:
                self._outgoing.append(frame(PING, ACK, 0, payload))
        elif kind == RST_STREAM:
            self._end(events, stream, STATUS_NONE)
        elif kind == GOAWAY:
            raise ProtocolError(f"the server ends the connection: {payload[4:]!r}")
        elif kind in (PUSH_PROMISE, CONTINUATION):
            raise ProtocolError(f"a frame of kind {kind}")
        # RFC 9113 section 4.1: others are ignored, PRIORITY among them.

    def _on_settings(self, payload: bytes) -> None:
        for identifier, value in _SETTING.iter_unpack(payload):
            if identifier == INITIAL_WINDOW_SIZE:
                for stream in self._windows:
                    self._windows[stream] += value - self._initial_window
                self._initial_window = value
            elif identifier == MAX_FRAME_SIZE:
                self._frame_bytes_max = value
            elif identifier == HEADER_TABLE_SIZE and value < TABLE_DEFAULT:
                raise ProtocolError(f"the server keeps a header table of {value} bytes only")
        self._send_blocked()


def _status_of(block: bytes) -> int | None:
    try:
        fields = decode_block(block)
    except (ValueError, IndexError) as error:
        raise ProtocolError(f"header block {block.hex()}: {error}") from error
    for name, value in fields:
        if name == ":status" and value != "200":
            raise ProtocolError(f"the server answers with HTTP status {value}")
        if name == "grpc-status":
            return int(value)
    return None
