"""What holds of a server connection after every step, and of every byte that it writes."""

from raftcache.wire import http2_frames as frames
from raftcache.wire.hpack import TABLE_BYTES_DEFAULT, Decoder
from raftcache.wire.http2 import CONTINUATIONS_MAX, Http2Limits
from raftcache.wire.http2_server import ServerConnection


def check_connection(server: ServerConnection, limits: Http2Limits) -> None:
    """Its accounts add up, and everything that it keeps is bounded."""
    sender = server.sender
    queued = sum(len(chunk) for stream in server.streams.values() for chunk in stream.queue or ())
    assert sender.unsent == queued, f"{sender.unsent} counted, {queued} queued"
    scheduled = [stream for stream in server.streams.values() if stream.scheduled]
    assert sorted(stream.id for stream in sender._round) == [stream.id for stream in scheduled], sender._round
    assert len(server.streams) <= limits.streams_max, f"{len(server.streams)} streams"
    for stream_id, stream in server.streams.items():
        assert stream_id == stream.id <= server._last_stream_id, (
            f"{stream_id} is open; the last is {server._last_stream_id}"
        )
        assert stream_id & 1, f"{stream_id} is open"
        assert not stream.local_ended, f"stream {stream_id} is open, and we ended it"
        assert 0 <= stream.receive_window <= frames.WINDOW_MAX, stream.receive_window
        assert stream.send_window <= frames.WINDOW_MAX, stream.send_window
        waits = bool(stream.queue) and stream.send_window > 0
        assert stream.scheduled or not waits, f"stream {stream_id} could send {stream.queue}, and is not in the round"
    assert server._ended or 0 <= server._window <= server._window_full, server._window
    assert 0 <= sender.window <= frames.WINDOW_MAX or server._ended, sender.window
    assert len(server._rest) < frames.FRAME_BYTES_DEFAULT + frames.FRAME_HEADER_BYTES, len(server._rest)
    assert len(server._recently_reset) <= server._recently_reset_max, len(server._recently_reset)
    assert server._decoder._table._bytes <= TABLE_BYTES_DEFAULT, server._decoder._table._bytes
    if server._block is not None and server._block.continuations and not server._ended:
        held = len(server._block.data)
        assert held <= limits.header_list_bytes_max, f"{held} bytes of a header block"
        assert server._block.continuations <= CONTINUATIONS_MAX, f"{server._block.continuations} frames"
    if server._ended:
        assert not server.streams, server.streams


class Reader:
    """Reads what a server writes, as a client that believes nothing."""

    def __init__(self) -> None:
        self._decoder = Decoder(1 << 20)
        self._heads: set[int] = set()
        """Streams whose answer has begun."""
        self._ended: set[int] = set()
        """Streams that the server has ended or reset."""
        self.data_bytes = 0
        """DATA on all streams."""
        self._last = frames.WINDOW_MAX
        """The last stream that a GOAWAY named."""
        self.goodbye: int | None = None
        """The code of a GOAWAY that ends the connection."""

    def read(self, data: bytes, server: ServerConnection) -> None:
        """Takes whole frames: a server writes no parts of one."""
        position = 0
        while position < len(data):
            assert self.goodbye is None, f"{data[position:].hex()} behind the last GOAWAY"
            upper, lower, kind, flags, stream_id = frames.FRAME_HEADER.unpack_from(data, position)
            position += frames.FRAME_HEADER_BYTES
            length = upper << 8 | lower
            assert length <= frames.FRAME_BYTES_DEFAULT, f"a frame of {length} bytes"
            payload = data[position : position + length]
            assert len(payload) == length, "a part of a frame"
            position += length
            self._take(kind, flags, stream_id, payload, server)

    def _take(self, kind: int, flags: int, stream_id: int, payload: bytes, server: ServerConnection) -> None:
        if kind in (frames.HEADERS, frames.DATA):
            assert stream_id not in self._ended, f"a frame of kind {kind} on stream {stream_id}, which is over"
        if kind in (frames.HEADERS, frames.DATA, frames.RST_STREAM, frames.WINDOW_UPDATE):
            assert stream_id <= server._last_stream_id, f"a frame of kind {kind} on stream {stream_id}, which is idle"
        if kind == frames.HEADERS:
            assert flags & frames.END_HEADERS, "no answer of ours is that long"
            names = [name for name, _ in self._decoder.decode(payload).fields]
            assert (b":status" in names) == (stream_id not in self._heads), f"{names} on stream {stream_id}"
            self._heads.add(stream_id)
        elif kind == frames.DATA:
            assert stream_id in self._heads, f"DATA before the head of stream {stream_id}"
            self.data_bytes += len(payload)
        elif kind == frames.RST_STREAM:
            assert stream_id & 1, f"RST_STREAM on stream {stream_id}"
            self._ended.add(stream_id)
        elif kind == frames.GOAWAY:
            last, code = int.from_bytes(payload[:4], "big"), int.from_bytes(payload[4:8], "big")
            assert last <= self._last, f"GOAWAY says {last} was the last stream, after {self._last}"
            self._last, self.goodbye = last, code or None
        if kind in (frames.HEADERS, frames.DATA) and flags & frames.END_STREAM:
            self._ended.add(stream_id)
