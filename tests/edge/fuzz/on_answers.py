"""The client connection under any bytes of a server: raw ones, and sequences of frames that a mutator keeps plausible.

An input is three bytes of circumstances and what a server sends. It is played twice, the second time to a client that reads all
answers frame by frame: that others are taken whole, because they look alike, must make no difference to anybody.
"""

import random
from collections.abc import Callable
from typing import Final

from raftcache.wire import http2_frames as frames
from raftcache.wire import http2_headers, huffman
from raftcache.wire.grpc_reply import reply_head, status_of
from raftcache.wire.grpc_wire import MessageReader, WireError, framed
from raftcache.wire.hpack import HeaderList
from raftcache.wire.http2 import Http2Limits
from raftcache.wire.http2_client import ClientConnection
from raftcache.wire.http2_errors import CANCEL, REFUSED_STREAM
from raftcache.wire.http2_sending import RequestShape
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
from tests.edge.fuzz.invariants import RequestReader, check_connection
from tests.edge.fuzz.on_frames import Frame, mutate_frames, new_frames
from tests.edge.wire_client import request_fields

LIMITS: Final = Http2Limits(stream_window=4_096, connection_window=70_000, header_list_bytes_max=2_000)
_CIRCUMSTANCES: Final = 3
_CALLS_MAX: Final = 12
_SHAPES: Final = (RequestShape(request_fields()), RequestShape(request_fields(b"/a/b")))


class FrameByFrame(ClientConnection):
    """Never learns how answers look."""

    def _learn(self, head: HeaderList, trailers: HeaderList) -> None:
        pass


def run_answers(data: bytes) -> None:
    """Nothing raises, all accounts add up, every call ends once and not before its end, and what is written is HTTP/2."""
    outcomes = [_played(data, role(LIMITS, 0)) for role in (ClientConnection, FrameByFrame)]
    assert outcomes[0] == outcomes[1], f"at once: {outcomes[0]}; frame by frame: {outcomes[1]}"


def _played(data: bytes, client: ClientConnection) -> object:
    http2_headers._good.clear()
    huffman._strings.clear()
    options, cut, pace = (data + bytes(_CIRCUMSTANCES))[:_CIRCUMSTANCES]
    calls = _Calls(client)
    step = cut * cut + 1
    if options & 1:
        client.receive(frames.settings({}), 0)
    if not options & 8:
        calls.begin()
    for number, position in enumerate(range(_CIRCUMSTANCES, len(data), step)):
        if options & 2:
            client.sender.set_writable(bool(number % 3))
        calls.take(client.receive(data[position : position + step], number * (pace << 22)))
        check_connection(client, LIMITS)
        if not options & 4 or number % 4 == 0:
            calls.write()
        if options & 8:
            calls.begin()
        if options & 16 and number == 1:
            calls.give_up()
    calls.take(client.end(0, ""))
    calls.write()
    check_connection(client, LIMITS)
    assert not calls.waiting, f"{calls.waiting} never ended"
    return calls.told, client._window, client._decoder._table.entries


class _Calls:
    """The layer above: what it sends and wants depends on the stream's number."""

    def __init__(self, client: ClientConnection) -> None:
        self._client = client
        self._reader = RequestReader()
        self._messages: dict[int, MessageReader] = {}
        """Of the calls whose answer has begun."""
        self.waiting: dict[int, Stream] = {}
        """Calls that have not ended."""
        self._over = False
        self.told: list[object] = []
        """All that came from below."""

    def begin(self) -> None:
        """As many calls as there is room for."""
        client = self._client
        while client.room > 0 and client.last_stream_id < 2 * _CALLS_MAX - 1:
            stream = client.open()
            self.waiting[stream.id] = stream
            if stream.id % 8 == 3:
                client.sender.request(stream, _SHAPES[1], framed(bytes(40_000)))
            elif stream.id % 8 == 5:
                client.sender.send_headers(stream, _SHAPES[0].head)
                client.sender.send_data(stream, [bytes(3_000)] * 3 + [b""])
            else:
                client.sender.request(stream, _SHAPES[stream.id & 2 and 1], framed(bytes(stream.id)))

    def give_up(self) -> None:
        """On every other call."""
        for stream in list(self.waiting.values())[::2]:
            del self.waiting[stream.id]
            self._client.reset(stream, CANCEL)

    def write(self) -> None:
        while data := self._client.sender.data_to_send():
            self._reader.read(data, self._client)
            self.told.append(data)
        for stream in self._client.sender.taken:
            stream.chunks_taken = 0
        self._client.sender.taken.clear()

    def take(self, events: list[Event]) -> None:
        given_up: list[Stream] = []
        for event in events:
            assert not self._over, f"{event} behind the end of the connection"
            match event:
                case ConnectionEnded():
                    self._over = True
                    self.told.append((event.code, event.reason))
                case PingAcknowledged():
                    assert len(event.data) == 8
                case PeerLeaving():
                    assert self._client.room == 0
                    self.told.append((event.code, event.reason))
                case _:
                    assert self.waiting.get(event.stream.id) is event.stream, f"{event}, and nobody waits for it"
                    if self._take_of(event):
                        del self.waiting[event.stream.id]
                    elif event.stream.id % 8 == 7 and len(self._client.streams) > 3:
                        given_up.append(event.stream)
        for stream in given_up:
            if self.waiting.pop(stream.id, None) is not None:
                self._client.reset(stream, CANCEL)
        assert list(self.waiting) == list(self._client.streams), f"{list(self.waiting)}: {list(self._client.streams)}"

    def _take_of(self, event: HeadersReceived | DataReceived | TrailersReceived | StreamReset | StreamRefused) -> bool:
        """Whether the call has ended."""
        stream = event.stream
        match event:
            case HeadersReceived():
                assert stream.id not in self._messages, f"stream {stream.id} was answered twice"
                assert event.ended or event.trailers is None, event
                head = reply_head(event.headers)
                status_of((event.trailers or event.headers).fields, head)
                self._messages[stream.id] = MessageReader(2_000, gzip=head.gzip)
                self._read(stream, event.data)
                trailers = event.trailers and event.trailers.fields
                self.told.append((stream.id, event.headers.fields, event.data, event.ended, trailers))
                return event.ended
            case DataReceived():
                assert stream.id in self._messages, f"DATA on stream {stream.id}, whose answer has not begun"
                self._read(stream, event.data)
                self.told.append((stream.id, event.data, event.ended))
                return event.ended
            case TrailersReceived():
                assert stream.id in self._messages, f"trailers on stream {stream.id}, whose answer has not begun"
                self.told.append((stream.id, event.trailers.fields))
            case StreamReset():
                self.told.append((stream.id, event.code))
            case StreamRefused():
                assert stream.id not in self._messages, f"stream {stream.id} was answered in part, and then refused"
                self.told.append((stream.id, "refused"))
        return True

    def _read(self, stream: Stream, data: bytes) -> None:
        reader = self._messages[stream.id]
        try:
            reader.feed(data)
            while reader.next() is not None:
                pass
        except WireError:
            self._messages[stream.id] = MessageReader(2_000, gzip=False)
        if stream.id % 8 == 1:
            self._client.allow(stream, 10_000)


# --- Mutation ---------------------------------------------------------------------------------------------------------

_HEADS: Final = (
    b"\x88\x0f\x10\x10application/grpc",  # :status 200, and nothing that changes the table
    b"\x88\x5f\x10application/grpc",
    b"\x88\xbe",
    b"\x88",
    b"\x88\x0f\x0d\x016",  # content-length, of a message of one byte
    b"\x08\x03103",
    b"\x8d",
)
_TRAILERS: Final = (
    b"\x00\x0bgrpc-status\x010",
    b"\x40\x0bgrpc-status\x010",
    b"\xbe",
    b"\x00\x0bgrpc-status\x0214\x00\x0cgrpc-message\x03%20",
    b"\x88",
)


def _answer(stream_id: int, head: bytes, body: bytes, last: bytes) -> list[Frame]:
    return [
        (frames.HEADERS, frames.END_HEADERS, stream_id, head),
        (frames.DATA, 0, stream_id, body),
        (frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, stream_id, last),
    ]


def _seed(circumstances: bytes, *found: Frame) -> bytes:
    return circumstances + b"".join(frames.frame(*each) for each in found)


_ALIKE: Final = [_answer(stream_id, _HEADS[0], framed(bytes(15)), _TRAILERS[0]) for stream_id in (1, 3, 7, 9)]
SEEDS: Final = (
    # Answers that are alike, each in a piece of its own: the first is read, the others are compared with it.
    _seed(b"\1\x09\0", *(each for answer in _ALIKE for each in answer)),
    # They are alike, and their heads change the table.
    _seed(
        b"\1\x09\0",
        *(each for number in (1, 3, 7) for each in _answer(number, _HEADS[1], framed(bytes(16)), _TRAILERS[0])),
    ),
    # Answered in part, and then refused.
    _seed(b"\1\xff\0", _ALIKE[0][0], _ALIKE[0][1], (frames.RST_STREAM, 0, 1, REFUSED_STREAM.to_bytes(4, "big"))),
    # A goodbye in the middle of an answer: one stream goes on, the others are refused.
    _seed(b"\1\xff\0", *_ALIKE[0][:2], (frames.GOAWAY, 0, 0, b"\0\0\0\1" + bytes(4)), _ALIKE[0][2]),
)


def mutate_answers(data: bytes, size_max: int, seed: int, raw: Callable[[bytes, int], bytes]) -> bytes:
    """`mutate_frames`, with what a server would send."""
    return mutate_frames(data, size_max, seed, raw, _new_answers)


def _new_answers(chance: random.Random) -> list[Frame]:
    """Whole answers mostly, and alike; or a part of one, or what ends streams."""
    stream_id = chance.randrange(1, 2 * _CALLS_MAX, 2)
    head, last = chance.choice(_HEADS[: chance.choice((1, 9))]), chance.choice(_TRAILERS[: chance.choice((1, 9))])
    body = framed(bytes(chance.choice((1, 1, 0, 300))))
    choice = chance.random()
    if choice < 0.5:
        return [
            each
            for number in range(stream_id, stream_id + 2 * chance.randrange(1, 4), 2)
            for each in _answer(number, head, body, last)
        ]
    if choice < 0.65:
        end = chance.choice((0, frames.END_STREAM))
        return [(frames.HEADERS, frames.END_HEADERS | end, stream_id, chance.choice((head, last)))]
    if choice < 0.75:
        named = chance.choice((0, stream_id, frames.WINDOW_MAX))
        return [(frames.GOAWAY, 0, 0, named.to_bytes(4, "big") + bytes(4) + b"bye")]
    if choice < 0.8:
        return [(frames.RST_STREAM, 0, stream_id, REFUSED_STREAM.to_bytes(4, "big"))]
    return new_frames(chance)
