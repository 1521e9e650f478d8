"""Clients that mean harm, each by its name: they are cut off, memory stays bounded, and others are served meanwhile."""

import asyncio
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from raftcache.clock import SystemClock
from raftcache.edge import fast_connection
from raftcache.edge.fast_front import FastFront
from raftcache.gateway.handlers import handlers_of
from raftcache.v1 import kv_pb2
from raftcache.wire import http2_frames as frames
from raftcache.wire.grpc_wire import framed
from raftcache.wire.http2_errors import (
    COMPRESSION_ERROR,
    ENHANCE_YOUR_CALM,
    FLOW_CONTROL_ERROR,
    FRAME_SIZE_ERROR,
    PROTOCOL_ERROR,
    REFUSED_STREAM,
)
from raftcache.wire.http2_sending import Sender
from raftcache.wire.http2_stream import Stream
from tests.edge.conftest import SETTINGS, front_config
from tests.edge.test_fronts import until
from tests.edge.wire_client import PUT, WireClient, request_fields
from tests.gateway.memory_node import MemoryAdministration, MemoryNode

MEMORY_MAX = 64 << 20
"""What an attack may make the process allocate, the attacker's own buffers included."""


@dataclass
class Scene:
    """A front, somebody who behaves, and how many calls of theirs were answered."""

    node: MemoryNode
    front: FastFront
    answered: int = 0
    attackers: list[WireClient] = field(default_factory=list)

    async def attacker(self, settings: dict[int, int] | None = None, *, receive_buffer: int = 0) -> WireClient:
        self.attackers.append(await WireClient.connect(self.front.port, settings, receive_buffer=receive_buffer))
        return self.attackers[-1]


@asynccontextmanager
async def scene(*, behaved: bool = True, **changes: object) -> AsyncIterator[Scene]:
    """Runs a front and a well-behaved client beside what the test does. The client must be served to the end."""
    node = MemoryNode(clock=SystemClock())
    front = FastFront(handlers_of(node.gateway(SETTINGS), MemoryAdministration()), front_config(**changes), node.clock)
    await front.start()
    found = Scene(node, front)
    stopping = asyncio.Event()

    async def behave() -> None:
        client = await found.attacker()
        while not stopping.is_set():
            fields, data = await client.answer(client.call())
            assert "0" == fields["grpc-status"]
            # Without it 64 KiB of answers close the connection's window, and this client waits for itself.
            client.send(frames.window_update(0, len(data)))
            found.answered += 1
            await asyncio.sleep(0)

    tracemalloc.start()
    try:
        async with asyncio.TaskGroup() as tasks:
            if behaved:
                tasks.create_task(behave())
                await until(lambda: found.answered > 0)
            yield found
            before = found.answered
            await until(lambda: not behaved or found.answered > before + 3)
            stopping.set()
        _, peak = tracemalloc.get_traced_memory()
        assert peak < MEMORY_MAX, f"{peak} bytes"
    finally:
        tracemalloc.stop()
        for attacker in found.attackers:
            attacker.writer.transport.abort()
            await attacker.close()
        await front.stop(0.2)


async def flooded(found: Scene, flood: Callable[[WireClient, int], None], *, count: int) -> int | None:
    """Sends `count` pieces of a flood, some at a time, until the server has had enough. The code it gave."""
    client = await found.attacker()
    goaway = asyncio.get_running_loop().create_task(client.goaway())
    for number in range(count):
        flood(client, number)
        if number % 100 == 99:
            try:
                await client.writer.drain()
            except ConnectionError:
                break
            await asyncio.sleep(0)
            if goaway.done():
                break
    code = await goaway
    await client.close()
    return code


async def test_rapid_reset_cve_2023_44487() -> None:
    """Streams that are opened and reset at once: the calls in flight stay few, and the client is cut off."""

    def flood(client: WireClient, _: int) -> None:
        stream_id = client.call(kv_pb2.PutRequest(key=b"k", value=b"v").SerializeToString(), request_fields(PUT))
        client.send(frames.rst_stream(stream_id, 8))

    async with scene() as found:
        assert ENHANCE_YOUR_CALM == await flooded(found, flood, count=50_000)
        assert found.front.in_flight <= 1


async def test_reset_flood_cve_2019_9514() -> None:
    """Broken requests that make the server reset streams in the client's place cost the client the same."""

    def flood(client: WireClient, _: int) -> None:
        client.open(((b":method", b"POST"), (b"Upper", b"case")))

    async with scene() as found:
        assert ENHANCE_YOUR_CALM == await flooded(found, flood, count=50_000)


async def test_made_you_reset_cve_2025_8671() -> None:
    """Valid requests, and then a frame that forces the server to reset them."""

    def flood(client: WireClient, _: int) -> None:
        client.send(frames.window_update(client.open(), 0))

    async with scene() as found:
        assert ENHANCE_YOUR_CALM == await flooded(found, flood, count=50_000)


WATCH = b"/grpc.health.v1.Health/Watch"
ENDS = {
    "the client resets it": frames.rst_stream(1, 8),
    "the server must reset it": frames.window_update(1, 0),
    "the connection ends": frames.frame(frames.PING, 0, 0, b""),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("path", [PUT, WATCH, b"/a/Missing"], ids=["unary", "stream", "unknown"])
async def test_a_call_that_begins_and_ends_in_one_piece_is_none(path: bytes, end: str) -> None:
    """No handler hears of it, nothing is written on its stream but a reset, and nothing behind the last GOAWAY."""
    bugs: list[Exception] = []
    node = MemoryNode(clock=SystemClock())
    handlers = handlers_of(node.gateway(SETTINGS), MemoryAdministration())
    front = FastFront(handlers, front_config(), node.clock, on_bug=bugs.append)
    await front.start()
    client = await WireClient.connect(front.port)
    block = client.encoder.encode(request_fields(path))
    call = frames.headers(1, block, end_stream=False, frame_bytes_max=16_384)
    call += frames.frame(frames.DATA, frames.END_STREAM, 1, framed(b""))
    client.send(call + ENDS[end] + frames.frame(frames.PING, 0, 0, b"finished"))
    kinds = []
    while (found := await client.frame()) is not None:
        if found.stream_id:
            kinds.append(found.kind)
        if found.kind == frames.PING:
            break
    assert [frames.RST_STREAM] * (end == "the server must reset it") == kinds
    assert ([], 0) == (bugs, front.in_flight)
    await client.close()
    await front.stop(0.2)


async def test_continuation_flood_cve_2024_27316() -> None:
    """A header block that never ends."""
    async with scene() as found:
        client = await found.attacker()
        client.send(frames.frame(frames.HEADERS, 0, 1, b"\x82"))
        for _ in range(100):
            client.send(frames.frame(frames.CONTINUATION, 0, 1, b"\x00\x01a" + b"\x7f\x81\x1f" + bytes(4_000)))
        assert ENHANCE_YOUR_CALM == await client.goaway()


async def test_empty_continuation_flood() -> None:
    """The same without any bytes: the frames are counted, too."""
    async with scene() as found:
        client = await found.attacker()
        client.send(frames.frame(frames.HEADERS, 0, 1, b"\x82"))
        client.send(frames.frame(frames.CONTINUATION, 0, 1, b"") * 1_000)
        assert ENHANCE_YOUR_CALM == await client.goaway()


async def test_hpack_bomb_cve_2016_6581() -> None:
    """One large table entry, referred to thousands of times: the list is refused at its limit, and never built."""
    async with scene() as found:
        client = await found.attacker()
        block = client.encoder.encode(request_fields()) + b"\x40\x01a\x7f\xa1\x1e" + b"b" * 4_000
        client.send(frames.headers(1, block + b"\xbe" * 12_000, end_stream=True, frame_bytes_max=16_384))
        fields, _ = await client.answer(1)
        assert ("8", "200") == (fields["grpc-status"], fields[":status"])
        # The connection, whose tables are still in step, goes on.
        client.next_id = 3
        assert await client.round_trip()


async def test_zero_length_header_leak_cve_2019_9516() -> None:
    """Fields without names or values count 32 bytes each, and are refused for what they are."""
    async with scene() as found:
        client = await found.attacker()
        client.send(frames.headers(1, b"\x00\x00\x00" * 5_000, end_stream=True, frame_bytes_max=16_384))
        fields, _ = await client.answer(1)
        assert "8" == fields["grpc-status"]
        assert found.front.in_flight <= 1


async def test_ping_flood_cve_2019_9512() -> None:
    """Pings without work."""

    def flood(client: WireClient, _: int) -> None:
        client.send(frames.frame(frames.PING, 0, 0, b"12345678"))

    async with scene() as found:
        assert ENHANCE_YOUR_CALM == await flooded(found, flood, count=100_000)


async def test_settings_flood_cve_2019_9515() -> None:
    """Settings again and again."""

    def flood(client: WireClient, number: int) -> None:
        client.send(frames.settings({frames.INITIAL_WINDOW_SIZE: number}))

    async with scene() as found:
        assert ENHANCE_YOUR_CALM == await flooded(found, flood, count=10_000)


async def test_one_settings_frame_that_says_the_same_a_thousand_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of all streams are moved once per frame, whatever is in it."""
    moved: list[int] = []
    move = Sender.on_initial_window

    def counted(self: Sender, size: int, streams: list[Stream]) -> None:
        moved.append(size)
        move(self, size, streams)

    monkeypatch.setattr(Sender, "on_initial_window", counted)
    async with scene() as found:
        client = await found.attacker()
        for _ in range(900):
            client.open()
        client.send(
            frames.frame(frames.SETTINGS, 0, 0, (b"\x00\x04\x00\x00\x10\x00" + b"\x00\x04\x00\x00\x20\x00") * 1_300)
        )
        assert await client.round_trip()
        assert [0x2000] == moved
        await client.close()


async def test_priority_flood_cve_2019_9513() -> None:
    """Priorities, which mean nothing any more."""

    def flood(client: WireClient, number: int) -> None:
        client.send(frames.frame(frames.PRIORITY, 0, 2 * number + 1, b"\x00\x00\x00\x00\x10"))

    async with scene() as found:
        assert ENHANCE_YOUR_CALM == await flooded(found, flood, count=100_000)


async def test_empty_frames_flood_cve_2019_9518() -> None:
    """DATA without data, and without an end."""

    def flood(client: WireClient, number: int) -> None:
        if not number:
            client.open()
        client.send(frames.frame(frames.DATA, 0, 1, b""))

    async with scene() as found:
        assert ENHANCE_YOUR_CALM == await flooded(found, flood, count=100_000)


async def test_unknown_frames_flood() -> None:
    """Frames of kinds that do not exist are read past, but not for ever."""

    def flood(client: WireClient, _: int) -> None:
        client.send(frames.frame(0xEE, 0, 0, b""))

    async with scene() as found:
        assert ENHANCE_YOUR_CALM == await flooded(found, flood, count=100_000)


async def test_data_dribble_cve_2019_9511() -> None:
    """A window that is opened byte by byte: the answer leaves byte by byte, until the client is told to stop."""
    async with scene() as found:
        client = await found.attacker({frames.INITIAL_WINDOW_SIZE: 0})
        for _ in range(500):
            client.call()
        goaway = asyncio.get_running_loop().create_task(client.goaway())
        for number in range(100_000):
            client.send(frames.window_update(2 * (number % 500) + 1, 1))
            if number % 500 == 0:
                await asyncio.sleep(0)
                if goaway.done():
                    break
        assert ENHANCE_YOUR_CALM == await goaway
        await client.close()


async def test_internal_data_buffering_cve_2019_9517() -> None:
    """A client that opens all windows and reads nothing from its socket: its answers are dropped, and it with them."""
    async with scene(buffered_bytes_max=4 << 20) as found:
        # A receive buffer that may grow takes all 18 MB of answers on some machines: then the server holds none.
        client = await found.attacker({frames.INITIAL_WINDOW_SIZE: (1 << 31) - 1}, receive_buffer=64 << 10)
        client.send(frames.window_update(0, (1 << 31) - 1 - 65_535))
        put = kv_pb2.PutRequest(key=b"k", value=bytes(20 << 10)).SerializeToString()
        stream_id = client.open(request_fields(PUT))
        send_data(client, stream_id, framed(put))
        await client.answer(stream_id)
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        # All are asked before the first is answered: once answers wait to be written, the server reads no more of this client.
        found.node.hold = True
        for _ in range(900):
            client.call(kv_pb2.GetRequest(key=b"k").SerializeToString(), request_fields(b"/raftcache.v1.KvService/Get"))
        await until(lambda: len(found.node.held) >= 900)
        found.node.hold = False
        found.node.release()
        await until(lambda: len(found.front._connections) == 1)
        assert found.front._held <= 4 << 20


def send_data(client: WireClient, stream_id: int, data: bytes, *, end: bool = True) -> None:
    """DATA in frames of the largest size."""
    for position in range(0, len(data), 16_384):
        piece = data[position : position + 16_384]
        last = position + len(piece) == len(data)
        client.send(frames.frame(frames.DATA, frames.END_STREAM if last and end else 0, stream_id, piece))


async def test_the_connection_that_holds_most_goes_when_all_hold_too_much() -> None:
    """Requests that never become complete, on many connections: the largest go, until the rest fits."""
    async with scene(buffered_bytes_max=1 << 20) as found:
        clients = [await found.attacker() for _ in range(8)]
        for number, client in reversed(list(enumerate(clients))):
            for _ in range(4 + number):
                send_data(client, client.open(request_fields(PUT)), b"\x00\x00\x07\x00\x00" + bytes(50_000), end=False)
            # The server has it all before the next one sends: which connection holds most does not hang on the order of reads.
            await client.round_trip()
        assert ENHANCE_YOUR_CALM == await clients[-1].goaway()
        assert await clients[0].round_trip()
        assert found.front._held <= 1 << 20
        for client in clients:
            await client.close()


async def test_too_many_streams_are_refused() -> None:
    """Beyond SETTINGS_MAX_CONCURRENT_STREAMS a stream is refused, with no effect; the others stay."""
    async with scene(streams_per_connection_max=10) as found:
        client = await found.attacker()
        ids = [client.open() for _ in range(11)]
        assert REFUSED_STREAM == await client.reset_code(ids[-1])
        assert await client.round_trip()
        await client.close()


async def test_slow_uploads_expire(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that does not arrive is given up, and its stream with it."""
    monkeypatch.setattr("raftcache.edge.fast_calls.REQUEST_NS", 1)
    async with scene() as found:
        client = await found.attacker()
        stream_id = client.open(request_fields(PUT))
        fields, _ = await client.answer(stream_id)
        assert "4" == fields["grpc-status"]
        await client.close()


async def test_a_silent_connection_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who connects and says nothing, or does not answer pings, is cut off."""
    async with scene(behaved=False) as found:
        monkeypatch.setattr(fast_connection, "SETTLE_NS", 1)
        reader, writer = await asyncio.open_connection("127.0.0.1", found.front.port)
        async with asyncio.timeout(10):
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await reader.readexactly(1 << 20)
        writer.close()
        await writer.wait_closed()
        monkeypatch.setattr(fast_connection, "KEEPALIVE_TIME_MS", 0)
        client = await found.attacker()
        assert (await client.until(frames.PING)) is not None
        monkeypatch.setattr(fast_connection, "KEEPALIVE_TIMEOUT_MS", 0)
        assert await client.until(frames.GOAWAY) is None
        monkeypatch.undo()


VIOLATIONS = {
    "not HTTP/2": (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", PROTOCOL_ERROR),
    "no SETTINGS first": (frames.PREFACE + frames.frame(frames.PING, 0, 0, bytes(8)), PROTOCOL_ERROR),
}


@pytest.mark.parametrize("what", VIOLATIONS)
async def test_a_bad_beginning(what: str) -> None:
    """RFC 9113 §3.4."""
    data, code = VIOLATIONS[what]
    async with scene() as found:
        reader, writer = await asyncio.open_connection("127.0.0.1", found.front.port)
        client = WireClient(reader, writer)
        found.attackers.append(client)
        client.send(data)
        assert code == await client.goaway()
        await client.close()


F = frames.frame
HEAD = frames.headers(1, b"\x83\x86\x84", end_stream=False, frame_bytes_max=16_384)
CONNECTION_ERRORS = {
    "4.2 a frame beyond the limit": (F(frames.DATA, 0, 1, bytes(16_385)), FRAME_SIZE_ERROR),
    "4.3 an undecodable block": (F(frames.HEADERS, 5, 1, b"\xff\xff\xff\xff\xff\xff"), COMPRESSION_ERROR),
    "4.3 index 0": (F(frames.HEADERS, 5, 1, b"\x80"), COMPRESSION_ERROR),
    "5.1 DATA on an idle stream": (F(frames.DATA, 0, 1, b"x"), PROTOCOL_ERROR),
    "5.1 RST_STREAM on an idle stream": (F(frames.RST_STREAM, 0, 1, bytes(4)), PROTOCOL_ERROR),
    "5.1 WINDOW_UPDATE on an idle stream": (F(frames.WINDOW_UPDATE, 0, 1, b"\0\0\0\1"), PROTOCOL_ERROR),
    "5.1.1 an even stream id": (F(frames.HEADERS, 5, 2, b"\x83\x86\x84"), PROTOCOL_ERROR),
    "6.1 DATA on stream 0": (F(frames.DATA, 0, 0, b"x"), PROTOCOL_ERROR),
    "6.1 more padding than payload": (HEAD + F(frames.DATA, 8, 1, b"\x05abc"), PROTOCOL_ERROR),
    "6.2 HEADERS on stream 0": (F(frames.HEADERS, 5, 0, b"\x83\x86\x84"), PROTOCOL_ERROR),
    "6.2 a frame inside of a block": (
        F(frames.HEADERS, 0, 1, b"\x83") + F(frames.PING, 0, 0, bytes(8)),
        PROTOCOL_ERROR,
    ),
    "6.3 PRIORITY on stream 0": (F(frames.PRIORITY, 0, 0, bytes(5)), PROTOCOL_ERROR),
    "6.4 RST_STREAM of three bytes": (HEAD + F(frames.RST_STREAM, 0, 1, bytes(3)), FRAME_SIZE_ERROR),
    "6.5 SETTINGS on a stream": (F(frames.SETTINGS, 0, 1, b""), PROTOCOL_ERROR),
    "6.5 SETTINGS of five bytes": (F(frames.SETTINGS, 0, 0, bytes(5)), FRAME_SIZE_ERROR),
    "6.5 an acknowledgement with settings": (F(frames.SETTINGS, 1, 0, bytes(6)), FRAME_SIZE_ERROR),
    "6.5.2 ENABLE_PUSH of 2": (frames.settings({2: 2}), PROTOCOL_ERROR),
    "6.5.2 a window of 2**31": (frames.settings({4: 1 << 31}), FLOW_CONTROL_ERROR),
    "6.5.2 a frame size of 1": (frames.settings({5: 1}), PROTOCOL_ERROR),
    "6.6 PUSH_PROMISE from a client": (F(frames.PUSH_PROMISE, 4, 1, bytes(8)), PROTOCOL_ERROR),
    "6.7 PING on a stream": (F(frames.PING, 0, 1, bytes(8)), PROTOCOL_ERROR),
    "6.7 PING of seven bytes": (F(frames.PING, 0, 0, bytes(7)), FRAME_SIZE_ERROR),
    "6.8 GOAWAY on a stream": (F(frames.GOAWAY, 0, 1, bytes(8)), PROTOCOL_ERROR),
    "6.9 WINDOW_UPDATE by nothing": (F(frames.WINDOW_UPDATE, 0, 0, bytes(4)), PROTOCOL_ERROR),
    "6.9 WINDOW_UPDATE of three bytes": (F(frames.WINDOW_UPDATE, 0, 0, bytes(3)), FRAME_SIZE_ERROR),
    "6.9.1 a window beyond 2**31-1": (frames.window_update(0, (1 << 31) - 1) * 2, FLOW_CONTROL_ERROR),
    "6.10 CONTINUATION alone": (HEAD + F(frames.CONTINUATION, 4, 1, b""), PROTOCOL_ERROR),
}
"""RFC 9113, by section."""


@pytest.mark.parametrize("what", CONNECTION_ERRORS)
async def test_what_ends_a_connection(what: str) -> None:
    """The GOAWAY has the code of the RFC, and other connections do not notice."""
    data, code = CONNECTION_ERRORS[what]
    async with scene() as found:
        client = await found.attacker()
        client.send(data)
        assert code == await client.goaway()
        await client.close()


BLOCK = b"\x83\x86\x84"  # :method POST, :scheme http, :path /
STREAM_ERRORS = {
    "8.2 an upper-case name": BLOCK + b"\x00\x01A\x01b",
    "8.2.1 a line break in a value": BLOCK + b"\x00\x01a\x03b\r\n",
    "8.2.2 a connection's field": BLOCK + b"\x00\x0aconnection\x01b",
    "8.2.2 te other than trailers": BLOCK + b"\x00\x02te\x04gzip",
    "8.3 a pseudo-header behind a field": BLOCK + b"\x00\x01a\x01b" + b"\x84",
    "8.3 an unknown pseudo-header": BLOCK + b"\x00\x02:a\x01b",
    "8.3 a response's pseudo-header": BLOCK + b"\x88",
    "8.3.1 a repeated pseudo-header": BLOCK + b"\x84",
    "8.3.1 no path": b"\x83\x86",
    "8.3.1 an empty path": b"\x83\x86\x04\x00",
}


@pytest.mark.parametrize("what", STREAM_ERRORS)
async def test_what_ends_a_stream(what: str) -> None:
    """A malformed request is a stream error PROTOCOL_ERROR; the connection goes on."""
    async with scene() as found:
        client = await found.attacker()
        client.send(frames.headers(1, STREAM_ERRORS[what], end_stream=True, frame_bytes_max=16_384))
        assert PROTOCOL_ERROR == await client.reset_code(1)
        assert await client.round_trip()
        await client.close()
