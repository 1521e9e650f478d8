"""The client's role of HTTP/2 without sockets: with our own server, with `h2` as one, and with servers that behave badly."""

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftcache.wire import http2_floods as floods
from raftcache.wire import http2_frames as frames
from raftcache.wire.grpc_wire import OK_RESPONSE, OK_TRAILERS, RESPONSE_HEAD, framed
from raftcache.wire.hpack import Encoder, Fields
from raftcache.wire.http2 import Http2Limits
from raftcache.wire.http2_client import ClientConnection
from raftcache.wire.http2_sending import RequestShape
from raftcache.wire.http2_server import ServerConnection
from raftcache.wire.http2_stream import (
    ConnectionEnded,
    DataReceived,
    Event,
    HeadersReceived,
    PeerLeaving,
    Stream,
    StreamRefused,
    StreamReset,
    TrailersReceived,
)
from tests.edge.wire_client import request_fields

SHAPE = RequestShape(request_fields())
INTERNAL_ERROR, NO_ERROR, CANCEL, REFUSED = 2, 0, 8, 7


class Pair:
    """Our client and our server, joined."""

    def __init__(self, client: Http2Limits | None = None, server: Http2Limits | None = None) -> None:
        self.client = ClientConnection(client or Http2Limits(), 0)
        self.server = ServerConnection(server or Http2Limits(), 0)
        self.of_server: list[Event] = []
        self.of_client: list[Event] = []
        self.exchange()

    def exchange(self) -> None:
        """Carries bytes both ways until there are none."""
        while True:
            sent, received = self.client.sender.data_to_send(), self.server.sender.data_to_send()
            if not sent and not received:
                return
            self.of_server += self.server.receive(sent, 0)
            self.of_client += self.client.receive(received, 0)

    def request(self, body: bytes = b"x", shape: RequestShape = SHAPE) -> Stream:
        stream = self.client.open()
        self.client.sender.request(stream, shape, framed(body))
        return stream


def outline(events: list[Event]) -> dict[int, tuple[Fields, bytes, Fields | None]]:
    """Head, data and trailers of each stream, however they came."""
    found: dict[int, tuple[Fields, bytes, Fields | None]] = {}
    for event in events:
        if isinstance(event, HeadersReceived):
            trailers = event.trailers.fields if event.trailers else None
            found[event.stream.id] = (event.headers.fields, event.data, trailers)
        elif isinstance(event, DataReceived):
            head, data, trailers = found[event.stream.id]
            found[event.stream.id] = (head, data + event.data, trailers)
        elif isinstance(event, TrailersReceived):
            head, data, _ = found[event.stream.id]
            found[event.stream.id] = (head, data, event.trailers.fields)
    return found


@given(
    st.lists(st.tuples(st.binary(max_size=40_000), st.binary(max_size=40_000)), min_size=1, max_size=5),
    st.integers(1, 200_000),
    st.integers(1, 200_000),
)
@settings(max_examples=40, deadline=None)
def test_both_roles_carry_bodies_of_any_size_through_any_windows(
    bodies: list[tuple[bytes, bytes]], of_client: int, of_server: int
) -> None:
    """Requests and answers are whole once each side has let the other send them, and no stream stays behind."""
    pair = Pair(Http2Limits(stream_window=of_client), Http2Limits(stream_window=of_server))
    streams = [pair.request(body) for body, _ in bodies]

    def open_windows() -> None:
        for connection in (pair.client, pair.server):
            for stream in connection.streams.values():
                connection.allow(stream, 50_000)
        pair.exchange()

    pair.exchange()
    while any(not stream.local_ended for stream in streams):
        open_windows()
    received = outline(pair.of_server)
    assert [framed(body) for body, _ in bodies] == [received[stream.id][1] for stream in streams]
    for stream, (_, answer) in zip(list(pair.server.streams.values()), bodies, strict=True):
        pair.server.sender.respond(stream, OK_RESPONSE, framed(answer))
    pair.exchange()
    while pair.client.streams:
        open_windows()
    answers = outline(pair.of_client)
    expected = [(RESPONSE_HEAD, framed(answer), OK_TRAILERS) for _, answer in bodies]
    assert expected == [answers[stream.id] for stream in streams]
    assert ({}, {}, 0, 0) == (
        pair.client.streams,
        pair.server.streams,
        pair.client.sender.unsent,
        pair.server.sender.unsent,
    )


@given(st.lists(st.binary(max_size=30_000), min_size=1, max_size=4), st.integers(0, 100_000))
@settings(max_examples=30, deadline=None)
def test_h2_as_a_server_takes_our_requests_and_we_take_its_answers(bodies: list[bytes], window: int) -> None:
    """Whatever windows it has, it gets every request whole; its answers come back as what they are."""
    client = ClientConnection(Http2Limits(), 0)
    server = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding=None))
    server.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window})
    events: list[Event] = []
    requests: dict[int, bytes] = {}
    answered: set[int] = set()

    def exchange() -> None:
        while True:
            sent, received = client.sender.data_to_send(), server.data_to_send()
            if not sent and not received:
                return
            events.extend(client.receive(received, 0))
            for event in server.receive_data(sent) if sent else ():
                if isinstance(event, h2.events.RequestReceived):
                    assert request_fields() == tuple(event.headers)
                    requests[event.stream_id] = b""
                elif isinstance(event, h2.events.DataReceived):
                    requests[event.stream_id] += event.data
                elif isinstance(event, h2.events.StreamEnded) and event.stream_id is not None:
                    stream_id = event.stream_id
                    server.send_headers(stream_id, RESPONSE_HEAD)
                    server.send_data(stream_id, framed(b"answer"))
                    server.send_headers(stream_id, OK_TRAILERS, end_stream=True)
                    answered.add(stream_id)

    exchange()
    streams = []
    for body in bodies:
        streams.append(client.open())
        client.sender.request(streams[-1], SHAPE, framed(body))
    exchange()
    while ids := [stream.id for stream in streams if stream.id not in answered]:
        server.increment_flow_control_window(20_000)
        for stream_id in ids:
            server.increment_flow_control_window(20_000, stream_id)
        exchange()
    assert [framed(body) for body in bodies] == [requests[stream.id] for stream in streams]
    answers = outline(events)
    assert [(RESPONSE_HEAD, framed(b"answer"), OK_TRAILERS)] * len(bodies) == [answers[one.id] for one in streams]
    assert not client.streams


def test_an_answer_may_be_cut_anywhere() -> None:
    """Byte by byte it is the same answer; in one piece it is one event."""
    server = ServerConnection(Http2Limits(), 0)
    whole, cut = (ClientConnection(Http2Limits(), 0) for _ in range(2))
    for client in (whole, cut):
        client.sender.request(client.open(), SHAPE, framed(b"x"))
    events = server.receive(whole.sender.data_to_send(), 0)
    server.sender.respond(events[-1].stream, OK_RESPONSE, framed(b"answer"))  # type: ignore[union-attr]
    data = server.sender.data_to_send()
    in_one = whole.receive(data, 0)
    in_bytes = [event for byte in data for event in cut.receive(bytes([byte]), 0)]
    assert ([HeadersReceived], outline(in_one)) == ([type(event) for event in in_one], outline(in_bytes))
    assert (RESPONSE_HEAD, framed(b"answer"), OK_TRAILERS) == outline(in_one)[1]


def test_no_more_streams_are_opened_than_the_server_allows() -> None:
    """Before it has said how many, a hundred."""
    client = ClientConnection(Http2Limits(), 0)
    assert 100 == client.room
    client.receive(frames.settings({frames.MAX_CONCURRENT_STREAMS: 2}), 0)
    client.open()
    assert 1 == client.room
    client.open()
    assert 0 == client.room
    unlimited = ClientConnection(Http2Limits(), 0)
    unlimited.receive(frames.settings({}), 0)
    assert unlimited.room > 1_000_000


def test_what_the_server_has_not_looked_at_is_refused_and_the_rest_is_answered() -> None:
    """RFC 9113 §6.8: by the last stream id of the GOAWAY, and no new stream is opened."""
    pair = Pair()
    first = pair.request()
    pair.exchange()
    pair.server.accept_no_more()
    late = [pair.request(), pair.request()]
    pair.exchange()
    assert late == [event.stream for event in pair.of_client if isinstance(event, StreamRefused)]
    assert [(NO_ERROR, b"")] == [
        (event.code, event.reason) for event in pair.of_client if isinstance(event, PeerLeaving)
    ]
    assert (0, [first]) == (pair.client.room, list(pair.client.streams.values()))
    pair.server.sender.respond(pair.server.streams[first.id], OK_RESPONSE, framed(b"answer"))
    pair.exchange()
    assert framed(b"answer") == outline(pair.of_client)[first.id][1]
    assert not [event for event in pair.of_client if isinstance(event, StreamReset)]


def test_a_goodbye_that_announces_itself_refuses_nothing() -> None:
    """The first of two GOAWAYs names the highest id there is."""
    pair = Pair()
    stream = pair.request()
    pair.server.announce_end()
    pair.exchange()
    assert (0, {stream.id: stream}) == (pair.client.room, pair.client.streams)


@pytest.mark.parametrize("headed", [False, True])
def test_refused_is_only_what_was_not_answered_in_part(headed: bool) -> None:
    """RFC 9113 §8.7. A server that answers and then says that it has not looked contradicts itself, and is not believed."""
    for refusal in (frames.rst_stream(1, REFUSED), frames.goaway(0, NO_ERROR)):
        client = ClientConnection(Http2Limits(), 0)
        client.sender.request(client.open(), SHAPE, framed(b"x"))
        client.receive(frames.settings({}), 0)
        if headed:
            client.receive(answer_head(), 0)
        events = [event for event in client.receive(refusal, 0) if not isinstance(event, PeerLeaving)]
        assert [StreamReset if headed else StreamRefused] == [type(event) for event in events]


def test_a_reset_for_another_reason_is_no_refusal() -> None:
    """The server may have done what it was asked."""
    client = ClientConnection(Http2Limits(), 0)
    client.sender.request(client.open(), SHAPE, framed(b"x"))
    (event,) = client.receive(frames.settings({}) + frames.rst_stream(1, CANCEL), 0)
    assert isinstance(event, StreamReset)
    assert CANCEL == event.code


def test_an_early_answer_ends_the_stream() -> None:
    """What is left of the request is not sent, and the server is told so (RFC 9113 §8.1)."""
    pair = Pair(server=Http2Limits(stream_window=10))
    stream = pair.request(bytes(1_000))
    pair.exchange()
    pair.server.sender.send_headers(pair.server.streams[stream.id], ((b":status", b"503"),), end=True)
    pair.exchange()
    (event,) = pair.of_client
    assert isinstance(event, HeadersReceived)
    assert event.ended
    assert ({}, 0) == (pair.client.streams, pair.client.sender.unsent)


def test_the_answer_to_a_stream_that_was_given_up_is_passed_over() -> None:
    """And the streams beside it, and the compression table, are as they were."""
    pair = Pair()
    given_up, other = pair.request(), pair.request()
    pair.exchange()
    answers = list(pair.server.streams.values())
    pair.client.reset(given_up, CANCEL)
    for stream in answers:
        pair.server.sender.respond(stream, OK_RESPONSE, framed(b"answer"))
    pair.exchange()
    assert {other.id: (RESPONSE_HEAD, framed(b"answer"), OK_TRAILERS)} == outline(pair.of_client)


def answer_head(*more: tuple[bytes, bytes], status: bytes = b"200", stream_id: int = 1, end: bool = False) -> bytes:
    """HEADERS of a response."""
    fields = ((b":status", status), (b"content-type", b"application/grpc"), *more)
    return frames.headers(stream_id, Encoder().encode(fields), end_stream=end, frame_bytes_max=16_384)


def trailers(*fields: tuple[bytes, bytes], end: bool = True) -> bytes:
    """HEADERS that end a response."""
    return frames.headers(1, Encoder().encode(fields), end_stream=end, frame_bytes_max=16_384)


def asked() -> ClientConnection:
    """A client that has sent one request."""
    client = ClientConnection(Http2Limits(), 0)
    client.sender.request(client.open(), SHAPE, framed(b"x"))
    client.receive(frames.settings({}), 0)
    return client


def test_interim_responses_are_passed_over() -> None:
    """RFC 9113 §8.1: any number of 1xx may come before the response."""
    client = asked()
    events = client.receive(answer_head(status=b"103") + answer_head(status=b"100") + answer_head(end=True), 0)
    assert [b"200"] == [event.headers.fields[0][1] for event in events if isinstance(event, HeadersReceived)]


def of_fields(*fields: tuple[bytes, bytes]) -> bytes:
    """HEADERS of whatever fields."""
    return frames.headers(1, Encoder().encode(fields), end_stream=False, frame_bytes_max=16_384)


ENDS_A_STREAM = {
    "a status of two digits": answer_head(status=b"20"),
    "no status": of_fields((b"content-type", b"application/grpc")),
    "a pseudo-header of requests": answer_head((b":path", b"/")),
    "upper case": answer_head((b"Upper", b"x")),
    "a field of HTTP/1": answer_head((b"connection", b"close")),
    "an interim response at the end": answer_head(status=b"103", end=True),
    "trailers in the middle": answer_head() + trailers((b"grpc-status", b"0"), end=False),
    "a status in trailers": answer_head() + trailers((b":status", b"200")),
    "less than its content-length": answer_head((b"content-length", b"2"))
    + frames.frame(frames.DATA, 0, 1, b"x")
    + trailers((b"grpc-status", b"0")),
    "more than its content-length": answer_head((b"content-length", b"1")) + frames.frame(frames.DATA, 0, 1, b"xy"),
    "nothing of its content-length": answer_head((b"content-length", b"1"), end=True),
    "a content-length that is none": answer_head((b"content-length", b"-1")),
    "two content-lengths": answer_head((b"content-length", b"1"), (b"content-length", b"2")),
    "too many fields": answer_head(*((b"x-%d" % number, b"y" * 400) for number in range(40))),
    "DATA before the head": frames.frame(frames.DATA, 0, 1, b"x"),
    "all of it before the head": frames.frame(frames.DATA, frames.END_STREAM, 1, b"x"),
    "DATA beyond the window": answer_head() + frames.frame(frames.DATA, 0, 1, bytes(16_000)) * 5,
    "a window by nothing": frames.window_update(1, 0),
    "a window beyond the end": answer_head() + frames.window_update(1, frames.WINDOW_MAX),
}


@pytest.mark.parametrize("flaw", ENDS_A_STREAM)
def test_what_ends_a_stream(flaw: str) -> None:
    """Header lists that are none (§8.2, §8.3), DATA before a head or beyond the window: the stream is reset, others go on."""
    client = asked()
    client.sender.data_to_send()
    events = client.receive(ENDS_A_STREAM[flaw], 0)
    assert [1] == [event.stream.id for event in events if isinstance(event, StreamReset)]
    assert not [event for event in events if isinstance(event, ConnectionEnded | StreamRefused)]
    assert (True, {}) == (client.room > 0, client.streams)
    assert frames.rst_stream(1, 0)[:9] in client.sender.data_to_send()


def test_answers_that_are_alike_are_compared_with_their_content_length() -> None:
    """RFC 9113 §8.1.1, each time: one that is longer than the ones before it is found."""
    client = asked()
    for _ in range(3):
        client.sender.request(client.open(), SHAPE, framed(b"x"))
    events: list[Event] = []
    for stream_id, body in ((1, b"abc"), (3, b"def"), (5, b"toolong"), (7, b"ghi")):
        head = frames.frame(frames.HEADERS, frames.END_HEADERS, stream_id, b"\x88\x0f\x0d\x013")
        last = frames.END_HEADERS | frames.END_STREAM
        end = frames.frame(frames.HEADERS, last, stream_id, b"\x00\x0bgrpc-status\x010")
        events += client.receive(head + frames.frame(frames.DATA, 0, stream_id, body) + end, 0)
    assert [5] == [event.stream.id for event in events if isinstance(event, StreamReset)]
    assert {1: b"abc", 3: b"def", 7: b"ghi"} == {
        stream_id: data for stream_id, (_, data, ended) in outline(events).items() if ended
    }


SETTLED = frames.settings({})
ENDS_A_CONNECTION = {
    "HTTP/1": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "no SETTINGS at first": frames.frame(frames.PING, 0, 0, bytes(8)),
    "push is offered": frames.settings({frames.ENABLE_PUSH: 1}),
    "a push": SETTLED + frames.frame(frames.PUSH_PROMISE, frames.END_HEADERS, 1, bytes(4)),
    "an answer to nothing": SETTLED + answer_head(stream_id=3),
    "a stream of the server's": SETTLED + answer_head(stream_id=2),
    "DATA to nothing": SETTLED + frames.frame(frames.DATA, 0, 3, b"x"),
    "a reset of nothing": SETTLED + frames.rst_stream(3, 0),
    "a reset of a stream of the server's": SETTLED + frames.rst_stream(2, 0),
    "a window of nothing": SETTLED + frames.window_update(3, 1),
    "a window beyond the end": SETTLED + frames.window_update(0, frames.WINDOW_MAX),
    "GOAWAY on a stream": SETTLED + frames.frame(frames.GOAWAY, 0, 1, bytes(8)),
    "half a GOAWAY": SETTLED + frames.frame(frames.GOAWAY, 0, 0, bytes(7)),
    "no HPACK": SETTLED + frames.frame(frames.HEADERS, frames.END_HEADERS, 1, b"\xff" * 6),
    "a frame that is too large": SETTLED + b"\xff\xff\xff\x00\x00\x00\x00\x00\x01",
    "CONTINUATIONs": SETTLED
    + frames.frame(frames.HEADERS, 0, 1, b"")
    + frames.frame(frames.CONTINUATION, 0, 1, b"") * 20,
    "a flood of SETTINGS": SETTLED * 200,
    "a flood of PINGs": SETTLED + frames.frame(frames.PING, 0, 0, bytes(8)) * 1_500,
    "a flood of empty DATA": SETTLED + answer_head() + frames.frame(frames.DATA, 0, 1, b"") * 1_500,
    "a flood of interim responses": SETTLED + answer_head(status=b"103") * 1_500,
    "a flood of windows": SETTLED + frames.window_update(0, 1) * 11_000,
}


@pytest.mark.parametrize("flaw", ENDS_A_CONNECTION)
def test_what_ends_a_connection(flaw: str) -> None:
    """A server that breaks the protocol, or that sends without end what is no answer: its streams are lost, not refused."""
    client = ClientConnection(Http2Limits(), 0)
    client.sender.request(client.open(), SHAPE, framed(b"x"))
    events = client.receive(ENDS_A_CONNECTION[flaw], 0)
    assert 1 == sum(isinstance(event, ConnectionEnded) for event in events)
    assert not [event for event in events if isinstance(event, StreamRefused)]
    assert [1] == [event.stream.id for event in events if isinstance(event, StreamReset)]
    assert (0, []) == (client.room, client.receive(SETTLED, 0))


kinds = st.integers(0, 12)
any_frame = st.builds(frames.frame, kinds, st.integers(0, 255), st.integers(0, 7), st.binary(max_size=40))
answers = st.sampled_from(
    [answer_head(), answer_head(end=True), answer_head(stream_id=3), trailers((b"grpc-status", b"0"))]
)


@settings(max_examples=400)
@given(st.lists(st.one_of(any_frame, answers, st.binary(max_size=30)), max_size=12), st.booleans())
def test_nonsense_is_an_event_and_never_an_exception(pieces: list[bytes], is_settled: bool) -> None:
    """Any bytes: each stream ends at most once, and never as refused unless the server said so."""
    client = ClientConnection(Http2Limits(), 0)
    for _ in range(3):
        client.sender.request(client.open(), SHAPE, framed(b"x"))
    if is_settled:
        client.receive(frames.settings({}), 0)
    events = [event for piece in pieces for event in client.receive(piece, 0)]
    ended = [
        event.stream.id
        for event in events
        if isinstance(event, StreamReset | StreamRefused | TrailersReceived)
        or (isinstance(event, HeadersReceived | DataReceived) and event.ended)
    ]
    assert sorted(set(ended)) == sorted(ended)
    assert {1, 3, 5} - set(ended) == set(client.streams)


def test_requests_of_several_shapes_keep_their_heads() -> None:
    """What a second shape puts into the compression table moves the entries that the first one's kept frames name."""
    shapes = [RequestShape(request_fields(b"/m/%d" % number, (b"x-shape", b"%d" % number))) for number in range(3)]
    pair = Pair()
    expected = [shapes[number].head for number in (0, 0, 1, 0, 1, 2, 0, 1, 2)]
    for number in (0, 0, 1, 0, 1, 2, 0, 1, 2):
        pair.request(shape=shapes[number])
        pair.exchange()
    assert expected == [event.headers.fields for event in pair.of_server if isinstance(event, HeadersReceived)]


def test_a_stream_id_is_used_once_and_the_last_one_ends_the_connection() -> None:
    """RFC 9113 §5.1.1."""
    client = ClientConnection(Http2Limits(), 0)
    client.receive(frames.settings({}), 0)
    assert [1, 3, 5] == [client.open().id for _ in range(3)]
    client._last_stream_id = frames.WINDOW_MAX - 2
    assert (frames.WINDOW_MAX, 0) == (client.open().id, client.room)


def test_a_long_stream_earns_its_window_updates() -> None:
    """A pipeline lives for ever, and the most eager servers open two windows for each frame that they get."""
    client = ClientConnection(Http2Limits(), 0)
    client.receive(frames.settings({}), 0)
    stream = client.open()
    client.sender.send_headers(stream, SHAPE.head)
    frame = bytes(frames.FRAME_BYTES_DEFAULT)
    updates = frames.window_update(0, len(frame)) + frames.window_update(stream.id, len(frame))
    for _ in range(floods.WINDOWS.burst):
        client.sender.send_data(stream, [frame])
        client.sender.data_to_send()
        assert [] == client.receive(updates, 0)


def test_windows_opened_by_a_few_bytes_earn_nothing() -> None:
    """To send frames of one byte is work that a peer makes for next to nothing."""
    client = ClientConnection(Http2Limits(), 0)
    client.receive(frames.settings({frames.INITIAL_WINDOW_SIZE: 0}), 0)
    stream = client.open()
    client.sender.send_headers(stream, SHAPE.head)
    client.sender.send_data(stream, [bytes(20_000)])
    events = client.receive(frames.window_update(stream.id, 1) * (floods.WINDOWS.burst + 10), 0)
    assert any(isinstance(event, ConnectionEnded) for event in events)
