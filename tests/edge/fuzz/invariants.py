"""What holds of a connection after every step, and of every byte that it writes."""

from raftcache.wire import http2_frames as frames
from raftcache.wire.hpack import TABLE_BYTES_DEFAULT, Decoder
from raftcache.wire.http2 import CONTINUATIONS_MAX, Connection, Http2Limits
from raftcache.wire.http2_server import ServerConnection


def check_connection(connection: Connection, limits: Http2Limits) -> None:
    """Its accounts add up, and everything that it keeps is bounded."""
    sender = connection.sender
    queued = sum(len(chunk) for stream in connection.streams.values() for chunk in stream.queue or ())
    assert sender.unsent == queued, f"{sender.unsent} counted, {queued} queued"
    scheduled = [stream for stream in connection.streams.values() if stream.scheduled]
    assert sorted(stream.id for stream in sender._round) == [stream.id for stream in scheduled], sender._round
    is_server = isinstance(connection, ServerConnection)
    assert not is_server or len(connection.streams) <= limits.streams_max, f"{len(connection.streams)} streams"
    for stream_id, stream in connection.streams.items():
        assert stream_id == stream.id <= connection._last_stream_id, (
            f"{stream_id} is open; the last is {connection._last_stream_id}"
        )
        assert stream_id & 1, f"{stream_id} is open"
        over = stream.local_ended if is_server else stream.remote_ended
        assert not over, f"stream {stream_id} is open, and the answer is complete"
        assert 0 <= stream.receive_window <= frames.WINDOW_MAX, stream.receive_window
        assert stream.send_window <= frames.WINDOW_MAX, stream.send_window
        waits = bool(stream.queue) and stream.send_window > 0
        assert stream.scheduled or not waits, f"stream {stream_id} could send {stream.queue}, and is not in the round"
    assert connection._ended or 0 <= connection._window <= connection._window_full, connection._window
    assert 0 <= sender.window <= frames.WINDOW_MAX or connection._ended, sender.window
    assert len(connection._rest) < frames.FRAME_BYTES_DEFAULT + frames.FRAME_HEADER_BYTES, len(connection._rest)
    assert len(connection._recently_reset) <= connection._recently_reset_max, len(connection._recently_reset)
    assert connection._decoder._table._bytes <= TABLE_BYTES_DEFAULT, connection._decoder._table._bytes
    if connection._block is not None and connection._block.continuations and not connection._ended:
        held = len(connection._block.data)
        assert held <= limits.header_list_bytes_max, f"{held} bytes of a header block"
        assert connection._block.continuations <= CONTINUATIONS_MAX, f"{connection._block.continuations} frames"
    if connection._ended:
        assert not connection.streams, connection.streams


class Reader:
    """Reads what a connection writes, as a peer that believes nothing."""

    def __init__(self, hello: bytes = b"") -> None:
        self._hello = hello
        """What comes before the first frame."""
        self._decoder = Decoder(1 << 20)
        self._heads: set[int] = set()
        """Streams on which it has sent a head."""
        self._ended: set[int] = set()
        """Streams that it has ended or reset."""
        self.data_bytes = 0
        """DATA on all streams."""
        self._last = frames.WINDOW_MAX
        """The last stream that a GOAWAY named."""
        self.goodbye: int | None = None
        """The code of a GOAWAY that ends the connection."""

    def read(self, data: bytes, connection: Connection) -> None:
        """Takes whole frames: nobody writes parts of one."""
        position = len(self._hello)
        assert data.startswith(self._hello), data
        self._hello = b""
        while position < len(data):
            assert self.goodbye is None, f"{data[position:].hex()} behind the last GOAWAY"
            upper, lower, kind, flags, stream_id = frames.FRAME_HEADER.unpack_from(data, position)
            position += frames.FRAME_HEADER_BYTES
            length = upper << 8 | lower
            assert length <= frames.FRAME_BYTES_DEFAULT, f"a frame of {length} bytes"
            payload = data[position : position + length]
            assert len(payload) == length, "a part of a frame"
            position += length
            self._take(kind, flags, stream_id, payload, connection)

    def _take(self, kind: int, flags: int, stream_id: int, payload: bytes, connection: Connection) -> None:
        if kind in (frames.HEADERS, frames.DATA):
            assert stream_id not in self._ended, f"a frame of kind {kind} on stream {stream_id}, which is over"
        if kind in (frames.HEADERS, frames.DATA, frames.RST_STREAM, frames.WINDOW_UPDATE):
            assert stream_id <= connection._last_stream_id, (
                f"a frame of kind {kind} on stream {stream_id}, which is idle"
            )
        if kind == frames.HEADERS:
            assert flags & frames.END_HEADERS, "no head of ours is that long"
            names = [name for name, _ in self._decoder.decode(payload).fields]
            self._take_head(stream_id, names)
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

    def _take_head(self, stream_id: int, names: list[bytes]) -> None:
        """An answer's head, or its trailers."""
        assert (b":status" in names) == (stream_id not in self._heads), f"{names} on stream {stream_id}"


class RequestReader(Reader):
    """Reads what a client writes."""

    def __init__(self) -> None:
        super().__init__(frames.PREFACE)

    def _take_head(self, stream_id: int, names: list[bytes]) -> None:
        assert b":method" in names, f"{names} on stream {stream_id}"
        assert stream_id & 1, f"a client opened stream {stream_id}"
        assert stream_id > max(self._heads, default=0), f"stream {stream_id} was opened after {max(self._heads)}"
