"""RFC 9113 section by section, where a server can be wrong: what ends a connection, what ends a stream, and what does neither.

`test_hostile` has more of it over sockets, beside other connections; docs/edge.md says which test holds which requirement.
"""

from dataclasses import dataclass, field

import pytest

from raftcache.wire import http2_frames as frames
from raftcache.wire import http2_headers
from raftcache.wire.grpc_wire import OK_RESPONSE, RESPONSE_HEAD
from raftcache.wire.http2 import Http2Limits
from raftcache.wire.http2_errors import (
    COMPRESSION_ERROR,
    FLOW_CONTROL_ERROR,
    FRAME_SIZE_ERROR,
    NO_ERROR,
    PROTOCOL_ERROR,
    STREAM_CLOSED,
)
from raftcache.wire.http2_server import ServerConnection
from raftcache.wire.http2_stream import ConnectionEnded, DataReceived, Event, HeadersReceived, Stream, StreamReset

F = frames.frame
BLOCK = b"\x83\x86\x84"
"""`:method: POST`, `:scheme: http`, `:path: /`."""
ALL = frames.END_HEADERS | frames.END_STREAM
OPEN_1 = F(frames.HEADERS, frames.END_HEADERS, 1, BLOCK)
OPEN_5 = F(frames.HEADERS, frames.END_HEADERS, 5, BLOCK)
WHOLE_1 = F(frames.HEADERS, ALL, 1, BLOCK)
FULL = frames.WINDOW_MAX - frames.WINDOW_DEFAULT
"""Raises a window that nobody has touched to its maximum."""


@dataclass
class Bench:
    """A server that has heard the preface and the first SETTINGS, and all that has happened since."""

    server: ServerConnection = field(default_factory=lambda: ServerConnection(Http2Limits(), 0))
    events: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.receive(frames.PREFACE + frames.settings({}))
        self.told()

    def receive(self, data: bytes) -> "Bench":
        self.events += self.server.receive(data, 0)
        return self

    def stream(self, stream_id: int) -> Stream:
        return self.server.streams[stream_id]

    def told(self) -> list[tuple[int, int, int, bytes]]:
        """The frames that the server has written since this was last asked: kind, flags, stream, payload."""
        data, found = self.server.sender.data_to_send(), []
        while data:
            upper, lower, kind, flags, stream_id = frames.FRAME_HEADER.unpack_from(data)
            end = frames.FRAME_HEADER_BYTES + (upper << 8 | lower)
            found.append((kind, flags, stream_id, data[frames.FRAME_HEADER_BYTES : end]))
            data = data[end:]
        return found

    def resets(self) -> list[tuple[int, int]]:
        """Streams that the server has reset, and why."""
        return [
            (stream_id, int.from_bytes(payload, "big"))
            for kind, _, stream_id, payload in self.told()
            if kind == frames.RST_STREAM
        ]

    @property
    def goes_on(self) -> bool:
        """Whether the connection is still there: a ping is answered."""
        self.receive(F(frames.PING, 0, 0, b"go on?  "))
        return (frames.PING, frames.ACK, 0, b"go on?  ") in self.told()


@pytest.fixture
def bench() -> Bench:
    """A new connection, and no header field that was found good before."""
    http2_headers._good.clear()
    return Bench()


# --- What ends a connection -------------------------------------------------------------------------------------------

CONNECTION_ERRORS = {
    "4.2 padded DATA without a padding length": (OPEN_1 + F(frames.DATA, frames.PADDED, 1, b""), FRAME_SIZE_ERROR),
    "4.2 padded HEADERS without a padding length": (F(frames.HEADERS, frames.PADDED | 4, 1, b""), FRAME_SIZE_ERROR),
    "4.2 HEADERS with half a priority": (F(frames.HEADERS, frames.PRIORITY_FIELDS | 4, 1, bytes(4)), FRAME_SIZE_ERROR),
    "4.2 HEADERS beyond the limit": (F(frames.HEADERS, 4, 1, bytes(16_385)), FRAME_SIZE_ERROR),
    "4.2 an unknown frame beyond the limit": (F(0x20, 0, 0, bytes(16_385)), FRAME_SIZE_ERROR),
    "4.3 a block that is cut off": (F(frames.HEADERS, ALL, 1, BLOCK + b"\x00\x05a"), COMPRESSION_ERROR),
    "4.3 trailers that are cut off": (OPEN_1 + F(frames.HEADERS, ALL, 1, b"\x00\x05a"), COMPRESSION_ERROR),
    "5.1 HEADERS on a closed stream": (WHOLE_1 + frames.rst_stream(1, 8) + WHOLE_1, STREAM_CLOSED),
    "5.1.1 HEADERS below the last id": (OPEN_5 + F(frames.HEADERS, ALL, 3, BLOCK), STREAM_CLOSED),
    "5.1.1 an even id below the last": (OPEN_5 + F(frames.HEADERS, ALL, 2, BLOCK), PROTOCOL_ERROR),
    "5.1.1 DATA on an even id": (OPEN_5 + F(frames.DATA, 0, 2, b"x"), PROTOCOL_ERROR),
    "5.1.1 RST_STREAM on an even id": (OPEN_5 + frames.rst_stream(2, 8), PROTOCOL_ERROR),
    "5.1.1 WINDOW_UPDATE on an even id": (OPEN_5 + frames.window_update(2, 1), PROTOCOL_ERROR),
    "5.5 an unknown frame inside of a block": (F(frames.HEADERS, 0, 1, BLOCK) + F(0x20, 0, 0, b""), PROTOCOL_ERROR),
    "6.2 more padding than HEADERS": (F(frames.HEADERS, frames.PADDED | ALL, 1, b"\x04" + BLOCK), PROTOCOL_ERROR),
    "6.3 PRIORITY of four bytes on an idle stream": (F(frames.PRIORITY, 0, 1, bytes(4)), FRAME_SIZE_ERROR),
    "6.4 RST_STREAM on stream 0": (frames.rst_stream(0, 8), PROTOCOL_ERROR),
    "6.4 RST_STREAM of five bytes": (OPEN_1 + F(frames.RST_STREAM, 0, 1, bytes(5)), FRAME_SIZE_ERROR),
    "6.5.2 a frame size of 2**24": (frames.settings({frames.MAX_FRAME_SIZE: 1 << 24}), PROTOCOL_ERROR),
    "6.8 GOAWAY of seven bytes": (F(frames.GOAWAY, 0, 0, bytes(7)), FRAME_SIZE_ERROR),
    "6.9 WINDOW_UPDATE of five bytes on a stream": (OPEN_1 + F(frames.WINDOW_UPDATE, 0, 1, bytes(5)), FRAME_SIZE_ERROR),
    "6.9.1 DATA beyond the connection's window": (
        OPEN_1 + F(frames.DATA, 0, 1, bytes(16_384)) * 600,
        FLOW_CONTROL_ERROR,
    ),
    "6.9.2 an initial window that moves a stream's beyond 2**31-1": (
        OPEN_1 + frames.window_update(1, FULL) + frames.settings({frames.INITIAL_WINDOW_SIZE: 65_536}),
        FLOW_CONTROL_ERROR,
    ),
    "6.10 CONTINUATION of another stream": (
        F(frames.HEADERS, 0, 1, BLOCK) + F(frames.CONTINUATION, 4, 3, b""),
        PROTOCOL_ERROR,
    ),
    "6.10 CONTINUATION on stream 0": (F(frames.CONTINUATION, 4, 0, BLOCK), PROTOCOL_ERROR),
    "6.10 CONTINUATION behind END_HEADERS": (OPEN_1 + F(frames.CONTINUATION, 4, 1, b""), PROTOCOL_ERROR),
    "6.10 DATA inside of a block": (F(frames.HEADERS, 0, 1, BLOCK) + F(frames.DATA, 0, 1, b"x"), PROTOCOL_ERROR),
    "6.10 HEADERS inside of a block": (F(frames.HEADERS, 0, 1, BLOCK) + OPEN_5, PROTOCOL_ERROR),
}


@pytest.mark.parametrize("what", CONNECTION_ERRORS)
def test_connection_errors(what: str, bench: Bench) -> None:
    """§5.4.1: all streams are over, a GOAWAY says why, and nothing is read any more."""
    data, code = CONNECTION_ERRORS[what]
    bench.receive(data)
    ended = bench.events[-1]
    assert isinstance(ended, ConnectionEnded)
    assert code == ended.code
    kind, _, stream_id, payload = bench.told()[-1]
    assert (frames.GOAWAY, 0, code) == (kind, stream_id, int.from_bytes(payload[4:8], "big"))
    assert {} == bench.server.streams
    assert [] == bench.server.receive(F(frames.PING, 0, 0, bytes(8)), 0)
    assert [] == bench.told()


def test_the_last_goaway_names_the_last_stream(bench: Bench) -> None:
    """§6.8: what is above it had no effect, and may be tried again."""
    bench.receive(OPEN_5 + F(frames.PING, 0, 0, b""))
    assert 5 == int.from_bytes(bench.told()[-1][3][:4], "big")


def test_a_goaway_never_names_a_later_stream_than_the_one_before(bench: Bench) -> None:
    """§6.8: what was told to have had no effect, the client may have sent elsewhere by now."""
    bench.receive(OPEN_1)
    bench.server.accept_no_more()
    bench.receive(OPEN_5 + F(frames.PING, 0, 0, b""))
    told = [int.from_bytes(payload[:4], "big") for kind, _, _, payload in bench.told() if kind == frames.GOAWAY]
    assert [1, 1] == told


@pytest.mark.parametrize(
    "first", [F(frames.SETTINGS, frames.ACK, 0, b"") + F(frames.PING, 0, 0, bytes(8)), OPEN_1, F(0x20, 0, 0, b"")]
)
def test_the_first_frame_is_settings(first: bytes) -> None:
    """§3.4: nothing else, be it an acknowledgement or a frame that would be ignored later."""
    server = ServerConnection(Http2Limits(), 0)
    (event,) = server.receive(frames.PREFACE + first, 0)
    assert isinstance(event, ConnectionEnded)
    assert PROTOCOL_ERROR == event.code


# --- What ends a stream -----------------------------------------------------------------------------------------------


def request(*fields: tuple[bytes, bytes], block: bytes = BLOCK, data: bytes | None = None, more: bytes = b"") -> bytes:
    """A request on stream 1 with these fields, whole if it has no `data`."""
    literals = b"".join(b"\x00%c%b%c%b" % (len(name), name, len(value), value) for name, value in fields)
    head = F(frames.HEADERS, frames.END_HEADERS | (data is None), 1, block + literals)
    return head + (b"" if data is None else F(frames.DATA, frames.END_STREAM if not more else 0, 1, data)) + more


def length(value: bytes, data: bytes | None = None, more: bytes = b"") -> bytes:
    """A request with a `content-length`."""
    return request((b"content-length", value), data=data, more=more)


TRAILERS = F(frames.HEADERS, ALL, 1, b"\x00\x01a\x01b")
STREAM_ERRORS = {
    "5.1 DATA behind the end": (WHOLE_1 + F(frames.DATA, 0, 1, b"x"), STREAM_CLOSED),
    "5.1 HEADERS behind the end": (WHOLE_1 + TRAILERS, STREAM_CLOSED),
    "6.3 PRIORITY of four bytes": (OPEN_1 + F(frames.PRIORITY, 0, 1, bytes(4)), FRAME_SIZE_ERROR),
    "6.9 WINDOW_UPDATE by nothing": (OPEN_1 + frames.window_update(1, 0), PROTOCOL_ERROR),
    "6.9.1 a window beyond 2**31-1": (OPEN_1 + frames.window_update(1, FULL + 1), FLOW_CONTROL_ERROR),
    "6.9.1 DATA beyond the stream's window": (OPEN_1 + F(frames.DATA, 0, 1, bytes(16_384)) * 5, FLOW_CONTROL_ERROR),
    "8.1 trailers that do not end the stream": (OPEN_1 + F(frames.HEADERS, 4, 1, b"\x00\x01a\x01b"), PROTOCOL_ERROR),
    "8.1 a pseudo-header in trailers": (OPEN_1 + F(frames.HEADERS, ALL, 1, b"\x84"), PROTOCOL_ERROR),
    "8.1.1 fewer bytes than content-length": (length(b"3", b"ab"), PROTOCOL_ERROR),
    "8.1.1 more bytes than content-length": (length(b"1", b"ab"), PROTOCOL_ERROR),
    "8.1.1 more bytes than content-length, before the end": (length(b"1", b"ab", F(0x20, 0, 0, b"")), PROTOCOL_ERROR),
    "8.1.1 content-length, and no DATA": (length(b"1"), PROTOCOL_ERROR),
    "8.1.1 content-length, and trailers too soon": (length(b"3", b"ab", TRAILERS), PROTOCOL_ERROR),
    "8.1.1 a content-length that is no number": (length(b"-1", b""), PROTOCOL_ERROR),
    "8.1.1 an empty content-length": (length(b""), PROTOCOL_ERROR),
    "8.1.1 two lengths": (request((b"content-length", b"1"), (b"content-length", b"2"), data=b"a"), PROTOCOL_ERROR),
    "8.2.1 NUL in a value": (request((b"a", b"b\0")), PROTOCOL_ERROR),
    "8.2.1 a line feed in a value": (request((b"a", b"b\nc")), PROTOCOL_ERROR),
    "8.2.1 a carriage return in a value": (request((b"a", b"b\rc")), PROTOCOL_ERROR),
    "8.2.1 a space before a value": (request((b"a", b" b")), PROTOCOL_ERROR),
    "8.2.1 a tab behind a value": (request((b"a", b"b\t")), PROTOCOL_ERROR),
    "8.2.1 a control character in a pseudo-header": (request(block=b"\x83\x86\x04\x02/\n"), PROTOCOL_ERROR),
    "8.2.1 an empty name": (request((b"", b"b")), PROTOCOL_ERROR),
    "8.2.1 a space in a name": (request((b"a b", b"c")), PROTOCOL_ERROR),
    "8.2.1 a colon in a name": (request((b"a:", b"c")), PROTOCOL_ERROR),
    "8.2.1 a byte beyond ASCII in a name": (request((b"a\xff", b"c")), PROTOCOL_ERROR),
    "8.2.1 an upper-case name in trailers": (OPEN_1 + F(frames.HEADERS, ALL, 1, b"\x00\x01A\x01b"), PROTOCOL_ERROR),
    "8.2.2 keep-alive": (request((b"keep-alive", b"1")), PROTOCOL_ERROR),
    "8.2.2 proxy-connection": (request((b"proxy-connection", b"close")), PROTOCOL_ERROR),
    "8.2.2 transfer-encoding": (request((b"transfer-encoding", b"chunked")), PROTOCOL_ERROR),
    "8.2.2 upgrade": (request((b"upgrade", b"h2c")), PROTOCOL_ERROR),
    "8.3.1 no method": (request(block=b"\x86\x84"), PROTOCOL_ERROR),
    "8.3.1 no scheme": (request(block=b"\x83\x84"), PROTOCOL_ERROR),
    "8.3.1 two schemes": (request(block=b"\x83\x86\x87\x84"), PROTOCOL_ERROR),
    "8.5 CONNECT, which nobody serves": (request(block=b"\x02\x07CONNECT\x01\x01a"), PROTOCOL_ERROR),
}


@pytest.mark.parametrize("what", STREAM_ERRORS)
def test_stream_errors(what: str, bench: Bench) -> None:
    """§5.4.2: the stream is reset, once, and the connection goes on."""
    data, code = STREAM_ERRORS[what]
    bench.receive(data)
    assert [(1, code)] == bench.resets()
    assert [] == [event for event in bench.events if isinstance(event, ConnectionEnded)]
    begun = [event for event in bench.events if isinstance(event, HeadersReceived)]
    assert len(begun) == len([event for event in bench.events if isinstance(event, StreamReset)])
    assert {} == bench.server.streams
    assert bench.goes_on


def test_data_on_a_closed_stream_ends_no_more_than_the_stream(bench: Bench) -> None:
    """§5.1: it may have been under way; it counts in the connection's window (§6.9.1)."""
    bench.receive(WHOLE_1)
    bench.server.sender.respond(bench.stream(1), OK_RESPONSE, b"")
    bench.told()
    window = bench.server._window
    bench.receive(F(frames.DATA, 0, 1, b"late"))
    assert [(1, STREAM_CLOSED)] == bench.resets()
    assert window - 4 == bench.server._window
    assert bench.goes_on


def test_a_reset_is_not_answered_by_one(bench: Bench) -> None:
    """§5.4.2."""
    bench.receive(OPEN_1 + frames.rst_stream(1, 8) + frames.rst_stream(1, 8))
    assert [] == bench.resets()
    assert bench.goes_on


# --- What ends nothing ------------------------------------------------------------------------------------------------

RESERVED = 1 << 31
IGNORED = {
    "4.1 the reserved bit of a stream id": F(frames.DATA, 0, 1 | RESERVED, b""),
    "4.1 flags that mean nothing": F(frames.DATA, 0xF6, 1, b""),
    "4.1 an unknown frame": F(0x20, 0xFF, 1, b"anything"),
    "5.1 PRIORITY on an idle stream": F(frames.PRIORITY, 0, 7, bytes(5)),
    "5.3 a stream that depends on itself": F(frames.PRIORITY, 0, 1, b"\0\0\0\1\0"),
    "5.5 an unknown frame on an idle stream": F(0x20, 0, 99, b""),
    "6.5.2 an unknown setting": frames.settings({0xFFFF: 5}),
    "6.5.2 ENABLE_PUSH": frames.settings({frames.ENABLE_PUSH: 1}) + frames.settings({frames.ENABLE_PUSH: 0}),
    "6.5.2 the largest frame size": frames.settings({frames.MAX_FRAME_SIZE: (1 << 24) - 1}),
    "6.5.2 the largest window": frames.settings({frames.INITIAL_WINDOW_SIZE: frames.WINDOW_MAX}),
    "6.5.3 an acknowledgement that nobody waits for": F(frames.SETTINGS, frames.ACK, 0, b"") * 2,
    "6.8 GOAWAY": frames.goaway(0, NO_ERROR, b"bye"),
    "6.9 the reserved bit of an increment": F(frames.WINDOW_UPDATE, 0, 1, (RESERVED | 5).to_bytes(4, "big")),
    "6.9.1 the largest window": frames.window_update(1, FULL),
}


@pytest.mark.parametrize("what", IGNORED)
def test_what_is_ignored(what: str, bench: Bench) -> None:
    """It ends neither the stream nor the connection: the request is finished, and answered."""
    bench.receive(OPEN_1 + IGNORED[what] + F(frames.DATA, frames.END_STREAM, 1, b"x"))
    assert [] == bench.resets()
    bench.server.sender.respond(bench.stream(1), OK_RESPONSE, b"")
    assert [(frames.HEADERS, 1), (frames.DATA, 1), (frames.HEADERS, 1)] == [
        (kind, stream_id) for kind, _, stream_id, _ in bench.told()
    ]
    assert bench.goes_on


@pytest.mark.parametrize("is_closed", [False, True], ids=["half-closed", "closed"])
def test_what_may_still_come_behind_the_end(is_closed: bool, bench: Bench) -> None:
    """§5.1: WINDOW_UPDATE and PRIORITY may, then RST_STREAM, on streams that are half-closed or closed."""
    bench.receive(WHOLE_1)
    if is_closed:
        bench.server.sender.respond(bench.stream(1), OK_RESPONSE, b"")
    bench.told()
    bench.receive(frames.window_update(1, 5) + F(frames.PRIORITY, 0, 1, bytes(5)) + frames.rst_stream(1, 8))
    assert [] == bench.resets()
    assert bench.goes_on


def test_what_was_under_way_to_a_stream_that_we_reset(bench: Bench) -> None:
    """§5.1: DATA and trailers are read past, for the windows' and the tables' sake."""
    bench.receive(OPEN_1)
    bench.server.reset(bench.stream(1), 8)
    window = bench.server._window
    bench.told()
    bench.receive(F(frames.DATA, 0, 1, b"late") + F(frames.HEADERS, ALL, 1, b"\x40\x01a\x01b"))
    assert [] == bench.resets()
    assert window - 4 == bench.server._window
    bench.receive(F(frames.HEADERS, ALL, 3, BLOCK + b"\xbe"))
    assert isinstance(event := bench.events[-1], HeadersReceived)
    assert (b"a", b"b") == event.headers.fields[-1]


def test_what_was_under_way_when_we_said_goodbye(bench: Bench) -> None:
    """§6.8: streams above the last one are ignored, with all that belongs to them; those below are finished."""
    bench.receive(OPEN_1)
    bench.server.accept_no_more()
    bench.told()
    late = F(frames.HEADERS, frames.END_HEADERS, 3, BLOCK) + F(frames.DATA, 0, 3, b"x")
    bench.receive(late + F(frames.HEADERS, ALL, 3, b"\x40\x01a\x01b") + frames.rst_stream(3, 8))
    assert [] == bench.resets()
    assert [1] == list(bench.server.streams)
    bench.receive(F(frames.HEADERS, ALL, 1, b"\xbe"))
    assert isinstance(event := bench.events[-1], DataReceived)
    assert (1, True) == (event.stream.id, event.ended)


LENGTHS = {
    "a length": length(b"3", b"abc"),
    "in pieces": length(b"3", b"ab", F(frames.DATA, frames.END_STREAM, 1, b"c")),
    "padding does not count": length(b"3", b"", F(frames.DATA, 9, 1, b"\x02abc\0\0")),
    "trailers": length(b"3", b"abc", TRAILERS),
    "0": length(b"0"),
    "0, and an empty DATA": length(b"0", b""),
    "the same twice": request((b"content-length", b"3"), (b"content-length", b"3"), data=b"abc"),
    "none": request(data=b"abc"),
}


@pytest.mark.parametrize("what", LENGTHS)
def test_a_request_that_is_as_long_as_it_says(what: str, bench: Bench) -> None:
    """§8.1.1: it is complete, and nothing is reset."""
    bench.receive(LENGTHS[what])
    assert [] == bench.resets()
    assert bench.stream(1).remote_ended


def test_a_length_is_looked_at_each_time(bench: Bench) -> None:
    """§8.1.1: neither a field that was found good before nor a header block that was kept hides it."""
    bench.receive(request(data=b"", more=F(frames.HEADERS, ALL, 1, b"\x00\x0econtent-length\x013")))
    assert bench.stream(1).remote_ended
    for stream_id in (3, 5, 7):
        bench.receive(F(frames.HEADERS, frames.END_HEADERS, stream_id, BLOCK + b"\x00\x0econtent-length\x013"))
        bench.receive(F(frames.DATA, frames.END_STREAM, stream_id, b"ab"))
    assert [(stream_id, PROTOCOL_ERROR) for stream_id in (3, 5, 7)] == bench.resets()


# --- What the server says ---------------------------------------------------------------------------------------------


def test_settings_are_acknowledged_each_in_turn(bench: Bench) -> None:
    """§6.5.3: one acknowledgement for each, and none for an acknowledgement."""
    bench.receive(frames.settings({}) + F(frames.SETTINGS, frames.ACK, 0, b"") + frames.settings({0x99: 1}))
    assert [(frames.SETTINGS, frames.ACK, 0, b"")] * 2 == bench.told()


def test_settings_are_acknowledged_before_the_data_that_they_let_through(bench: Bench) -> None:
    """§6.5.3: a client may hold to its old windows until it reads the acknowledgement."""
    bench.receive(frames.settings({frames.INITIAL_WINDOW_SIZE: 0}) + WHOLE_1)
    bench.server.sender.send_headers(bench.stream(1), RESPONSE_HEAD)
    bench.server.sender.send_data(bench.stream(1), [b"data"])
    bench.told()
    bench.receive(frames.settings({frames.INITIAL_WINDOW_SIZE: 100}))
    assert [(frames.SETTINGS, frames.ACK, 0, b""), (frames.DATA, 0, 1, b"data")] == bench.told()


def test_pings_are_answered_with_what_they_hold(bench: Bench) -> None:
    """§6.7: with an acknowledgement, which itself is not answered."""
    bench.receive(F(frames.PING, 0, 0, b"12345678") + F(frames.PING, frames.ACK, 0, b"87654321"))
    assert [(frames.PING, frames.ACK, 0, b"12345678")] == bench.told()


def test_a_stream_that_is_over_gets_no_more_room(bench: Bench) -> None:
    """§5.1, §6.9: no WINDOW_UPDATE for a stream that either side has ended or reset, nor behind the last GOAWAY."""
    bench.receive(OPEN_1 + OPEN_5)
    first, fifth = bench.stream(1), bench.stream(5)
    bench.receive(frames.window_update(1, 0))
    bench.told()
    bench.server.allow(first, 1 << 20)
    assert [] == bench.told()
    bench.receive(F(frames.PING, 0, 0, b""))
    bench.told()
    bench.server.allow(fifth, 1 << 20)
    assert [] == bench.told()


def test_an_answer_before_the_end_of_the_request_asks_for_no_more(bench: Bench) -> None:
    """§8.1: RST_STREAM with NO_ERROR behind the whole answer; a request that is complete gets none."""
    bench.receive(OPEN_1 + F(frames.HEADERS, ALL, 3, BLOCK))
    bench.told()
    for stream_id in (1, 3):
        bench.server.sender.respond(bench.stream(stream_id), OK_RESPONSE, b"x")
    told = bench.told()
    assert (frames.RST_STREAM, 0, 1, bytes(4)) == told[3]
    assert 1 == [kind for kind, *_ in told].count(frames.RST_STREAM)
    assert told[2][1] & frames.END_STREAM


def test_the_first_frame_of_the_server_is_settings() -> None:
    """§3.4: before it has heard anything."""
    data = ServerConnection(Http2Limits(), 0).sender.data_to_send()
    assert (frames.SETTINGS, 0) == (data[3], data[4])
    told = dict(frames.settings_of(data[9 : 9 + data[2]]))
    assert frames.ENABLE_PUSH not in told, "a server says nothing of push (§6.5.2)"
    assert {3, 4, 6} == set(told)
