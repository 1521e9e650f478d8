"""What gRPC asks of a server, over both fronts, by clients of several makes. `test_fronts` has the rest of it."""

import asyncio
import shutil
import subprocess
from pathlib import Path

import grpc
import pytest

from raftcache.clock import SystemClock
from raftcache.edge import fast_connection
from raftcache.edge.fast_front import FastFront
from raftcache.gateway.handlers import handlers_of
from raftcache.v1 import kv_pb2, kv_pb2_grpc
from raftcache.wire import http2_frames as frames
from raftcache.wire.grpc_wire import framed
from tests.edge.conftest import SETTINGS, Bench, front_config
from tests.edge.test_fronts import until
from tests.edge.wire_client import PUT, SHARD_MAP, WireClient, request_fields
from tests.gateway.memory_node import MemoryAdministration, MemoryNode

H2LOAD, CURL = shutil.which("h2load"), shutil.which("curl")
GET = "/raftcache.v1.KvService/Get"


async def command(*arguments: str, data: bytes = b"") -> tuple[bytes, bytes]:
    """Runs a program to its end; what it wrote."""
    process = await asyncio.create_subprocess_exec(
        *arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    async with asyncio.timeout(60):
        return await process.communicate(data)


async def test_compressed_requests_are_read(bench: Bench) -> None:
    """gzip, on single calls and on streams."""
    value = bytes(50_000)
    await bench.kv.Put(kv_pb2.PutRequest(key=b"k", value=value), compression=grpc.Compression.Gzip)
    assert value == (await bench.kv.Get(kv_pb2.GetRequest(key=b"k"), compression=grpc.Compression.Gzip)).entry.value
    get = kv_pb2.Operation(get=kv_pb2.GetRequest(key=b"k"))
    call = bench.kv.Pipeline(
        iter([kv_pb2.PipelineRequest(request_id=1, operations=[get])]), compression=grpc.Compression.Gzip
    )
    assert [value] == [response.results[0].get.entry.value async for response in call]


async def test_a_stream_that_nobody_serves_ends_without_a_message(bench: Bench) -> None:
    """A client that opens a stream to an unknown method and waits is told, though it sends nothing (RFC 9113 §8.1)."""
    method: grpc.aio.StreamStreamMultiCallable[bytes, bytes]
    method = bench.channel.stream_stream("/raftcache.v1.KvService/Nonsense")
    async with asyncio.timeout(10):
        assert grpc.StatusCode.UNIMPLEMENTED is await method().code()


async def test_a_refused_stream_is_to_send_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 9113 §8.1: behind the answer, RST_STREAM with NO_ERROR; a call that was complete gets none. No look at deadlines helps."""
    monkeypatch.setattr("raftcache.edge.fast_front.LOOK_SECONDS", 3_600.0)
    node = MemoryNode(clock=SystemClock())
    front = FastFront(handlers_of(node.gateway(SETTINGS), MemoryAdministration()), front_config(), node.clock)
    await front.start()
    client = await WireClient.connect(front.port)
    missing = request_fields(b"/raftcache.v1.KvService/Nonsense")
    stream_id = client.open(missing)
    fields, _ = await client.answer(stream_id)
    assert "12" == fields["grpc-status"]
    assert 0 == await client.reset_code(stream_id)
    whole = client.call(fields=missing)
    fields, _ = await client.answer(whole)
    assert "12" == fields["grpc-status"]
    client.send(frames.frame(frames.PING, 0, 0, b"the next"))
    answer = await client.frame()
    assert answer is not None
    assert frames.PING == answer.kind
    await client.close()
    await front.stop(0.2)


async def test_compressed_requests_that_are_damaged_leave_nothing_behind(bench: Bench) -> None:
    """They fail, and what they held is given back."""
    client = await WireClient.connect(bench.front.port)
    for _ in range(3):
        stream_id = client.open(request_fields(SHARD_MAP, (b"grpc-encoding", b"gzip")))
        client.send(frames.frame(frames.DATA, frames.END_STREAM, stream_id, b"\x01" + framed(b"no gzip")[1:]))
        fields, _ = await client.answer(stream_id)
        assert "0" != fields["grpc-status"]
    if isinstance(bench.front, FastFront):
        assert (0, 0) == (bench.front._held, bench.front.in_flight)
    await client.close()


@pytest.mark.parametrize("padding", [0, 10, 255])
@pytest.mark.parametrize("first", [1, 5_000, 16_000, 30_000, 60_000, 65_535])
@pytest.mark.parametrize("size", [66_000, 80_000, 105_305, 131_000, 250_000])
async def test_a_message_above_the_window_is_let_in_wherever_it_is_cut(size: int, first: int, padding: int) -> None:
    """RFC 9113 §6.9: a sender that has used its window up hears of more, whatever the server had read of the message before, and
    whether or not it pads (§6.1), which counts against the window."""
    front = await fast_front()
    client = await WireClient.connect(front.port)
    message = framed(kv_pb2.PutRequest(key=b"k", value=bytes(size)).SerializeToString())
    stream_id = client.open(request_fields(PUT))
    sent, window = 0, frames.WINDOW_DEFAULT
    settings = await client.until(frames.SETTINGS)
    assert settings is not None
    for identifier, value in frames.settings_of(settings.payload):
        if identifier == frames.INITIAL_WINDOW_SIZE:
            window = value

    def send(limit: int) -> None:
        nonlocal sent, window
        while (count := min(limit, window, len(message) - sent, 16_000)) > 0:
            padded = 0 < padding < window - 1
            if padded:
                count = min(count, window - padding - 1)
            piece = message[sent : sent + count]
            sent, limit = sent + count, limit - count
            flags = frames.END_STREAM if sent == len(message) else 0
            if padded:
                flags, piece = flags | frames.PADDED, bytes([padding]) + piece + bytes(padding)
            window -= len(piece)
            client.send(frames.frame(frames.DATA, flags, stream_id, piece))

    send(first)
    client.send(frames.frame(frames.PING, 0, 0, b"read it!"))
    while (found := await client.frame()) is not None and found.kind != frames.PING:
        if found.kind == frames.WINDOW_UPDATE and found.stream_id == stream_id:
            window += int.from_bytes(found.payload, "big")
    send(size)
    while sent < len(message):
        more = await client.until(frames.WINDOW_UPDATE, stream_id)
        assert more is not None, f"{len(message) - sent} bytes are not let in"
        window += int.from_bytes(more.payload, "big")
        send(size)
    fields, _ = await client.answer(stream_id)
    assert "0" == fields["grpc-status"]
    await client.close()
    await front.stop(0.2)


async def test_large_messages_are_let_in_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that would fit does not overtake one that waits: where many come, the others would wait until their deadline."""
    monkeypatch.setattr(fast_connection, "PROMISED_BYTES_MAX", 300_000)
    front = await fast_front()
    client = await WireClient.connect(front.port)
    sizes = {client.open(request_fields(PUT)): size for size in (190_000, 190_000, 80_000)}
    messages = {
        stream_id: framed(kv_pb2.PutRequest(key=b"k", value=bytes(size)).SerializeToString())
        for stream_id, size in sizes.items()
    }
    for stream_id, message in messages.items():
        client.send(frames.frame(frames.DATA, 0, stream_id, message[:100]))
    first, second, third = messages
    assert await client.until(frames.WINDOW_UPDATE, first) is not None
    for at in range(100, len(messages[first]), 16_384):
        piece = messages[first][at : at + 16_384]
        flags = frames.END_STREAM if at + len(piece) == len(messages[first]) else 0
        client.send(frames.frame(frames.DATA, flags, first, piece))
    let_in: list[int] = []
    while len(let_in) < 2:
        found = await client.until(frames.WINDOW_UPDATE)
        assert found is not None
        if found.stream_id:
            let_in.append(found.stream_id)
    assert [second, third] == let_in
    await client.close()
    await front.stop(0)


async def test_large_messages_both_ways_at_once(bench: Bench) -> None:
    """Many messages above every window, on one connection: they take turns, and all arrive."""
    values = {b"k%d" % number: bytes([number]) * (200 << 10) for number in range(40)}

    async def put_and_get(key: bytes) -> bytes:
        await bench.kv.Put(kv_pb2.PutRequest(key=key, value=values[key]))
        found: bytes = (await bench.kv.Get(kv_pb2.GetRequest(key=key))).entry.value
        return found

    async with asyncio.TaskGroup() as tasks:
        found = {key: tasks.create_task(put_and_get(key)) for key in values}
    assert values == {key: task.result() for key, task in found.items()}
    if isinstance(bench.front, FastFront):
        assert 0 == bench.front._held


async def test_a_deadline_ends_a_call_that_nobody_answers(bench: Bench) -> None:
    """The client gets DEADLINE_EXCEEDED, and the call counts no longer."""
    bench.node.hold = True
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await bench.kv.Get(kv_pb2.GetRequest(key=b"k"), timeout=0.05)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: bench.front.in_flight == 0)


async def test_the_blocking_client_of_grpcio(bench: Bench) -> None:
    """Calls and a stream from a thread, on a connection of their own."""

    def blocking() -> tuple[bytes, list[int]]:
        with grpc.insecure_channel(f"127.0.0.1:{bench.front.port}") as channel:
            kv = kv_pb2_grpc.KvServiceStub(channel)
            kv.Put(kv_pb2.PutRequest(key=b"k", value=b"v"), timeout=10)
            answers = kv.Pipeline(iter([kv_pb2.PipelineRequest(request_id=n) for n in range(20)]), timeout=10)
            numbers = [response.request_id for response in answers]
            value: bytes = kv.Get(kv_pb2.GetRequest(key=b"k"), timeout=10).entry.value
            return value, numbers

    assert (b"v", list(range(20))) == await asyncio.to_thread(blocking)


@pytest.mark.skipif(H2LOAD is None, reason="no h2load here")
async def test_h2load_finds_no_error(bench: Bench, tmp_path: Path) -> None:
    """2,000 requests on 8 connections: all succeed, and each reached the node once."""
    assert H2LOAD
    (tmp_path / "body").write_bytes(framed(kv_pb2.GetRequest(key=b"k").SerializeToString()))
    arguments = (
        "-n2000",
        "-c8",
        "-m32",
        "-t1",
        "-d",
        str(tmp_path / "body"),
        "-Hcontent-type: application/grpc",
        "-Hte: trailers",
    )
    out, _ = await command(H2LOAD, *arguments, f"http://127.0.0.1:{bench.front.port}{GET}")
    assert b"2000 succeeded, 0 failed, 0 errored" in out
    assert 2_000 == len(bench.node.requests)


@pytest.mark.skipif(CURL is None, reason="no curl here")
async def test_curl_sees_status_and_trailers(bench: Bench) -> None:
    """A call by hand; what is no gRPC is refused with an HTTP status."""
    assert CURL
    url = f"http://127.0.0.1:{bench.front.port}{GET}"
    options = (CURL, "-s", "-v", "--http2-prior-knowledge", "-o", "/dev/null")
    body = framed(kv_pb2.GetRequest(key=b"k").SerializeToString())
    _, said = await command(
        *options, "-Hcontent-type: application/grpc", "-Hte: trailers", "--data-binary", "@-", url, data=body
    )
    assert b"< HTTP/2 200" in said
    assert b"< grpc-status: 0" in said
    if isinstance(bench.front, FastFront):  # the other one resets such a stream
        _, said = await command(*options, url)
        assert b"< HTTP/2 415" in said


# --- What only the fast front has, or can be asked about ---------------------------------------------------------------


async def fast_front(**changes: object) -> FastFront:
    """A front that has started."""
    node = MemoryNode(clock=SystemClock())
    front = FastFront(handlers_of(node.gateway(SETTINGS), MemoryAdministration()), front_config(**changes), node.clock)
    await front.start()
    return front


async def test_old_connections_end_and_no_call_fails() -> None:
    """At its age a connection is asked to end; the client takes a new one, and notices nothing."""
    front = await fast_front(connection_age_max_ms=1)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{front.port}") as channel:
        kv: kv_pb2_grpc.KvServiceAsyncStub = kv_pb2_grpc.KvServiceStub(channel)
        await kv.Put(kv_pb2.PutRequest(key=b"k", value=b"v"))
        first = next(iter(front._connections))
        async with asyncio.timeout(10):
            while first in front._connections:
                await kv.Get(kv_pb2.GetRequest(key=b"k"))
        await kv.Get(kv_pb2.GetRequest(key=b"k"))
    await front.stop(1)


async def test_a_farewell_is_said_twice() -> None:
    """RFC 9113 §6.8: first with the highest id, so that calls under way are served, then with the last that was."""
    front = await fast_front()
    client = await WireClient.connect(front.port)
    await client.answer(client.call())
    stopping = asyncio.get_running_loop().create_task(front.stop(5))
    first = await client.until(frames.GOAWAY)
    ping = await client.until(frames.PING)
    assert first is not None
    assert ping is not None
    assert 0x7FFF_FFFF == int.from_bytes(first.payload[:4], "big")
    late = client.call()
    client.send(frames.frame(frames.PING, frames.ACK, 0, ping.payload))
    last_ids: list[int] = []
    fields: dict[str, str] = {}
    while (found := await client.frame()) is not None:
        if found.kind == frames.GOAWAY:
            last_ids.append(int.from_bytes(found.payload[:4], "big"))
        elif found.kind == frames.HEADERS:
            fields |= {str(name): str(value) for name, value in client.decoder.decode(found.payload)}
    assert ([late], "0") == (last_ids, fields["grpc-status"])
    await stopping
    await client.close()


@pytest.mark.parametrize("pause", [0, 2.5])
async def test_last_answers_reach_a_client_that_reads_slowly(pause: float) -> None:
    """A client goes on talking while it reads (windows, pings), or after a pause. Were our socket closed by then, TCP would drop what
    it has not read."""
    size, gets = 200 << 10, 30
    node = MemoryNode(clock=SystemClock())
    front = FastFront(handlers_of(node.gateway(SETTINGS), MemoryAdministration()), front_config(), node.clock)
    await front.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{front.port}") as channel:
        await kv_pb2_grpc.KvServiceStub(channel).Put(kv_pb2.PutRequest(key=b"k", value=bytes(size)))
    client = await WireClient.connect(
        front.port, {frames.INITIAL_WINDOW_SIZE: 1 << 24}, limit=1 << 14, receive_buffer=32 << 10
    )
    client.send(frames.window_update(0, 1 << 24))
    message = kv_pb2.GetRequest(key=b"k").SerializeToString()
    for _ in range(gets):
        client.call(message, request_fields(GET.encode()))
    await until(lambda: len(node.requests) == 1 + gets)
    stopping = asyncio.get_running_loop().create_task(front.stop(20))
    await asyncio.sleep(pause)
    data, statuses = 0, list[str]()
    while (found := await client.frame()) is not None:
        await asyncio.sleep(0.002)
        if found.kind == frames.PING:
            client.send(frames.frame(frames.PING, frames.ACK, 0, found.payload))
        elif found.kind == frames.DATA:
            data += len(found.payload)
            client.send(frames.window_update(0, len(found.payload)))
        elif found.kind == frames.HEADERS:
            statuses += [str(value) for name, value in client.decoder.decode(found.payload) if name == "grpc-status"]
    assert ["0"] * gets == statuses, f"{data} bytes of {gets * size} arrived"
    await client.close()
    await stopping


async def test_an_idle_client_may_ask_whether_we_are_there() -> None:
    """RFC 9113 §6.7, and what gRPC calls keepalive: pings without calls are answered with what they brought."""
    front = await fast_front()
    client = await WireClient.connect(front.port)
    for number in range(50):
        client.send(frames.frame(frames.PING, 0, 0, b"%08d" % number))
        answer = await client.until(frames.PING)
        assert answer is not None, f"hung up on after {number} pings"
        assert (frames.ACK, b"%08d" % number) == (answer.flags, answer.payload)
    fields, _ = await client.answer(client.call())
    assert "0" == fields["grpc-status"]
    await client.close()
    await front.stop(0)


@pytest.mark.parametrize(
    ("more", "status"),
    [((b"grpc-encoding", b"snappy"), "12"), ((b"grpc-timeout", b"1x"), "13"), ((b"grpc-timeout", b"0n"), "4")],
)
async def test_what_a_head_may_be_refused_for(more: tuple[bytes, bytes], status: str) -> None:
    """An unknown compression, a timeout that is none, one that has passed: each has its status."""
    front = await fast_front()
    client = await WireClient.connect(front.port)
    fields, _ = await client.answer(client.call(fields=request_fields(SHARD_MAP, more)))
    assert status == fields["grpc-status"]
    assert "identity,gzip" == fields["grpc-accept-encoding"]
    await client.close()
    await front.stop(0)


@pytest.mark.parametrize("data", [b"", framed(b"") * 2, framed(b"abc")[:-1]])
async def test_a_unary_request_is_one_message(data: bytes) -> None:
    """None, two, or half of one: INTERNAL, and the handler is not asked."""
    front = await fast_front()
    client = await WireClient.connect(front.port)
    stream_id = client.open()
    client.send(frames.frame(frames.DATA, frames.END_STREAM, stream_id, data))
    fields, _ = await client.answer(stream_id)
    assert "13" == fields["grpc-status"]
    await client.close()
    await front.stop(0)
