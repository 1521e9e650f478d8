"""The server connection under any bytes: raw ones, and sequences of frames that a mutator keeps plausible.

An input is three bytes of circumstances and what a client sends. libFuzzer alone would rarely hit upon a second valid frame,
because lengths must fit; `mutate_frames` takes the input apart into frames and changes those.
"""

import random
from collections.abc import Callable
from typing import Final

from raftcache.wire import http2_frames as frames
from raftcache.wire import http2_headers, huffman
from raftcache.wire.grpc_wire import (
    OK_RESPONSE,
    OK_TRAILERS,
    RESPONSE_HEAD,
    MessageReader,
    WireError,
    framed,
    request_head,
)
from raftcache.wire.http2 import Http2Limits
from raftcache.wire.http2_errors import CANCEL
from raftcache.wire.http2_server import ServerConnection
from raftcache.wire.http2_stream import ConnectionEnded, DataReceived, Event, HeadersReceived, Stream, StreamReset
from tests.edge.fuzz.invariants import Reader, check_connection

LIMITS: Final = Http2Limits(streams_max=4, stream_window=4_096, header_list_bytes_max=2_000)
_CIRCUMSTANCES: Final = 3


def run_frames(data: bytes) -> None:
    """Nothing raises, all accounts add up, and what is written is HTTP/2; an application answers in various ways."""
    http2_headers._good.clear()
    huffman._strings.clear()
    options, cut, pace = (data + bytes(_CIRCUMSTANCES))[:_CIRCUMSTANCES]
    server = ServerConnection(LIMITS, 0)
    application = _Application(server)
    step = cut * cut + 1
    if options & 1:
        server.receive(frames.PREFACE + frames.settings({}), 0)
    for number, position in enumerate(range(_CIRCUMSTANCES, len(data), step)):
        if options & 2:
            server.sender.set_writable(bool(number % 3))
        application.take(server.receive(data[position : position + step], number * (pace << 22)))
        check_connection(server, LIMITS)
        if not options & 4 or number % 4 == 0:
            application.write()
        if options & 8 and number == 1 and not application.over:
            server.announce_end()
        if options & 16 and number == 2 and not application.over:
            server.accept_no_more()
    if options & 32:
        application.take(server.end(0, ""))
    server.sender.set_writable(True)
    application.write()
    check_connection(server, LIMITS)


class _Application:
    """The layer above: what it does with a stream depends on the stream's number."""

    def __init__(self, server: ServerConnection) -> None:
        self._server = server
        self._reader = Reader()
        self._messages: dict[int, MessageReader] = {}
        self.over = False

    def take(self, events: list[Event]) -> None:
        for event in events:
            assert not self.over, f"{event} behind the end of the connection"
            match event:
                case HeadersReceived():
                    self._begin(event)
                case DataReceived():
                    self._read(event.stream, event.data, event.ended)
                case StreamReset():
                    assert event.stream.id not in self._server.streams
                    self._messages.pop(event.stream.id, None)
                case ConnectionEnded():
                    self.over = True
                case _:
                    assert len(event.data) == 8

    def write(self) -> None:
        while data := self._server.sender.data_to_send():
            self._reader.read(data, self._server)
        for stream in self._server.sender.taken:
            stream.chunks_taken = 0
        self._server.sender.taken.clear()

    def _begin(self, event: HeadersReceived) -> None:
        stream, headers = event.stream, event.headers
        head = request_head(headers)
        if not self._is_open(stream):
            return
        self._messages[stream.id] = MessageReader(2_000, gzip=head.gzip)
        if stream.id % 8 == 3:
            self._server.sender.send_headers(stream, RESPONSE_HEAD)
            self._server.sender.send_data(stream, [bytes(3_000)] * 9 + [b""])
            if event.ended:
                self._server.sender.end(stream, OK_TRAILERS)
        self._read(stream, event.data, event.ended)

    def _read(self, stream: Stream, data: bytes, ended: bool) -> None:
        reader = self._messages.get(stream.id)
        if reader is None or not self._is_open(stream):
            return
        try:
            reader.feed(data)
            while reader.next() is not None:
                pass
        except WireError:
            self._server.reset(stream, CANCEL)
            return
        server = self._server
        if stream.id % 8 == 5:
            server.allow(stream, 10_000)
        elif stream.id % 8 == 7 and data:
            server.sender.send_headers(stream, RESPONSE_HEAD + OK_TRAILERS, end=True)
        if ended and self._is_open(stream) and stream.queue is None:
            server.sender.respond(stream, OK_RESPONSE, framed(bytes(stream.id * 50 % 40_000)))

    def _is_open(self, stream: Stream) -> bool:
        """Events of one `receive` may tell of a stream that a later one of them ends."""
        return self._server.streams.get(stream.id) is stream and not stream.local_ended


# --- Mutation ---------------------------------------------------------------------------------------------------------

_STREAMS: Final = (1, 3, 5, 7, 9, 11, 0, 2, 101, frames.WINDOW_MAX)
_PIECES: Final = (
    b"\x83\x86\x84",  # :method POST, :scheme http, :path /
    b"\x83\x86\x04\x04/a/b",
    b"\x83\x86\x44\x04/a/b\x5f\x10application/grpc\x40\x02te\x08trailers",
    b"\xbe",
    b"\xbf\xc0",
    b"\x20",
    b"\x3f\xe1\x1f",
    b"\x00\x0cgrpc-timeout\x021S",
    b"\x40\x0dgrpc-encoding\x04gzip",
    b"\x0f\x0d\x0210",  # content-length
    b"\x0f\x0d\x010",
    b"\x40\x03x-a\x40" + b"v" * 64,
    b"\x00\x01A\x01b",
    b"\x40\x01a\x87\xa0\xbf\xff\xff\xff\xff\xff",
    b"\x00\x01a\x03b\r\n",
    b"\xff\xff\xff\xff\xff\x0f",
)
Frame = tuple[int, int, int, bytes]


def mutate_frames(
    data: bytes,
    size_max: int,
    seed: int,
    raw: Callable[[bytes, int], bytes],
    new: Callable[[random.Random], list[Frame]] | None = None,
) -> bytes:
    """One to three changes of the frames in `data`; `raw` changes bytes regardless of their meaning, `new` makes others."""
    chance = random.Random(seed)
    if chance.random() < 0.15 or len(data) < _CIRCUMSTANCES:
        return raw(data, size_max)
    circumstances, body = data[:_CIRCUMSTANCES], data[_CIRCUMSTANCES:]
    if chance.random() < 0.05:
        circumstances = raw(circumstances, _CIRCUMSTANCES).ljust(_CIRCUMSTANCES, b"\0")
    preface, found, tail = taken_apart(body)
    for _ in range(chance.randrange(1, 4)):
        _change(found, chance, raw, new or new_frames)
    mutated = circumstances + preface + b"".join(frames.frame(*each) for each in found) + tail
    return mutated[:size_max]


def taken_apart(body: bytes) -> tuple[bytes, list[Frame], bytes]:
    """The preface if there is one, whole frames, and what is left behind them."""
    preface = frames.PREFACE if body.startswith(frames.PREFACE) else b""
    position, found = len(preface), []
    while len(body) - position >= frames.FRAME_HEADER_BYTES:
        upper, lower, kind, flags, stream_id = frames.FRAME_HEADER.unpack_from(body, position)
        stop = position + frames.FRAME_HEADER_BYTES + (upper << 8 | lower)
        if stop > len(body):
            break
        found.append((kind, flags, stream_id, body[position + frames.FRAME_HEADER_BYTES : stop]))
        position = stop
    return preface, found, body[position:]


def _change(
    found: list[Frame],
    chance: random.Random,
    raw: Callable[[bytes, int], bytes],
    new: Callable[[random.Random], list[Frame]],
) -> None:
    action = chance.randrange(10)
    if action < 4 or not found:
        found[(place := chance.randrange(len(found) + 1)) : place] = new(chance)
        return
    place = chance.randrange(len(found))
    kind, flags, stream_id, payload = found[place]
    if action == 4:
        del found[place]
    elif action == 5:
        found.insert(chance.randrange(len(found) + 1), found[place])
    elif action == 6:
        found.insert(chance.randrange(len(found)), found.pop(place))
    elif action == 7:
        found[place] = (kind, flags ^ 1 << chance.randrange(8), stream_id, payload)
    elif action == 8:
        found[place] = (kind, flags, chance.choice(_STREAMS), payload)
    elif kind == frames.HEADERS and chance.random() < 0.5:
        cut = chance.randrange(len(payload) + 1)
        head = (kind, flags & ~frames.END_HEADERS, stream_id, payload[:cut])
        found[place : place + 1] = [head, (frames.CONTINUATION, flags & frames.END_HEADERS, stream_id, payload[cut:])]
    else:
        found[place] = (kind, flags, stream_id, raw(payload, len(payload) + 20) if payload else b"\0" * 8)


def new_frames(chance: random.Random) -> list[Frame]:
    """Something that a peer may send, and mostly in the right form."""
    stream_id = chance.choice(_STREAMS[:6]) if chance.random() < 0.9 else chance.choice(_STREAMS)
    kind = chance.choice((frames.HEADERS, frames.DATA, *range(9), 0x20))
    end = chance.choice((0, frames.END_STREAM))
    number = chance.choice((0, 1, 5, 1_000, 65_535, 1 << 20, frames.WINDOW_MAX, (1 << 32) - 1)).to_bytes(4, "big")
    match kind:
        case frames.HEADERS:
            block = _PIECES[chance.randrange(3)] + b"".join(chance.choices(_PIECES[3:], k=chance.randrange(3)))
            return [(kind, frames.END_HEADERS | end, stream_id, block)]
        case frames.DATA:
            payload = framed(bytes(chance.choice((0, 1, 10, 300, 1_900))))
            if chance.random() < 0.2:
                return [(kind, frames.PADDED | end, stream_id, b"\x05" + payload + bytes(5))]
            return [(kind, end, stream_id, payload)]
        case frames.PRIORITY:
            return [(kind, 0, stream_id, bytes(5))]
        case frames.RST_STREAM:
            return [(kind, 0, stream_id, number)]
        case frames.SETTINGS:
            entries = [bytes((0, chance.randrange(8))) + number for _ in range(chance.randrange(3))]
            return [(kind, end if not entries else 0, 0, b"".join(entries))]
        case frames.PING:
            return [(kind, end, 0, number * 2)]
        case frames.GOAWAY:
            return [(kind, 0, 0, bytes(4) + number)]
        case frames.WINDOW_UPDATE:
            return [(kind, 0, chance.choice((0, stream_id)), number)]
        case _:
            return [(kind, chance.randrange(256), stream_id, number * 2)]
