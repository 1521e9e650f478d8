"""The sending half of an HTTP/2 connection: frames, flow control, and what waits for a window.

    respond, request ─── fits ──────────────────► out ─► one write
       └ does not fit, or send_data ─► queue of the stream ─► round of the streams that may send ─► out

Rules of this file:
- whole responses that fit the windows, which is nearly all, leave as one piece and touch no queue;
- streams with something queued and an open window of their own take turns, one frame each, so that a large reply holds
  up nobody else's (§5.2.1). A stream whose own window is closed leaves the round until its WINDOW_UPDATE;
- `writable` is the transport's back-pressure, and works like a closed connection window. Control frames pass: their number is
  bounded by what the receiving half allows the peer;
- what is queued is counted in `unsent`, for whoever bounds memory.

Section numbers are those of RFC 9113.
"""

import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from raftcache.wire import http2_frames as frames
from raftcache.wire.hpack import Encoder, Fields
from raftcache.wire.http2_errors import FLOW_CONTROL_ERROR, ConnectionViolation, StreamViolation
from raftcache.wire.http2_frames import DATA, END_HEADERS, END_STREAM, HEADERS, WINDOW_DEFAULT, WINDOW_MAX
from raftcache.wire.http2_stream import Stream

_DATA_PREFIX: Final = struct.Struct(">HBH").pack
"""A frame header without its stream id: length (upper 16 bits, lower 8), kind and flags."""
_HEADERS_ON: Final = HEADERS << 8 | END_HEADERS
_HEADERS_LAST: Final = HEADERS << 8 | END_HEADERS | END_STREAM
_DATA_ON: Final = DATA << 8
_DATA_LAST: Final = DATA << 8 | END_STREAM

OUT_BYTES_MAX: Final = 1 << 20
"""Of DATA in one write. It is only after a write that the transport can say that it has enough."""


@dataclass(frozen=True, slots=True, eq=False)
class ResponseShape:
    """What responses have in common beside their body. There are few; a connection keeps how each looks as frames."""

    head: Fields
    trailers: Fields


@dataclass(frozen=True, slots=True, eq=False)
class RequestShape:
    """What requests have in common beside their body."""

    head: Fields


SHAPES_KEPT_MAX: Final = 256
"""Of requests: methods, each with the few timeouts that are usual. Beyond, the cache starts anew."""


class Sender:
    """What one end of a connection sends."""

    def __init__(self, on_end: Callable[[Stream], None]) -> None:
        """`on_end` is told of each stream that we have ended, behind its last frame."""
        self._on_end = on_end
        self.out: list[bytes] = []
        """Frames on their way to the transport, in order."""
        self._room = OUT_BYTES_MAX
        """Bytes of DATA that `out` still takes before it is written."""
        self.window = WINDOW_DEFAULT
        """Bytes of DATA that we may send on the connection."""
        self.initial_window = WINDOW_DEFAULT
        """Where the windows of new streams begin: the peer's SETTINGS_INITIAL_WINDOW_SIZE."""
        self.writable = True
        self.unsent = 0
        """Bytes in all queues."""
        self.finished = 0
        """Streams that we have ended: the work by which floods are measured."""
        self.framed_bytes = 0
        """Of DATA that went by the queues, which is all that is large: what WINDOW_UPDATEs are owed to."""
        self.taken: list[Stream] = []
        """Streams whose `chunks_taken` has grown since whoever reads this last emptied it."""
        self._encoder = Encoder()
        self._round: deque[Stream] = deque()
        """Streams with something queued and an open window of their own."""
        self._framed: dict[ResponseShape, tuple[bytes, bytes, bytes, bytes]] = {}
        """Both header frames of a response, each cut where its stream id belongs; valid while the encoder's table does not
        change."""
        self._framed_at = 0
        self._blocks: dict[RequestShape, tuple[bytes, bytes]] = {}
        """As `_framed`, of requests."""
        self._blocks_at = 0

    # --- What the layer above sends -----------------------------------------------------------------------------------

    def respond(self, stream: Stream, shape: ResponseShape, body: bytes) -> None:
        """A whole response."""
        length = len(body)
        if not self._goes_at_once(stream, length):
            self.send_headers(stream, shape.head)
            self.send_data(stream, [body])
            self.end(stream, shape.trailers)
            return
        self.window -= length
        self._room -= length
        framed = self._framed.get(shape) if self._framed_at == self._encoder.changes else None
        before, block, before_last, block_last = framed or self._frame(shape)
        stream_id = stream.id.to_bytes(4, "big")
        prefix = _DATA_PREFIX(length >> 8, length & 0xFF, _DATA_ON)
        self.out.append(
            b"".join((before, stream_id, block, prefix, stream_id, body, before_last, stream_id, block_last))
        )
        stream.local_ended = True
        self.finished += 1
        self._on_end(stream)

    def request(self, stream: Stream, shape: RequestShape, body: bytes) -> None:
        """A whole request."""
        length = len(body)
        if not self._goes_at_once(stream, length):
            self.send_headers(stream, shape.head)
            self.send_data(stream, [body])
            self.end(stream, ())
            return
        self.window -= length
        self._room -= length
        framed = self._blocks.get(shape) if self._blocks_at == self._encoder.changes else None
        before, block = framed or self._block(shape)
        stream_id = stream.id.to_bytes(4, "big")
        prefix = _DATA_PREFIX(length >> 8, length & 0xFF, _DATA_LAST)
        self.out.append(b"".join((before, stream_id, block, prefix, stream_id, body)))
        stream.local_ended = True
        self.finished += 1
        self._on_end(stream)

    def _goes_at_once(self, stream: Stream, length: int) -> bool:
        """Whether a body of `length` bytes fits one frame and all windows, and nothing waits that came before it."""
        return (
            length <= self.window
            and length <= self._room
            and length <= stream.send_window
            and length <= frames.FRAME_BYTES_DEFAULT
            and self.writable
            and not self._round
        )

    def send_headers(self, stream: Stream, fields: Fields, *, end: bool = False) -> None:
        """The head of a message; with `end`, all of it."""
        block = self._encoder.encode(fields)
        self.out.append(frames.headers(stream.id, block, end_stream=end, frame_bytes_max=frames.FRAME_BYTES_DEFAULT))
        if end:
            self._finish(stream)

    def send_data(self, stream: Stream, chunks: list[bytes]) -> None:
        """Sends or queues `chunks`; each is counted in `taken` when all of it has left."""
        assert stream.trailers is None, f"DATA behind the trailers of stream {stream.id}"
        assert not stream.local_ended, f"DATA after the end of stream {stream.id}"
        if stream.queue is None:
            stream.queue = deque()
        stream.queue.extend(chunks)
        self.unsent += sum(map(len, chunks))
        self._schedule(stream)
        self._send_round()

    def end(self, stream: Stream, trailers: Fields) -> None:
        """Ends the stream behind what is queued. Empty `trailers`: with an empty DATA, which is how a request ends."""
        assert not stream.local_ended, f"stream {stream.id} is ended twice"
        if stream.queue:
            stream.trailers = trailers
        else:
            self._send_end(stream, trailers)

    def discard(self, stream: Stream) -> None:
        """The stream is over: what waits on it never leaves."""
        if stream.queue:
            self.unsent -= sum(map(len, stream.queue))
            stream.queue.clear()
        if stream.scheduled:
            self._round.remove(stream)
            stream.scheduled = False
        stream.local_ended = True

    # --- Windows ------------------------------------------------------------------------------------------------------

    def on_window_update(self, increment: int) -> None:
        """The connection's. Raises: `ConnectionViolation`."""
        self.window += increment
        if self.window > WINDOW_MAX:
            raise ConnectionViolation(FLOW_CONTROL_ERROR, "the connection's window has grown beyond 2**31-1")
        self._send_round()

    def on_stream_window_update(self, stream: Stream, increment: int) -> None:
        """One stream's. Raises: `StreamViolation`."""
        stream.send_window += increment
        if stream.send_window > WINDOW_MAX:
            raise StreamViolation(stream.id, FLOW_CONTROL_ERROR, "the stream's window has grown beyond 2**31-1")
        if stream.queue:
            self._schedule(stream)
            self._send_round()

    def on_initial_window(self, size: int, streams: list[Stream]) -> None:
        """The peer's SETTINGS_INITIAL_WINDOW_SIZE changed; it moves all windows (§6.9.2). Raises: `ConnectionViolation`."""
        difference, self.initial_window = size - self.initial_window, size
        for stream in streams:
            stream.send_window += difference
            if stream.send_window > WINDOW_MAX:
                raise ConnectionViolation(FLOW_CONTROL_ERROR, "a stream's window has grown beyond 2**31-1")
            if stream.queue:
                self._schedule(stream)
        self._send_round()

    def on_table_size(self, size: int) -> None:
        """The peer's SETTINGS_HEADER_TABLE_SIZE."""
        self._encoder.resize(size)

    def set_writable(self, writable: bool) -> None:
        """The transport takes more, or does not."""
        self.writable = writable
        if writable:
            self._send_round()

    def data_to_send(self) -> bytes:
        """What is to be written now; empty if there is nothing. There may be more as soon as that is written."""
        if self._round:
            self._send_round()
        out = self.out
        data = b"".join(out) if len(out) != 1 else out[0]
        out.clear()
        self._room = OUT_BYTES_MAX
        return data

    # --- The round ----------------------------------------------------------------------------------------------------

    def _schedule(self, stream: Stream) -> None:
        if not stream.scheduled and stream.send_window > 0:
            stream.scheduled = True
            self._round.append(stream)

    def _send_round(self) -> None:
        while self._round and self.window > 0 and self._room > 0 and self.writable:
            stream = self._round.popleft()
            if stream.send_window > 0:
                self._send_frame(stream)
            if stream.queue and stream.send_window > 0:
                self._round.append(stream)
                continue
            stream.scheduled = False
            if not stream.queue and stream.trailers is not None:
                self._send_end(stream, stream.trailers)

    def _send_frame(self, stream: Stream) -> None:
        """One DATA frame from the stream's queue: as many chunks as fit, the last one perhaps in part."""
        queue = stream.queue
        assert queue, f"stream {stream.id} is in the round with nothing to send"
        room = min(self.window, stream.send_window, frames.FRAME_BYTES_DEFAULT)
        parts: list[bytes | memoryview] = []
        left = room
        while queue and left:
            chunk = queue[0]
            if len(chunk) > left:
                rest = memoryview(chunk)  # a large chunk must not be copied again for each of its frames
                queue[0] = rest[left:]
                parts.append(rest[:left])
                left = 0
            else:
                parts.append(queue.popleft())
                left -= len(chunk)
                if not stream.chunks_taken:
                    self.taken.append(stream)
                stream.chunks_taken += 1
        payload = b"".join(parts)
        self.window -= len(payload)
        self._room -= len(payload)
        self.framed_bytes += len(payload)
        stream.send_window -= len(payload)
        self.unsent -= len(payload)
        self.out.append(frames.frame(DATA, 0, stream.id, payload))

    def _send_end(self, stream: Stream, trailers: Fields) -> None:
        if trailers:
            self.send_headers(stream, trailers, end=True)
        else:
            self.out.append(frames.frame(DATA, END_STREAM, stream.id, b""))
            self._finish(stream)

    def _finish(self, stream: Stream) -> None:
        stream.local_ended = True
        self.finished += 1
        self._on_end(stream)

    def _frame(self, shape: ResponseShape) -> tuple[bytes, bytes, bytes, bytes]:
        """The header frames of `shape`; kept, unless encoding them has just changed the table."""
        before = self._encoder.changes
        block, block_last = self._encoder.encode(shape.head), self._encoder.encode(shape.trailers)
        framed = (
            _DATA_PREFIX(len(block) >> 8, len(block) & 0xFF, _HEADERS_ON),
            block,
            _DATA_PREFIX(len(block_last) >> 8, len(block_last) & 0xFF, _HEADERS_LAST),
            block_last,
        )
        if self._framed_at != self._encoder.changes:
            self._framed.clear()
            self._framed_at = self._encoder.changes
        if before == self._encoder.changes:
            self._framed[shape] = framed
        return framed

    def _block(self, shape: RequestShape) -> tuple[bytes, bytes]:
        """The header frame of `shape`, cut where its stream id belongs; kept as `_frame` keeps."""
        before = self._encoder.changes
        block = self._encoder.encode(shape.head)
        assert len(block) <= frames.FRAME_BYTES_DEFAULT, f"a request's head of {len(block)} bytes"
        framed = (_DATA_PREFIX(len(block) >> 8, len(block) & 0xFF, _HEADERS_ON), block)
        if self._blocks_at != self._encoder.changes or len(self._blocks) >= SHAPES_KEPT_MAX:
            self._blocks.clear()
            self._blocks_at = self._encoder.changes
        if before == self._encoder.changes:
            self._blocks[shape] = framed
        return framed
