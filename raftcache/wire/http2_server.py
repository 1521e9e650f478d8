"""The server's end of an HTTP/2 connection: `http2`, and what only a server does.

It hears the preface, lets the peer open streams, refuses what is too much, and says goodbye in two steps (RFC 9113 §6.8).
Section numbers are those of RFC 9113.
"""

from raftcache.wire import http2_frames as frames
from raftcache.wire.hpack import HeaderList
from raftcache.wire.http2 import Connection, Http2Limits, take_length, take_trailers
from raftcache.wire.http2_errors import (
    NO_ERROR,
    PROTOCOL_ERROR,
    REFUSED_STREAM,
    STREAM_CLOSED,
    ConnectionViolation,
    StreamViolation,
)
from raftcache.wire.http2_frames import WINDOW_MAX
from raftcache.wire.http2_headers import flaw_of_request
from raftcache.wire.http2_stream import DataReceived, HeadersReceived, Stream, StreamReset


class ServerConnection(Connection):
    """The server's end."""

    _hello = frames.PREFACE

    def __init__(self, limits: Http2Limits, now_ns: int) -> None:
        settings = {
            frames.MAX_CONCURRENT_STREAMS: limits.streams_max,
            frames.INITIAL_WINDOW_SIZE: limits.stream_window,
            frames.MAX_HEADER_LIST_SIZE: limits.header_list_bytes_max,
        }
        super().__init__(limits, now_ns, [frames.settings(settings)])
        self._accepted_max = WINDOW_MAX
        """Streams above this are ignored: we said goodbye."""

    def announce_end(self) -> None:
        """Asks the peer to open no more streams. Those that it has opened meanwhile are accepted (§6.8)."""
        self.sender.out.append(frames.goaway(WINDOW_MAX, NO_ERROR))

    def accept_no_more(self) -> None:
        """Streams that come from now on are ignored, and the peer knows that they had no effect."""
        self._accepted_max = self._last_stream_id
        self.sender.out.append(frames.goaway(self._last_stream_id, NO_ERROR))

    def _last_of_peer(self) -> int:
        # §6.8: never more than was said before. What came after that the client may have sent to somebody else.
        return min(self._last_stream_id, self._accepted_max)

    def _is_ignored(self, stream_id: int) -> bool:
        return stream_id > self._accepted_max

    def _on_header_list(self, stream_id: int, headers: HeaderList, ended: bool) -> None:
        if stream_id <= self._last_stream_id:
            self._on_trailers(stream_id, headers, ended)
            return
        if not stream_id & 1:
            raise ConnectionViolation(PROTOCOL_ERROR, f"a client opened stream {stream_id}: clients' are odd")
        self._last_stream_id = stream_id
        if stream_id > self._accepted_max:
            self._control.spend(self._now_ns, self.sender.finished)
            return
        if headers.flaw is None:
            headers.flaw = flaw_of_request(headers)
        if headers.flaw and not headers.too_large:
            raise StreamViolation(stream_id, PROTOCOL_ERROR, headers.flaw)
        if len(self.streams) >= self._limits.streams_max:
            raise StreamViolation(stream_id, REFUSED_STREAM, "too many streams")
        stream = Stream(stream_id, self.sender.initial_window, self._limits.stream_window, ended)
        stream.headed = True
        take_length(stream, headers, ended)
        self.streams[stream_id] = stream
        self._events.append(HeadersReceived(stream, headers, b"", ended))

    def _on_trailers(self, stream_id: int, headers: HeaderList, ended: bool) -> None:
        stream = self.streams.get(stream_id)
        if stream is None:
            if self._is_idle(stream_id):
                raise ConnectionViolation(PROTOCOL_ERROR, f"HEADERS on stream {stream_id}, which no client opens")
            if stream_id in self._recently_reset or stream_id > self._accepted_max:
                return
            # §5.1.1: ids only grow. A stream that both sides have ended cannot begin again.
            raise ConnectionViolation(STREAM_CLOSED, f"HEADERS on stream {stream_id}, which is closed")
        if stream.remote_ended:
            raise StreamViolation(stream.id, STREAM_CLOSED, "HEADERS after END_STREAM")
        take_trailers(stream, headers, ended)
        self._events.append(DataReceived(stream, b"", ended=True))

    def _on_remote_ended(self, stream: Stream) -> None:
        """The stream stays open for our answer."""

    def _on_local_ended(self, stream: Stream) -> None:
        """The answer is complete. If the request is not, the client is told to send no more (§8.1)."""
        if self.streams.pop(stream.id, None) is not None and not stream.remote_ended:
            self._write_reset(stream.id, NO_ERROR)

    def _on_reset(self, stream: Stream, code: int) -> None:
        self._events.append(StreamReset(stream, code))

    def _on_goodbye(self, last_stream_id: int, code: int, reason: bytes) -> None:
        """The client opens no more streams, and hangs up when those that it has are answered."""
