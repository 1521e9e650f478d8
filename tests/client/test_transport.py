"""The client's own transport: what it makes of nodes that answer, that do not, and that break off in the middle; above all,
whether it says rightly that a request had no effect.
"""

import asyncio
import contextlib
import gc
import gzip
import inspect
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

import raftcache
from raftcache.client import fast_channel, fast_connection, fast_sync
from raftcache.client.errors import ClientClosed
from raftcache.client.failure import Failure
from raftcache.client.fast_async import FastAsyncStream, FastAsyncTransport
from raftcache.client.fast_calls import AsyncCall, SyncCall
from raftcache.client.fast_channel import CONNECTIONS_MAX
from raftcache.client.fast_sync import FastStream, FastTransport, _LoopThread
from raftcache.client.ops import Method
from raftcache.client.options import Options
from raftcache.client.steps import Call
from raftcache.clock import ManualClock, SystemClock
from raftcache.errors import BatchTooLarge, OutcomeUnknown, PermissionDenied, Unavailable
from raftcache.v1 import kv_pb2
from raftcache.wire import http2_frames as frames
from raftcache.wire.grpc_wire import OK_TRAILERS, RESPONSE_HEAD, Refusal, framed, trailers_of
from raftcache.wire.hpack import Fields
from raftcache.wire.http2 import Http2Limits
from raftcache.wire.http2_client import STREAM_ID_MAX
from raftcache.wire.http2_errors import CANCEL, REFUSED_STREAM
from raftcache.wire.http2_stream import DataReceived, HeadersReceived, Stream
from tests.client.wire_node import OK_BODY, On, Peer, WireNode, answering, silent, until, when_complete, wire_node

TOP = Path(__file__).parents[2]
METHOD = Method("/raftcache.v1.KvService/Get", bytes)
"""Answers are bytes here."""
PATIENCE_SECONDS = 30.0


def call(endpoint: str, *, seconds: float = PATIENCE_SECONDS, key: bytes = b"k") -> Call:
    """A request."""
    return Call(endpoint, METHOD, kv_pb2.GetRequest(key=key), seconds)


@asynccontextmanager
async def transport() -> AsyncIterator[FastAsyncTransport]:
    """A transport of this loop."""
    found = FastAsyncTransport(Options(endpoints=("a:1",)), asyncio.get_running_loop(), SystemClock())
    try:
        yield found
    finally:
        await found.close()


class Both(NamedTuple):
    """A node and a transport."""

    node: WireNode
    transport: FastAsyncTransport

    async def ask(self, **options: Any) -> Any:
        return await self.transport.call(call(self.node.endpoint, **options))

    async def ask_many(self, count: int, **options: Any) -> list[Any]:
        return await self.transport.together([call(self.node.endpoint, **options) for _ in range(count)])


@asynccontextmanager
async def both(on_event: On = answering, **options: Any) -> AsyncIterator[Both]:
    """Both."""
    async with wire_node(on_event, **options) as node, transport() as found:
        yield Both(node, found)


def outcome(failure: Any) -> tuple[bool, bool]:
    """Whether it is definite, and worth another attempt."""
    assert isinstance(failure, Failure), failure
    return failure.definite, failure.again


INTERNAL_ERROR = 2
"""Of HTTP/2."""
NO_EFFECT, WHO_KNOWS = (True, True), (False, True)


# --- Calls ------------------------------------------------------------------------------------------------------------


async def test_calls_of_one_turn_leave_in_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or, if they are many, in a few: the node begins with the first while the others are being made."""
    writes: list[int] = []

    async with both() as pair:
        await pair.ask()
        assert pair.transport._channels is not None
        (connection,) = pair.transport._channels._channels[pair.node.endpoint]._connections
        written = connection.http2.sender.data_to_send

        def data_to_send() -> bytes:
            count = len(connection.http2.sender.out)
            data = written()
            if data:
                writes.append(count)
            return data

        monkeypatch.setattr(connection.http2.sender, "data_to_send", data_to_send)
        for count, expected in ((1, [1]), (32, [32]), (70, [32, 32, 6])):
            writes.clear()
            assert [OK_BODY] * count == await pair.ask_many(count)
            assert expected == writes


@pytest.mark.parametrize("size", [0, 16_380, 100_000, 3_000_000])
async def test_requests_and_answers_of_any_size_arrive(size: int) -> None:
    """Through windows that are smaller than they are, and many at once."""
    sizes: list[int] = []

    def on_event(peer: Peer, event: HeadersReceived | DataReceived) -> None:
        peer.http2.allow(event.stream, 64 << 10)
        event.stream.call = (event.stream.call or 0) + len(event.data)
        if event.ended:
            sizes.append(event.stream.call)
            peer.answer(event.stream, bytes(size))

    async with both(on_event) as pair:
        assert [bytes(size)] * 5 == await pair.ask_many(5, key=bytes(size))
    assert [5 + len(kv_pb2.GetRequest(key=bytes(size)).SerializeToString())] * 5 == sizes


async def test_more_calls_than_the_node_allows_wait_for_their_turn() -> None:
    """Never more than it said at once, over a few connections."""
    held: list[tuple[Peer, Stream]] = []

    def is_done() -> bool:
        for peer, stream in held:
            peer.answer(stream)
            peer.flush()
        held.clear()
        return asking.done()

    on_event = when_complete(lambda peer, stream: held.append((peer, stream)))
    async with both(on_event, limits=Http2Limits(streams_max=2)) as pair, asyncio.TaskGroup() as group:
        asking = group.create_task(pair.ask_many(101), name="calls")
        await until(is_done)
        assert [OK_BODY] * 101 == await asking
        assert 1 < len(pair.node.peers) <= CONNECTIONS_MAX
        assert 2 == max(peer.open_max for peer in pair.node.peers)


async def test_the_deadline_goes_along_and_is_kept_here_as_well() -> None:
    """A node that says nothing is not waited for, and is told so; the call may have had an effect."""
    async with both(silent) as pair:
        failure = await pair.ask(seconds=0.05)
        assert (WHO_KNOWS, True) == (outcome(failure), failure.timed_out)
        assert b"51m" == dict(pair.node.heads[0])[b"grpc-timeout"]
        await until(lambda: pair.node.peers[0].resets)
        assert [CANCEL] == pair.node.peers[0].resets


async def test_a_cancelled_call_is_cancelled_at_the_node() -> None:
    """By a reset of its stream; calls beside it go on."""
    held: list[Stream] = []
    async with both(when_complete(lambda peer, stream: held.append(stream))) as pair, asyncio.TaskGroup() as group:
        one, other = (group.create_task(pair.ask(), name=f"call-{number}") for number in range(2))
        await until(lambda: len(held) == 2)
        one.cancel()
        await until(lambda: pair.node.peers[0].resets)
        (peer,) = pair.node.peers
        (left,) = peer.http2.streams.values()
        peer.answer(left)
        peer.flush()
        assert OK_BODY == await other
        assert ([CANCEL], True) == (peer.resets, one.cancelled())


# --- What is certain ----------------------------------------------------------------------------------------------------


async def test_a_node_that_is_not_there_was_never_asked() -> None:
    """And for a moment nobody dials it again: calls fail at once, for the same reason."""
    async with transport() as found:
        for _ in range(3):
            failure = await found.call(call("127.0.0.1:1"))
            assert (NO_EFFECT, True) == (outcome(failure), failure.unreachable)
            assert "Connect call failed" in failure.error.message
            assert isinstance(failure.error, Unavailable)


@pytest.mark.parametrize("endpoint", ["127.0.0.1:x", "127.0.0.1:70000", "nonsense", "\u00e4" * 70 + ":1"])
async def test_an_address_that_leads_nowhere_was_never_asked(endpoint: str) -> None:
    """Nodes say where they are; they may be wrong. That is told at once, and not when the time is over."""
    async with transport() as found:
        failure = await found.call(call(endpoint))
        assert (NO_EFFECT, False) == (outcome(failure), failure.timed_out)


async def test_a_node_that_came_back_is_found() -> None:
    """After the moment in which it is left alone."""
    async with wire_node() as node:
        endpoint = node.endpoint
    async with transport() as found:
        assert NO_EFFECT == outcome(await found.call(call(endpoint)))
        port = int(endpoint.rpartition(":")[2])
        back = WireNode(answering, Http2Limits(), None)
        async with await asyncio.get_running_loop().create_server(lambda: Peer(back), "127.0.0.1", port):
            async with asyncio.timeout(PATIENCE_SECONDS):
                while await found.call(call(endpoint)) != OK_BODY:  # noqa: ASYNC110 # a call is what is repeated
                    await asyncio.sleep(0.01)
            assert 1 == len(back.peers)
            for peer in back.peers:
                peer.hang_up()


@pytest.mark.parametrize("hello", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x15\x03\x03\x00\x02\x02\x46", b"\0" * 40])
async def test_who_speaks_something_else_was_never_asked(hello: bytes) -> None:
    """HTTP/1, TLS, nonsense: calls wait for HTTP/2's hello before they are written."""
    async with both(hello=hello) as pair:
        failure = await pair.ask()
        assert NO_EFFECT == outcome(failure)
        assert isinstance(failure, Failure)
        assert "is that the address for clients, and is TLS as it should be?" in failure.error.message
        assert hello.startswith(b"HTTP") == ("it speaks HTTP/1" in failure.error.message)


async def test_calls_that_waited_in_vain_are_not_kept() -> None:
    """A node that lets nobody in, for as long as it likes: only who still waits costs memory."""
    async with both(limits=Http2Limits(streams_max=0)) as pair:
        for _ in range(5):
            failure = await pair.ask(seconds=0.02)
            assert (NO_EFFECT, True) == (outcome(failure), failure.timed_out)
        assert pair.transport._channels is not None
        assert 1 == len(pair.transport._channels._channels[pair.node.endpoint]._waiting)


async def test_who_says_nothing_was_never_asked() -> None:
    """Also where the call's time is over before the connection's."""
    async with both(hello=b"") as pair:
        failure = await pair.ask(seconds=0.05)
        assert (NO_EFFECT, True) == (outcome(failure), failure.timed_out)


async def test_a_call_that_was_not_written_when_its_connection_broke_had_no_effect() -> None:
    """Calls of a turn are written at its end. One that was written before is lost."""
    async with both(silent) as pair, asyncio.TaskGroup() as group:
        written = group.create_task(pair.ask(), name="written")
        await until(lambda: pair.node.heads)
        assert pair.transport._channels is not None
        (connection,) = pair.transport._channels._channels[pair.node.endpoint]._connections
        started = AsyncCall(call(pair.node.endpoint), asyncio.get_running_loop().create_future())
        pair.transport._channels.start(started)
        connection.abort()
        assert NO_EFFECT == outcome(await started.future)
        assert WHO_KNOWS == outcome(await written)
        assert 1 == len(pair.node.heads)


@pytest.mark.parametrize("how", ["the client is closed", "the node breaks HTTP/2", "the node resets the stream"])
async def test_a_call_that_leaves_after_its_end_may_have_had_an_effect(how: str) -> None:
    """It is settled between its turn and the write at the end of that, which carries it out all the same."""
    async with both(silent) as pair:
        await pair.ask(seconds=0.05)
        assert pair.transport._channels is not None
        (connection,) = pair.transport._channels._channels[pair.node.endpoint]._connections
        seen = len(pair.node.heads)
        started = AsyncCall(call(pair.node.endpoint), asyncio.get_running_loop().create_future())
        pair.transport._channels.start(started)
        assert started.stream is not None
        match how:
            case "the client is closed":
                connection.leave()
            case "the node breaks HTTP/2":
                connection.data_received(frames.frame(frames.DATA, 0, 0, b"x"))
            case _:
                code = INTERNAL_ERROR.to_bytes(4, "big")
                connection.data_received(frames.frame(frames.RST_STREAM, 0, started.stream.id, code))
        assert WHO_KNOWS == outcome(await started.future)
        await until(lambda: len(pair.node.heads) == seen + 1)


async def test_a_call_whose_connection_breaks_may_have_had_an_effect() -> None:
    """The node had read it, and hung up."""
    async with both(when_complete(lambda peer, stream: peer.hang_up())) as pair:
        failure = await pair.ask()
        assert (WHO_KNOWS, OutcomeUnknown, True) == (outcome(failure), type(failure.error), failure.unreachable)


async def test_a_call_given_up_before_it_is_written_may_have_an_effect() -> None:
    """Its frames are on their way, with the reset behind them, and the node may be faster than that."""
    async with both(silent) as pair:
        await pair.ask(seconds=0.05)
        assert pair.transport._channels is not None
        started = AsyncCall(call(pair.node.endpoint), asyncio.get_running_loop().create_future())
        pair.transport._channels.start(started)
        fast_channel._expire(started)
        assert WHO_KNOWS == outcome(await started.future)


@pytest.mark.parametrize(
    ("code", "expected"), [(REFUSED_STREAM, NO_EFFECT), (CANCEL, WHO_KNOWS), (INTERNAL_ERROR, WHO_KNOWS)]
)
async def test_a_reset_is_no_effect_only_if_the_node_says_so(code: int, expected: tuple[bool, bool]) -> None:
    """REFUSED_STREAM: the node has not looked at it (RFC 9113 §8.7)."""
    async with both(when_complete(lambda peer, stream: peer.http2.reset(stream, code))) as pair:
        assert expected == outcome(await pair.ask())


async def test_a_refusal_after_half_an_answer_is_not_believed() -> None:
    """It contradicts itself."""

    def contradict(peer: Peer, stream: Stream) -> None:
        peer.http2.sender.send_headers(stream, RESPONSE_HEAD)
        peer.http2.reset(stream, REFUSED_STREAM)

    async with both(when_complete(contradict)) as pair:
        assert WHO_KNOWS == outcome(await pair.ask())


async def test_a_goodbye_refuses_what_is_above_it_and_answers_the_rest() -> None:
    """The calls above the last id had no effect; the next call goes over a new connection."""

    def on_complete(peer: Peer, stream: Stream) -> None:
        if len(pair.node.peers) > 1:
            peer.answer(stream)
        elif stream.id == 5:
            peer.raw(frames.goaway(1, 0))
            first = peer.http2.streams[1]
            peer.answer(first)

    async with both(when_complete(on_complete)) as pair:
        answer, *refused = await pair.ask_many(3)
        assert (OK_BODY, [NO_EFFECT, NO_EFFECT]) == (answer, [outcome(failure) for failure in refused])
        assert OK_BODY == await pair.ask()
        assert 2 == len(pair.node.peers)


async def test_a_connection_that_was_said_goodbye_is_closed_with_its_last_call() -> None:
    """By this end, if the other does not."""
    held: list[tuple[Peer, Stream]] = []

    def on_complete(peer: Peer, stream: Stream) -> None:
        peer.http2.accept_no_more()
        held.append((peer, stream))

    async with both(when_complete(on_complete)) as pair, asyncio.TaskGroup() as group:
        asking = group.create_task(pair.ask(), name="call")
        await until(lambda: held)
        ((peer, stream),) = held
        peer.answer(stream)
        peer.flush()
        assert OK_BODY == await asking
        assert peer.transport is not None
        await until(peer.transport.is_closing)


async def test_a_connection_whose_stream_ids_are_used_up_makes_way_for_another() -> None:
    """Ids only grow, up to 2**31-1: what comes after that goes over a new connection, as often as it takes."""
    async with both() as pair:
        for number in range(CONNECTIONS_MAX + 2):
            assert OK_BODY == await pair.ask()
            assert number + 1 == len(pair.node.peers)
            assert pair.transport._channels is not None
            (connection,) = pair.transport._channels._channels[pair.node.endpoint]._connections
            connection.http2._last_stream_id = STREAM_ID_MAX - 2
            assert OK_BODY == await pair.ask()
            assert connection not in connection.channel._connections
            await until(connection.gone.done)


async def test_who_says_goodbye_at_once_was_never_asked() -> None:
    """Calls do not wait for a connection that will never take them."""
    hello = frames.settings({}) + frames.goaway(0, 0)
    async with both(hello=hello) as pair:
        assert NO_EFFECT == outcome(await pair.ask())


async def test_closing_twice_at_once_is_fine() -> None:
    """By two tasks."""
    async with both() as pair, asyncio.TaskGroup() as group:
        await pair.ask()
        for number in range(2):
            group.create_task(pair.transport.close(), name=f"close-{number}")


async def test_a_node_that_breaks_the_protocol_loses_its_calls() -> None:
    """They were sent."""
    async with both(when_complete(lambda peer, stream: peer.raw(frames.window_update(0, 0)))) as pair:
        failure = await pair.ask()
        assert WHO_KNOWS == outcome(failure)
        assert "broke HTTP/2" in failure.error.message


async def test_silence_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection without a sign of life is given up: no ping is answered, while the call has all the time it wants."""
    monkeypatch.setattr(fast_connection, "KEEPALIVE_SECONDS", 0.02)
    monkeypatch.setattr(fast_connection, "KEEPALIVE_TIMEOUT_SECONDS", 0.02)

    def stop_reading(peer: Peer, stream: Stream) -> None:
        assert peer.transport is not None
        peer.transport.pause_reading()

    async with both(when_complete(stop_reading)) as pair:
        failure = await pair.ask()
        assert WHO_KNOWS == outcome(failure)
        assert "no sign of life" in failure.error.message


async def test_a_quiet_connection_that_answers_pings_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long its calls take."""
    monkeypatch.setattr(fast_connection, "KEEPALIVE_SECONDS", 0.005)

    held: list[tuple[Peer, Stream]] = []

    def on_complete(peer: Peer, stream: Stream) -> None:
        pong = peer.http2._handlers[frames.PING]

        def on_ping(flags: int, stream_id: int, payload: bytes) -> None:
            pong(flags, stream_id, payload)
            held.append((peer, stream))

        handlers = list(peer.http2._handlers)
        handlers[frames.PING] = on_ping
        peer.http2._handlers = tuple(handlers)

    async with both(when_complete(on_complete)) as pair, asyncio.TaskGroup() as group:
        asking = group.create_task(pair.ask(), name="call")
        await until(lambda: held)
        ((peer, stream),) = held
        peer.answer(stream)
        peer.flush()
        assert OK_BODY == await asking
        assert 1 == len(pair.node.peers)


async def test_closing_tells_what_was_sent_from_what_was_not() -> None:
    """A call on its way is lost; one that waits for a connection had no effect; and so has every later one."""
    async with both(silent) as pair, wire_node(hello=b"") as mute, asyncio.TaskGroup() as group:
        sent = group.create_task(pair.ask(), name="sent")
        waiting = group.create_task(pair.transport.call(call(mute.endpoint)), name="waiting")
        await until(lambda: bool(pair.node.heads and mute.peers))
        await pair.transport.close()
        assert WHO_KNOWS == outcome(await sent)
        assert (True, False) == outcome(await waiting)
        assert (True, False) == outcome(await pair.ask())


# --- What a node may answer -----------------------------------------------------------------------------------------------


def replies(head: Fields, body: bytes = b"", trailers: Fields | None = None, *, cut: bool = False) -> On:
    """Answers with whatever, in one piece or in three."""

    def on_complete(peer: Peer, stream: Stream) -> None:
        sender = peer.http2.sender
        sender.send_headers(stream, head, end=not body and trailers is None)
        if cut:
            peer.flush()
        if body:
            sender.send_data(stream, [body])
        if body or trailers is not None:
            sender.end(stream, trailers or ())

    return when_complete(on_complete)


HEAD = ((b":status", b"200"), (b"content-type", b"application/grpc"))


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize(
    ("reply", "expected", "says"),
    [
        ((HEAD + trailers_of(Refusal(7, "no")),), PermissionDenied, "no"),
        ((HEAD, b"", trailers_of(Refusal(7, "öhm %"))), PermissionDenied, "öhm %"),
        ((HEAD, b"", trailers_of(Refusal(8, "too large"))), BatchTooLarge, "too large"),
        ((HEAD, b"", trailers_of(Refusal(14, "failed to connect to all addresses"))), OutcomeUnknown, "UNAVAILABLE"),
        ((HEAD, framed(b"x"), trailers_of(Refusal(13, "x"))), OutcomeUnknown, "INTERNAL"),
        ((HEAD, framed(b"x"), ((b"grpc-status", b"99"),)), OutcomeUnknown, "status is"),
        ((HEAD, framed(b"x"), ((b"x", b"y"),)), OutcomeUnknown, "without a gRPC status"),
        ((HEAD, framed(b"x"), ()), OutcomeUnknown, "without"),
        ((HEAD, b"", OK_TRAILERS), OutcomeUnknown, "exactly one message"),
        ((HEAD, framed(b"x") * 2, OK_TRAILERS), OutcomeUnknown, "exactly one message"),
        ((HEAD, framed(b"x")[:-1], OK_TRAILERS), OutcomeUnknown, "exactly one message"),
        ((HEAD, b"\1\0\0\0\1x", OK_TRAILERS), OutcomeUnknown, "compressed"),
        ((HEAD, b"\0\xff\xff\xff\xff", OK_TRAILERS), OutcomeUnknown, "4294967295 bytes"),
        ((((b":status", b"503"), (b"content-type", b"text/html")), b"busy", ()), OutcomeUnknown, "HTTP status 503"),
        ((((b":status", b"403"),),), PermissionDenied, "HTTP status 403"),
        ((((b":status", b"200"), (b"content-type", b"text/html")), b"hello", ()), OutcomeUnknown, "text/html"),
        ((((b":status", b"200"),), framed(b"x"), OK_TRAILERS), OutcomeUnknown, "not gRPC"),
        (((*HEAD, (b"grpc-encoding", b"br")), framed(b"x"), OK_TRAILERS), OutcomeUnknown, "br"),
    ],
)
async def test_whatever_is_answered_has_a_meaning(
    reply: tuple[Any, ...], expected: type[Exception], says: str, cut: bool
) -> None:
    """Statuses, with and without a message before; proxies' pages; what is no answer at all. Only who says that the request was
    not let in is believed to have done nothing."""
    async with both(replies(*reply, cut=cut)) as pair:
        failure = await pair.ask()
        assert isinstance(failure, Failure)
        assert (expected, expected is not OutcomeUnknown) == (type(failure.error), failure.definite)
        assert says in failure.error.message


async def test_a_head_that_is_all_there_is_may_come_again() -> None:
    """The connection keeps what equal header blocks mean: as the end of a reply that has nothing else it is still a head."""
    async with both(replies(HEAD + OK_TRAILERS)) as pair:
        for _ in range(4):
            failure = await pair.ask()
            assert WHO_KNOWS == outcome(failure)
            assert "exactly one message" in failure.error.message
        assert 1 == len(pair.node.peers)


async def test_good_trailers_mend_no_bad_head() -> None:
    """Also where they have ended a good answer before."""
    heads = [HEAD, HEAD, HEAD, ((b":status", b"500"),)]

    def on_complete(peer: Peer, event: HeadersReceived | DataReceived) -> None:
        replies(heads.pop(0), framed(OK_BODY), OK_TRAILERS)(peer, event)

    async with both(on_complete) as pair:
        for _ in range(3):
            assert OK_BODY == await pair.ask()
        failure = await pair.ask()
        assert WHO_KNOWS == outcome(failure)
        assert "HTTP status 500" in failure.error.message


async def test_answers_may_be_compressed() -> None:
    """Nobody is asked to, but some proxies do."""
    packed = gzip.compress(b"answer" * 100)
    body = b"\1" + len(packed).to_bytes(4, "big") + packed
    async with both(replies((*HEAD, (b"grpc-encoding", b"gzip")), body, OK_TRAILERS)) as pair:
        assert b"answer" * 100 == await pair.ask()


# --- Streams ----------------------------------------------------------------------------------------------------------------


class Held(NamedTuple):
    """A stream whose write of `request` waits for a window that the node does not open."""

    stream: FastAsyncStream
    request: kv_pb2.PipelineRequest
    writing: asyncio.Task[bool]
    peer: Peer
    theirs: Stream
    """The stream at the node."""


@asynccontextmanager
async def held() -> AsyncIterator[Held]:
    """Such a stream."""
    opened: list[Stream] = []

    def on_event(peer: Peer, event: HeadersReceived | DataReceived) -> None:
        if isinstance(event, HeadersReceived):
            opened.append(event.stream)

    async with both(on_event) as pair, asyncio.TaskGroup() as group:
        await pair.transport._opened()
        stream = pair.transport.open_stream(pair.node.endpoint)
        request = kv_pb2.PipelineRequest()
        request.operations.add().put.value = bytes(100_000)
        writing = group.create_task(stream.write(request), name="write")
        await until(lambda: bool(opened) and opened[0].receive_window <= 0)
        (peer,) = pair.node.peers
        yield Held(stream, request, writing, peer, opened[0])


async def test_a_stream_waits_for_a_node_that_does_not_read() -> None:
    """A write returns when its message has left; the node's window is what lets it."""
    async with held() as found:
        stream, peer = found.stream, found.peer
        assert not found.writing.done()
        peer.http2.allow(found.theirs, 1 << 20)
        peer.flush()
        assert await found.writing
        await stream.end()
        peer.http2.sender.send_headers(found.theirs, HEAD + OK_TRAILERS, end=True)
        peer.flush()
        assert (None, None) == (await stream.read(), stream.failure)
        assert not await stream.write(found.request)


async def test_a_response_that_is_none_ends_the_stream_for_its_writer_as_well() -> None:
    """Also one that waits for a window, which nobody will open any more."""
    async with held() as found:
        found.peer.http2.sender.send_headers(found.theirs, HEAD)
        found.peer.http2.sender.send_data(found.theirs, [framed(b"\xff")])
        found.peer.flush()
        assert await found.stream.read() is None
        assert WHO_KNOWS == outcome(found.stream.failure)
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert not await found.writing


async def test_a_reader_that_does_not_read_holds_the_node_up() -> None:
    """What nobody has taken is bounded; then the node's window stays closed until somebody does."""
    message = kv_pb2.PipelineResponse(request_id=1)
    message.results.add().get.entry.value = bytes(100_000)
    count = 150
    opened: list[Stream] = []

    def on_event(peer: Peer, event: HeadersReceived | DataReceived) -> None:
        if isinstance(event, HeadersReceived):
            opened.append(event.stream)
            peer.http2.sender.send_headers(event.stream, HEAD)
            peer.http2.sender.send_data(event.stream, [framed(message.SerializeToString())] * count)
            peer.http2.sender.end(event.stream, OK_TRAILERS)

    async with both(on_event) as pair:
        await pair.transport._opened()
        stream = pair.transport.open_stream(pair.node.endpoint)
        await until(lambda: bool(opened) and opened[0].send_window <= 0)
        assert pair.node.peers[0].http2.sender.unsent > 5_000_000
        responses = 0
        while await stream.read() is not None:
            responses += 1
        assert (count, None) == (responses, stream.failure)


# --- Threads ----------------------------------------------------------------------------------------------------------------


def threads_named(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == name]


async def test_threads_share_one_connection_and_leave_nothing_behind() -> None:
    """Their calls meet in one thread of the transport's, which ends when it is closed."""
    async with wire_node() as node:
        found = FastTransport(Options(endpoints=("a:1",)))

        def work(_: int) -> list[Any]:
            return [found.call(call(node.endpoint)) for _ in range(20)]

        asking = [asyncio.to_thread(work, number) for number in range(8)]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one, name=f"thread-{number}") for number, one in enumerate(asking)]
        assert [[OK_BODY] * 20] * 8 == [task.result() for task in tasks]
        assert (1, 1) == (len(node.peers), len(threads_named("raftcache-client")))
        await asyncio.to_thread(found.close)
        assert [] == threads_named("raftcache-client")
        assert (True, False) == outcome(found.call(call(node.endpoint)))
        assert [(True, False)] * 2 == [outcome(one) for one in found.together([call(node.endpoint)] * 2)]


async def test_calls_of_threads_that_were_answered_together_leave_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """They come one after the other, as the interpreter lets their threads. Who calls alone is not waited for."""
    found = FastTransport(Options(endpoints=("a:1",)))
    thread = found._started()
    assert thread is not None
    started: list[SyncCall] = []
    coming: deque[SyncCall] = deque()
    monkeypatch.setattr(thread.channels, "start", started.append)
    monkeypatch.setattr(thread, "_clock", ManualClock())
    other_threads = SimpleNamespace(sleep=lambda _: thread._inbox.append(coming.popleft()) if coming else None)
    monkeypatch.setattr(fast_sync, "time", other_threads)

    async def look(*inbox: SyncCall) -> None:
        thread._inbox.extend(inbox)
        thread._on_inbox()

    calls = [SyncCall(call("127.0.0.1:1")) for _ in range(8)]
    for inbox, company, begun in ((2, 0, 2), (1, 2, 5), (1, 0, 6), (1, 1, 7)):
        first = len(started)
        coming.extend(calls[first + inbox : first + inbox + company])
        asked = look(*calls[first : first + inbox])
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(asked, thread.loop))
        assert calls[:begun] == started
    assert 1 == len(coming), "after a single call nobody is waited for"
    await asyncio.to_thread(found.close)


async def test_what_comes_in_the_last_turn_of_the_thread_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipeline that is opened while another thread closes the client: its user waits for nothing that will not come."""
    found = FastTransport(Options(endpoints=("a:1",)))
    thread = found._started()
    assert thread is not None
    stopping, queued = threading.Event(), threading.Event()
    call_soon_threadsafe = thread.loop.call_soon_threadsafe

    def observed(*arguments: Any, **options: Any) -> Any:
        handle = call_soon_threadsafe(*arguments, **options)
        queued.set()
        return handle

    def stop() -> None:
        thread.loop.stop()
        stopping.set()
        queued.wait(PATIENCE_SECONDS)

    outcomes: list[object] = []

    def pipeline() -> None:
        try:
            outcomes.append(list(found.open_stream("127.0.0.1:1", iter(()))))
        except ClientClosed as error:
            outcomes.append(error)

    call_soon_threadsafe(stop)
    stopping.wait(PATIENCE_SECONDS)
    monkeypatch.setattr(thread.loop, "call_soon_threadsafe", observed)
    user = threading.Thread(target=pipeline, name="user", daemon=True)
    user.start()
    await asyncio.to_thread(user.join, PATIENCE_SECONDS)
    assert outcomes, "it waits for ever"
    assert isinstance(outcomes[0], ClientClosed) or outcomes[0] == []


async def test_a_stream_that_is_opened_as_the_client_closes_has_an_end() -> None:
    """Its reader is cancelled before it has begun."""

    class Cancelled(FastStream):
        async def _open(self, endpoint: str) -> FastAsyncStream:
            stream = await super()._open(endpoint)
            self._reader.cancel()
            return stream

    found = FastTransport(Options(endpoints=("a:1",)))
    thread = found._started()
    assert thread is not None
    stream = Cancelled(thread, "127.0.0.1:1", iter(()))
    ends: list[object] = []
    user = threading.Thread(target=lambda: ends.append(list(stream)), name="user", daemon=True)
    user.start()
    await asyncio.to_thread(user.join, PATIENCE_SECONDS)
    assert [[]] == ends
    await asyncio.to_thread(found.close)


async def test_a_transport_that_nobody_knows_any_more_ends_its_thread() -> None:
    """Clients are forgotten without being closed."""
    async with wire_node() as node:
        found = FastTransport(Options(endpoints=("a:1",)))
        assert OK_BODY == await asyncio.to_thread(found.call, call(node.endpoint))
        (thread,) = threads_named("raftcache-client")
        del found
        gc.collect()
        await asyncio.to_thread(thread.join, PATIENCE_SECONDS)
        assert not thread.is_alive()


async def test_a_thread_that_is_interrupted_gives_its_call_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """As by Ctrl-C: the node is told, and the exception goes on."""
    async with wire_node(silent) as node:
        found = FastTransport(Options(endpoints=("a:1",)))

        def interrupted(started: Any, seconds: float) -> None:
            while not node.heads:
                time.sleep(0.001)
            raise KeyboardInterrupt

        monkeypatch.setattr("raftcache.client.fast_calls.SyncCall.wait", interrupted)

        def work() -> None:
            with pytest.raises(KeyboardInterrupt):
                found.call(call(node.endpoint))

        await asyncio.to_thread(work)
        await until(lambda: node.peers[0].resets)
        assert [CANCEL] == node.peers[0].resets
        await asyncio.to_thread(found.close)


async def test_a_program_ends_without_closing_anything() -> None:
    """No hang and no word on standard error, with both clients in use; and grpcio is not imported for it."""
    program = """
import asyncio, sys, raftcache
from raftcache.errors import RaftCacheError
def attempt(do):
    try:
        do()
    except RaftCacheError as error:
        print(error.reason)
rc = raftcache.Client(sys.argv[1], timeout=0.2)
attempt(rc.ping)
async_rc = raftcache.AsyncClient(sys.argv[1], timeout=0.2)
attempt(lambda: asyncio.run(async_rc.ping()))
print("grpc" in sys.modules)
"""
    async with wire_node(silent) as node:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-X",
            "dev",
            "-c",
            program,
            node.endpoint,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=TOP,
        )
        said, complained = await asyncio.wait_for(process.communicate(), PATIENCE_SECONDS)
    assert ("DEADLINE_EXCEEDED\nDEADLINE_EXCEEDED\nFalse\n", "", 0) == (
        said.decode(),
        complained.decode(),
        process.returncode,
    )


async def test_an_async_client_that_nobody_closes_is_closed_by_its_loop() -> None:
    """The node sees it hang up when `asyncio.run` is over."""
    async with wire_node() as node:

        def program() -> None:
            async def use() -> None:
                rc = raftcache.AsyncClient(node.endpoint, timeout=0.2)
                with contextlib.suppress(raftcache.RaftCacheError):
                    await rc.ping()
                kept.append(rc)

            kept: list[raftcache.AsyncClient] = []
            asyncio.run(use())

        await asyncio.to_thread(program)
        (peer,) = node.peers
        assert peer.transport is not None
        await until(peer.transport.is_closing)


def test_what_a_stopped_loop_took_and_never_began_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its last turn and its end a loop still takes callbacks. Whoever waits for one is told, and no coroutine is left."""
    thread = _LoopThread(None)
    with monkeypatch.context() as held_open:
        held_open.setattr(thread.loop, "close", lambda: None)
        thread.close()
    coroutine = asyncio.sleep(0)
    with pytest.raises(ClientClosed):
        thread.run(coroutine)
    assert inspect.CORO_CLOSED == inspect.getcoroutinestate(coroutine)
    thread.loop.close()
