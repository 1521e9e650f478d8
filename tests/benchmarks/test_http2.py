"""The loader's HTTP/2: frame by frame against a hand-written server, and as a whole against grpcio's."""

import itertools
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from benchmarks.http2 import (
    ACK,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    STATUS_NONE,
    WINDOW_DEFAULT,
    WINDOW_UPDATE,
    Connection,
    ProtocolError,
    frame,
)
from benchmarks.loader import run_stream, run_unary
from benchmarks.messages import framed

OK_HEADERS = bytes.fromhex("880f108b1d75d0620d263d4c4d6564")
STATUS_0 = bytes.fromhex("00889acac8b21234da8f0130")
STATUS_14 = bytes.fromhex("00889acac8b21234da8f023134")


def sent(connection: Connection) -> list[tuple[int, int, int, bytes]]:
    """The frames that are to leave: kind, flags, stream, payload."""
    data = connection.take_outgoing().removeprefix(PREFACE)
    found = []
    while data:
        size, kind, flags = int.from_bytes(data[:3], "big"), data[3], data[4]
        found.append((kind, flags, int.from_bytes(data[5:9], "big"), data[9 : 9 + size]))
        data = data[9 + size :]
    return found


@pytest.fixture
def connection() -> Connection:
    """One whose first frames have left."""
    made = Connection("127.0.0.1:1", "/a/b")
    assert [SETTINGS, WINDOW_UPDATE] == [kind for kind, _, _, _ in sent(made)]
    return made


def test_a_unary_call_is_a_header_block_and_a_frame_of_data(connection: Connection) -> None:
    """Streams are odd numbers; the second call's header block is the short one."""
    assert (1, 3) == (connection.open(b"abc"), connection.open(b"de"))
    kinds = [(kind, flags, stream, len(payload)) for kind, flags, stream, payload in sent(connection)]
    first, second = kinds[0][3], kinds[2][3]
    assert second < first
    assert [
        (HEADERS, END_HEADERS, 1, first),
        (DATA, END_STREAM, 1, 3),
        (HEADERS, END_HEADERS, 3, second),
        (DATA, END_STREAM, 3, 2),
    ] == kinds


def answer(stream: int, message: bytes, status: bytes = STATUS_0) -> bytes:
    """What a server says to one call."""
    return (
        frame(HEADERS, END_HEADERS, stream, OK_HEADERS)
        + frame(DATA, 0, stream, framed(message))
        + frame(HEADERS, END_HEADERS | END_STREAM, stream, status)
    )


@pytest.mark.parametrize("step", [1, 2, 7, 1000])
def test_answers_are_found_however_the_bytes_are_cut(connection: Connection, step: int) -> None:
    """A message and the status of each call, in the order of arrival."""
    connection.open(b"")
    connection.open(b"")
    data = answer(3, b"three") + answer(1, b"one")
    events = [event for start in range(0, len(data), step) for event in connection.receive(data[start : start + step])]
    assert [(3, b"three", 0), (3, None, 0), (1, b"one", 0), (1, None, 0)] == events


def test_a_refused_call_has_its_status(connection: Connection) -> None:
    """Trailers only: no data at all. h2load would call this a success."""
    stream = connection.open(b"")
    refusal = frame(HEADERS, END_HEADERS | END_STREAM, stream, OK_HEADERS + STATUS_14)
    assert [(stream, None, 14)] == connection.receive(refusal)


@pytest.mark.parametrize(
    "end",
    [frame(RST_STREAM, 0, 1, b"\0\0\0\2"), frame(HEADERS, END_HEADERS | END_STREAM, 1, OK_HEADERS)],
)
def test_an_end_without_a_status_is_no_success(connection: Connection, end: bytes) -> None:
    """Reset by the server, or ended without trailers."""
    connection.open(b"")
    assert [(1, None, STATUS_NONE)] == connection.receive(end)


def test_a_message_in_several_frames_is_put_together(connection: Connection) -> None:
    """And two messages in one frame are taken apart."""
    connection.open(b"", end=False)
    data = framed(b"first") + framed(b"second") + framed(b"third")
    events = connection.receive(
        frame(DATA, 0, 1, data[:3]) + frame(DATA, 0, 1, data[3:23]) + frame(DATA, 0, 1, data[23:])
    )
    assert [(1, b"first", 0), (1, b"second", 0), (1, b"third", 0)] == events


def test_data_waits_for_the_window_of_the_connection(connection: Connection) -> None:
    """What has no room is sent when the server makes room, in order."""
    body = b"x" * 16_000
    for _ in range(5):
        connection.open(body)
    data = [(stream, len(payload)) for kind, _, stream, payload in sent(connection) if kind == DATA]
    assert WINDOW_DEFAULT == sum(size for _, size in data)
    assert (9, WINDOW_DEFAULT - 4 * 16_000) == data[-1]
    connection.receive(frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 100_000)))
    assert [(DATA, END_STREAM, 9, 5 * 16_000 - WINDOW_DEFAULT)] == [
        (kind, flags, stream, len(payload)) for kind, flags, stream, payload in sent(connection)
    ]


def test_data_waits_for_the_window_of_its_stream(connection: Connection) -> None:
    """A smaller window in SETTINGS holds for streams that are opened later; SETTINGS are acknowledged."""
    connection.receive(frame(SETTINGS, 0, 0, struct.pack(">HI", INITIAL_WINDOW_SIZE, 10)))
    assert [(SETTINGS, ACK, 0, b"")] == sent(connection)
    stream = connection.open(b"x" * 25)
    assert [10] == [len(payload) for kind, _, _, payload in sent(connection) if kind == DATA]
    connection.receive(frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", 100)))
    assert [(END_STREAM, 15)] == [(flags, len(payload)) for kind, flags, _, payload in sent(connection) if kind == DATA]


def test_a_ping_is_answered(connection: Connection) -> None:
    """grpcio's servers measure with them and cut off who is silent."""
    connection.receive(frame(PING, 0, 0, b"12345678"))
    assert [(PING, ACK, 0, b"12345678")] == sent(connection)


def test_a_goodbye_ends_the_load(connection: Connection) -> None:
    """A benchmark has no use for a server that goes away."""
    with pytest.raises(ProtocolError, match="ends the connection"):
        connection.receive(frame(GOAWAY, 0, 0, bytes(8) + b"too_many_pings"))


# --- Against grpcio -------------------------------------------------------------------------------------------------


class _Echo(grpc.GenericRpcHandler):
    """Answers with the message, refuses an empty one, and echoes streams."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[bytes, bytes] | None":
        if handler_call_details.method == "/test/Stream":
            return grpc.stream_stream_rpc_method_handler(lambda requests, context: requests)

        def unary(request: bytes, context: grpc.ServicerContext) -> bytes:
            if not request:
                context.abort(grpc.StatusCode.OUT_OF_RANGE, "an empty message, says the server")
            return request

        return grpc.unary_unary_rpc_method_handler(unary)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A grpcio server's."""
    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((_Echo(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def test_every_call_of_a_grpcio_server_is_answered(address: str) -> None:
    """More data than any window holds, and a status for each call."""
    bodies = itertools.islice(itertools.cycle((0, framed(b"x" * size)) for size in (1, 100, 20_000, 70_000)), 200)
    result = run_unary([address, address], "/test/Unary", bodies, outstanding=20, seconds=60.0, keep_answers=500)
    assert {0: 200} == dict(result.statuses)
    assert 50 * (1 + 100 + 20_000 + 70_000) == sum(len(each) for each in result.answers)
    assert 200 == len(result.latencies_ns)


def test_refusals_of_a_grpcio_server_are_counted_by_status(address: str) -> None:
    """11 is OUT_OF_RANGE; only the others have a latency."""
    bodies = ((0, framed(b"x" if number % 2 else b"")) for number in range(40))
    result = run_unary([address], "/test/Unary", bodies, outstanding=8, seconds=60.0)
    assert {0: 20, 11: 20} == dict(result.statuses)
    assert (20, 20, 20) == (result.succeeded, result.failed, len(result.latencies_ns))


def test_a_stream_of_a_grpcio_server_is_answered_to_its_end(address: str) -> None:
    """Each message is answered; then the stream ends without an error."""
    bodies = ((0, framed(b"m" * number)) for number in range(1, 101))
    result = run_stream(address, "/test/Stream", bodies, outstanding=16, seconds=60.0, keep_answers=100)
    assert {0: 100} == dict(result.statuses)
    assert list(range(1, 101)) == [len(each) for each in result.answers]
