"""The client's end of an HTTP/2 connection: `http2`, and what only a client does.

    room, open ─► sender.request ─► ... ─► HeadersReceived, DataReceived, TrailersReceived
                                       └─► StreamReset, StreamRefused

It says the preface, opens no more streams than the server allows, and takes a goodbye for what it is: streams that the server
says it has not looked at are *refused*, which is more than reset: they had no effect (RFC 9113 §6.8, §8.7). A stream is over
when the response is complete, whatever of the request is still to be sent (§8.1).

Good answers are alike: the same head, one DATA, the same trailers. Once one was read frame by frame, the next ones are compared
with it and taken whole (`_Pattern`). Whatever is different in any way is read frame by frame again.

What a server may send is bounded as what a client may: header lists, frames, windows, and by allowances what is no response.
Section numbers are those of RFC 9113.
"""

from dataclasses import dataclass
from typing import Final

from raftcache.wire import http2_frames as frames
from raftcache.wire.hpack import HeaderList
from raftcache.wire.http2 import Connection, Http2Limits, take_length, take_trailers
from raftcache.wire.http2_errors import NO_ERROR, PROTOCOL_ERROR, REFUSED_STREAM, ConnectionViolation, StreamViolation
from raftcache.wire.http2_frames import FRAME_HEADER, FRAME_HEADER_BYTES, WINDOW_MAX
from raftcache.wire.http2_headers import flaw_of_response
from raftcache.wire.http2_stream import (
    HeadersReceived,
    PeerLeaving,
    Stream,
    StreamRefused,
    StreamReset,
    TrailersReceived,
)

STREAM_ID_MAX: Final = WINDOW_MAX
"""§5.1.1: then a new connection is due."""


@dataclass(frozen=True, slots=True)
class _Pattern:
    """How answers look on the wire; valid while the decoder's table does not change."""

    changes: int
    """The decoder's."""
    before: bytes
    """The head's frame up to its stream id ..."""
    block: bytes
    """... and what comes behind that."""
    before_last: bytes
    block_last: bytes
    """The trailers' frame, in the same way."""
    head: HeaderList
    trailers: HeaderList


class ClientConnection(Connection):
    """The client's end."""

    _enable_push_max = 0
    _recently_reset_max = 4_000
    """Who gives up on many calls at once still gets their answers."""

    def __init__(self, limits: Http2Limits, now_ns: int) -> None:
        settings = {
            frames.ENABLE_PUSH: 0,
            frames.INITIAL_WINDOW_SIZE: limits.stream_window,
            frames.MAX_HEADER_LIST_SIZE: limits.header_list_bytes_max,
        }
        super().__init__(limits, now_ns, [frames.PREFACE, frames.settings(settings)])
        self._pattern: _Pattern | None = None
        self._blocks = (b"", b"")
        """The last two header blocks that were read."""
        self.leaving = False
        """No new streams: the server has said goodbye, or ids have come to their end."""

    @property
    def room(self) -> int:
        """How many streams may be opened now."""
        if self.leaving or self._ended:
            return 0
        return self.peer_streams_max - len(self.streams)

    @property
    def last_stream_id(self) -> int:
        """The stream that was opened last; 0: none was."""
        return self._last_stream_id

    def open(self) -> Stream:
        """A new stream; its request is to be sent at once, because ids only grow on the wire."""
        assert self.room > 0, f"{len(self.streams)} streams are open, leaving: {self.leaving}"
        self._last_stream_id = stream_id = self._last_stream_id + 2 if self._last_stream_id else 1
        stream = self.streams[stream_id] = Stream(
            stream_id, self.sender.initial_window, self._limits.stream_window, False
        )
        self.leaving = stream_id == STREAM_ID_MAX
        return stream

    def _on_frames(self, data: bytes, position: int) -> int:
        pattern = self._pattern
        if pattern is not None and self._only is None and pattern.changes == self._decoder.changes:
            position = self._on_alike(data, position, pattern)
        return super()._on_frames(data, position)

    def _on_alike(self, data: bytes, position: int, pattern: _Pattern) -> int:
        """Takes the whole answers at `position` that are like the pattern; where the first other thing begins."""
        before, block, before_last, block_last = pattern.before, pattern.block, pattern.before_last, pattern.block_last
        head_bytes, last_bytes = FRAME_HEADER_BYTES + len(block), FRAME_HEADER_BYTES + len(block_last)
        end, streams, events, unpack = len(data), self.streams, self._events, FRAME_HEADER.unpack_from
        while position + head_bytes + FRAME_HEADER_BYTES <= end:
            second = position + head_bytes
            upper, lower, kind, flags, stream_id = unpack(data, second)
            length = upper << 8 | lower
            first = second + FRAME_HEADER_BYTES
            third = first + length
            stop = third + last_bytes
            stream = streams.get(stream_id)
            if (
                stream is None
                or stop > end
                or kind != frames.DATA
                or flags
                or not data.startswith(before, position)
                or not data.startswith(block, position + FRAME_HEADER_BYTES)
                or not data.startswith(before_last, third)
                or not data.startswith(block_last, third + FRAME_HEADER_BYTES)
                or not data[position + 5 : position + 9] == data[second + 5 : first] == data[third + 5 : third + 9]
                or stream.headed
                or not stream.local_ended
                or not 0 < length <= min(frames.FRAME_BYTES_DEFAULT, stream.receive_window, self._window)
            ):
                break
            stream.headed = stream.remote_ended = True
            self._window -= length
            del streams[stream_id]
            events.append(HeadersReceived(stream, pattern.head, data[first:third], True, pattern.trailers))
            position = stop
        return position

    def _on_header_block(self, stream_id: int, block: bytes, ended: bool) -> None:
        self._blocks = (self._blocks[1], block)
        super()._on_header_block(stream_id, block, ended)

    def _learn(self, head: HeaderList, trailers: HeaderList) -> None:
        """An answer came in one piece: others may be like it."""
        block, block_last = self._blocks
        if head.content_length is not None:
            return  # its DATA is to be counted
        # Both blocks must still mean what they meant: one that changes the table is remembered by nobody.
        if self._decoder.knows(block) is head and self._decoder.knows(block_last) is trailers:
            before = frames.headers(0, block, end_stream=False, frame_bytes_max=frames.FRAME_BYTES_DEFAULT)[:5]
            last = frames.headers(0, block_last, end_stream=True, frame_bytes_max=frames.FRAME_BYTES_DEFAULT)[:5]
            self._pattern = _Pattern(self._decoder.changes, before, block, last, block_last, head, trailers)

    def _last_of_peer(self) -> int:
        return 0

    def _on_header_list(self, stream_id: int, headers: HeaderList, ended: bool) -> None:
        stream = self.streams.get(stream_id)
        if stream is None:
            if self._is_idle(stream_id):
                raise ConnectionViolation(PROTOCOL_ERROR, f"HEADERS on stream {stream_id}, which is idle")
            # §5.1: an answer may have been under way when we gave the stream up.
            if stream_id not in self._recently_reset:
                self._control.spend(self._now_ns, self.sender.finished)
            return
        if headers.too_large:
            raise StreamViolation(stream_id, PROTOCOL_ERROR, "a header list that is too large")
        if stream.headed:
            self._on_trailers(stream, headers, ended)
            return
        if headers.flaw is None:
            headers.flaw = flaw_of_response(headers)
        if headers.flaw:
            raise StreamViolation(stream_id, PROTOCOL_ERROR, headers.flaw)
        if headers.fields[0][1][:1] == b"1":  # §8.1: any number of these may come before the response
            if ended:
                raise StreamViolation(stream_id, PROTOCOL_ERROR, "an interim response that ends the stream")
            self._control.spend(self._now_ns, self.sender.finished)
            return
        take_length(stream, headers, ended)
        stream.headed = True
        self._events.append(HeadersReceived(stream, headers, b"", ended))
        if ended:
            stream.remote_ended = True
            self._on_remote_ended(stream)

    def _on_trailers(self, stream: Stream, headers: HeaderList, ended: bool) -> None:
        take_trailers(stream, headers, ended)
        events = self._events
        if events and type(head := events[-1]) is HeadersReceived and head.stream is stream:
            head.trailers, head.ended = headers, True
            if self._pattern is None or self._pattern.changes != self._decoder.changes:
                self._learn(head.headers, headers)
        else:
            events.append(TrailersReceived(stream, headers))
        self._on_remote_ended(stream)

    def _on_remote_ended(self, stream: Stream) -> None:
        """The answer is complete, and so is the call: who answers early does not want the rest."""
        del self.streams[stream.id]
        if not stream.local_ended:
            self.sender.discard(stream)
            self._write_reset(stream.id, NO_ERROR)

    def _on_local_ended(self, stream: Stream) -> None:
        """The stream stays open for its answer."""

    def _on_reset(self, stream: Stream, code: int) -> None:
        if code == REFUSED_STREAM and not stream.headed:
            self._events.append(StreamRefused(stream))
        else:
            self._events.append(StreamReset(stream, code))

    def _on_goodbye(self, last_stream_id: int, code: int, reason: bytes) -> None:
        """§6.8: what is above the last id was not looked at, and may be asked again elsewhere; the rest is still answered."""
        self.leaving = True
        for stream in [stream for stream_id, stream in self.streams.items() if stream_id > last_stream_id]:
            del self.streams[stream.id]
            self.sender.discard(stream)
            # One that was answered in part contradicts itself: better not to believe it.
            self._events.append(StreamReset(stream, code) if stream.headed else StreamRefused(stream))
        self._events.append(PeerLeaving(code, reason))
