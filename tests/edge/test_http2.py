"""The HTTP/2 state machine without sockets: against `h2` as a client, cut anywhere, and fed with nonsense."""

import itertools

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftcache.wire import http2_frames as frames
from raftcache.wire.grpc_wire import OK_RESPONSE, OK_TRAILERS, RESPONSE_HEAD, framed
from raftcache.wire.hpack import Encoder
from raftcache.wire.http2 import Http2Limits
from raftcache.wire.http2_sending import ResponseShape
from raftcache.wire.http2_server import ServerConnection
from raftcache.wire.http2_stream import ConnectionEnded, DataReceived, Event, HeadersReceived, StreamReset
from tests.edge.wire_client import request_fields


class Pair:
    """An `h2` client and our server, joined."""

    def __init__(self, **settings_of_client: int) -> None:
        self.server = ServerConnection(Http2Limits(), 0)
        self.client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self.client.initiate_connection()
        if settings_of_client:
            self.client.update_settings(
                {getattr(h2.settings.SettingCodes, k): v for k, v in settings_of_client.items()}
            )
        self.seen: list[h2.events.Event] = []
        self.exchange()

    def exchange(self) -> list[Event]:
        """Carries bytes both ways until there are none."""
        events: list[Event] = []
        while True:
            sent, received = self.client.data_to_send(), self.server.sender.data_to_send()
            if not sent and not received:
                return events
            if sent:
                events += self.server.receive(sent, 0)
            if received:
                self.seen += self.client.receive_data(received)

    def body(self, stream_id: int) -> bytes:
        return b"".join(
            event.data
            for event in self.seen
            if isinstance(event, h2.events.DataReceived) and event.stream_id == stream_id
        )

    def ended(self) -> set[int | None]:
        return {event.stream_id for event in self.seen if isinstance(event, h2.events.StreamEnded)}


@given(st.lists(st.binary(max_size=40_000), min_size=1, max_size=5), st.integers(0, 200_000))
@settings(max_examples=40, deadline=None)
def test_answers_of_any_size_arrive_through_any_window(bodies: list[bytes], window: int) -> None:
    """`h2` as the client: whatever windows it has, every answer is whole once it has opened them."""
    pair = Pair(INITIAL_WINDOW_SIZE=window)
    ids = [2 * number + 1 for number in range(len(bodies))]
    for stream_id in ids:
        pair.client.send_headers(stream_id, request_fields(), end_stream=True)
    opened = [event for event in pair.exchange() if isinstance(event, HeadersReceived)]
    assert ids == [event.stream.id for event in opened]
    for event, body in zip(opened, bodies, strict=True):
        pair.server.sender.respond(event.stream, OK_RESPONSE, framed(body))
    for _ in range(100):
        pair.exchange()
        if pair.ended() == set(ids):
            break
        pair.client.increment_flow_control_window(30_000)
        for stream_id in set(ids) - pair.ended():
            pair.client.increment_flow_control_window(30_000, stream_id)
    assert [framed(body) for body in bodies] == [pair.body(stream_id) for stream_id in ids]
    assert ({}, 0) == (pair.server.streams, pair.server.sender.unsent)


def requests() -> bytes:
    """What a client sends: settings, requests whole and in pieces, padded, with priority, a ping, a reset, trailers."""
    encoder = Encoder()
    head = encoder.encode(request_fields())
    parts = [
        frames.PREFACE,
        frames.settings({frames.INITIAL_WINDOW_SIZE: 100_000}),
        frames.headers(1, head, end_stream=False, frame_bytes_max=7),
        frames.frame(frames.DATA, frames.PADDED | frames.END_STREAM, 1, b"\x03" + framed(b"one") + bytes(3)),
        frames.frame(
            frames.HEADERS,
            frames.PRIORITY_FIELDS | frames.END_HEADERS,
            3,
            b"\x00\x00\x00\x00\x10" + encoder.encode(request_fields()),
        ),
        frames.frame(frames.PING, 0, 0, b"12345678"),
        frames.frame(frames.DATA, 0, 3, framed(b"two")),
        frames.headers(3, encoder.encode(((b"x-trailer", b"1"),)), end_stream=True, frame_bytes_max=100),
        frames.headers(5, encoder.encode(request_fields()), end_stream=False, frame_bytes_max=100),
        frames.rst_stream(5, 8),
        frames.window_update(0, 5),
    ]
    return b"".join(parts)


def outline(events: list[Event]) -> list[object]:
    """What happened on each stream, however it was cut."""
    found: dict[int, list[object]] = {}
    for event in events:
        assert isinstance(event, HeadersReceived | DataReceived | StreamReset), event
        about = found.setdefault(event.stream.id, [b"", False, None])
        if isinstance(event, StreamReset):
            about[2] = event.code
        else:
            about[0] += event.data  # type: ignore[operator]
            about[1] = event.ended
    return sorted(found.items())


WHOLE = [(1, [framed(b"one"), True, None]), (3, [framed(b"two"), True, None]), (5, [b"", False, 8])]


@given(st.lists(st.integers(1, 400), max_size=30))
def test_input_may_be_cut_anywhere(cuts: list[int]) -> None:
    """The events are the same, however the bytes arrive."""
    data, server = requests(), ServerConnection(Http2Limits(), 0)
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    events: list[Event] = []
    for lo, hi in itertools.pairwise(places):
        events += server.receive(data[lo:hi], 0)
    assert WHOLE == outline(events)


def test_input_may_come_byte_by_byte() -> None:
    """The extreme of it."""
    server = ServerConnection(Http2Limits(), 0)
    events = [event for byte in requests() for event in server.receive(bytes([byte]), 0)]
    assert WHOLE == outline(events)


kinds = st.integers(0, 12)
any_frame = st.builds(frames.frame, kinds, st.integers(0, 255), st.integers(0, 7), st.binary(max_size=40))


@settings(max_examples=400)
@given(st.lists(st.one_of(any_frame, st.binary(max_size=30), st.just(requests()[24:])), max_size=12), st.booleans())
def test_nonsense_is_an_event_and_never_an_exception(pieces: list[bytes], has_preface: bool) -> None:
    """Any bytes: at most the connection ends. What is kept stays in step with what was told."""
    server = ServerConnection(Http2Limits(streams_max=3), 0)
    if has_preface:
        server.receive(frames.PREFACE + frames.settings({}), 0)
    for piece in pieces:
        events = server.receive(piece, 0)
        for event in events:
            if isinstance(event, HeadersReceived) and event.stream.id in server.streams and event.ended:
                server.sender.respond(event.stream, OK_RESPONSE, framed(b"x"))
        if any(isinstance(event, ConnectionEnded) for event in events):
            assert not server.streams
            assert not server.receive(b"anything", 0)
    server.sender.data_to_send()
    assert server.sender.unsent == sum(len(chunk) for stream in server.streams.values() for chunk in stream.queue or ())


def test_one_large_answer_holds_up_no_other() -> None:
    """Streams take turns, a frame each."""
    pair = Pair(INITIAL_WINDOW_SIZE=1 << 20)
    for stream_id in (1, 3):
        pair.client.send_headers(stream_id, request_fields(), end_stream=True)
    large, small = [event.stream for event in pair.exchange() if isinstance(event, HeadersReceived)]
    pair.server.sender.respond(large, OK_RESPONSE, framed(bytes(500_000)))
    pair.server.sender.respond(small, OK_RESPONSE, framed(bytes(100)))
    pair.client.increment_flow_control_window(40_000)
    pair.exchange()
    assert {3} == pair.ended()
    assert len(pair.body(1)) < 500_000


def test_a_window_that_shrinks_below_zero_opens_again() -> None:
    """RFC 9113 §6.9.2: a smaller SETTINGS_INITIAL_WINDOW_SIZE counts for open streams, too."""
    pair = Pair(INITIAL_WINDOW_SIZE=1_000)
    pair.client.send_headers(1, request_fields(), end_stream=True)
    (event,) = [each for each in pair.exchange() if isinstance(each, HeadersReceived)]
    pair.server.sender.send_headers(event.stream, RESPONSE_HEAD)
    pair.server.sender.send_data(event.stream, [bytes(800), bytes(800)])
    pair.exchange()
    pair.client.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 10})
    pair.exchange()
    assert -990 == event.stream.send_window
    pair.client.increment_flow_control_window(2_000, 1)
    pair.exchange()
    assert (1_600, 2) == (len(pair.body(1)), event.stream.chunks_taken)
    pair.server.sender.end(event.stream, OK_TRAILERS)
    pair.exchange()
    assert {1} == pair.ended()


def test_table_sizes_of_the_client_are_kept() -> None:
    """After SETTINGS_HEADER_TABLE_SIZE 0 nothing is indexed, and answers stay readable."""
    pair = Pair(HEADER_TABLE_SIZE=0)
    for stream_id in (1, 3, 5):
        pair.client.send_headers(stream_id, request_fields(), end_stream=True)
        (event,) = [each for each in pair.exchange() if isinstance(each, HeadersReceived)]
        pair.server.sender.respond(event.stream, OK_RESPONSE, framed(b"x"))
        pair.exchange()
    assert {1, 3, 5} == pair.ended()


@pytest.mark.parametrize("padding", [0, 200])
def test_data_beyond_the_window_is_refused(padding: int) -> None:
    """Padding counts (§6.9.1)."""
    server = ServerConnection(Http2Limits(stream_window=100), 0)
    server.receive(frames.PREFACE + frames.settings({}), 0)
    server.receive(frames.headers(1, Encoder().encode(request_fields()), end_stream=False, frame_bytes_max=16_384), 0)
    payload = bytes([padding]) + bytes(10 + padding) if padding else bytes(101)
    events = server.receive(frames.frame(frames.DATA, frames.PADDED if padding else 0, 1, payload), 0)
    assert [3] == [event.code for event in events if isinstance(event, StreamReset)]


def test_responses_of_several_shapes_keep_their_headers() -> None:
    """What a second shape puts into the compression table moves the entries that the first one's kept frames name."""
    shapes = [
        ResponseShape(((b":status", b"200"), (b"x-shape", b"%d" % n)), ((b"grpc-status", b"0"),)) for n in range(3)
    ]
    pair = Pair()
    expected: dict[int, bytes] = {}
    for number in (0, 0, 1, 0, 1, 2, 0, 1, 2):
        stream_id = pair.client.get_next_available_stream_id()
        pair.client.send_headers(stream_id, request_fields(), end_stream=True)
        for event in pair.exchange():
            if isinstance(event, HeadersReceived):
                expected[stream_id] = b"%d" % number
                pair.server.sender.respond(event.stream, shapes[number], framed(b"x"))
        pair.exchange()
    received = {
        event.stream_id: dict(event.headers)[b"x-shape"]
        for event in pair.seen
        if isinstance(event, h2.events.ResponseReceived)
    }
    assert expected == received
