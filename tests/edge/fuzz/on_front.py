"""The fast front without sockets: two clients, handlers that answer when the script says so, and accounts that add up.

    script ─► frames, well-formed or not ─► FastConnection.data_received ─► calls ─► handlers
           ─► what handlers, transports, the clock and the loop do meanwhile

An input is a script of actions of five bytes. The loop, the transports and the clock are the target's own, so a script does the
same each time. Limits are small, so that a script reaches them.
"""

from collections.abc import Callable
from typing import Any, Final, cast
from unittest.mock import patch

from raftcache.clock import NS_PER_MS, Clock
from raftcache.edge import fast_connection
from raftcache.edge.fast_calls import FastCall, StreamCall, UnaryCall
from raftcache.edge.fast_connection import FastConnection
from raftcache.edge.fast_front import FastFront
from raftcache.edge.front import Answer, Call, CallSink, Handlers, Refusal, StreamSink
from raftcache.edge.front_config import FrontConfig
from raftcache.wire import http2_frames as frames
from raftcache.wire import http2_headers, huffman
from raftcache.wire.hpack import Encoder
from raftcache.wire.http2 import Http2Limits
from tests.edge.fuzz.invariants import Reader, check_connection
from tests.edge.wire_client import request_fields

_CONFIG: Final = FrontConfig(
    address="127.0.0.1:0",
    message_bytes_max=200_000,
    in_flight_max=6,
    streams_per_connection_max=5,
    buffered_bytes_max=200_000,
    reflection=False,
)
_ACTION_BYTES: Final = 5
_ACTIONS_MAX: Final = 120
_PATHS: Final = (b"/a/Unary", b"/a/Stream", b"/a/Missing", b"/grpc.health.v1.Health/Watch")
_LENGTHS: Final = (0, 10, 16_000, 70_000, 150_000, 199_999, 300_000, 1)
_STEPS_NS: Final = (0, NS_PER_MS, 600 * NS_PER_MS, 61_000 * NS_PER_MS)


def run_front(data: bytes) -> None:
    """Plays the script in `data`, then hangs up."""
    http2_headers._good.clear()
    huffman._strings.clear()
    with (
        patch.object(fast_connection, "PROMISED_BYTES_MAX", 160_000),
        patch.object(fast_connection, "UNSENT_BYTES_MAX", 120_000),
    ):
        scene = _Scene()
        for at in range(0, min(len(data), _ACTIONS_MAX * _ACTION_BYTES) - _ACTION_BYTES + 1, _ACTION_BYTES):
            scene.act(*data[at : at + _ACTION_BYTES])
        scene.finish()


class _Scene:
    """A front, its clients, and its surroundings."""

    def __init__(self) -> None:
        self.now_ns = 1
        self._due: list[Callable[[], None]] = []
        self._later: list[Callable[[], None]] = []
        self._service = _Unary()
        self._streams = _Streams()
        handlers = Handlers(
            refusal=lambda error: Refusal(14, str(error), b"details"),
            unary={"/a/Unary": self._service},
            streams={"/a/Stream": self._streams},
            services=("a",),
        )
        self.front = FastFront(handlers, _CONFIG, cast(Clock, self), on_bug=self._on_bug)
        self.front._loop = cast(Any, self)
        # Awaited methods need a real loop; the health service's have nothing of the front's own.
        self.front.routes = {name: route for name, route in self.front.routes.items() if route.awaited is None}
        self._clients = [_Client(self) for _ in range(2)]

    # --- What the front sees of a clock and a loop --------------------------------------------------------------------

    def monotonic_ns(self) -> int:
        return self.now_ns

    def call_soon(self, callback: Callable[..., None], *arguments: object) -> None:
        self._due.append(lambda: callback(*arguments))

    def call_later(self, delay: float, callback: Callable[[], None]) -> None:
        """The script says when."""
        if callback != self.front._on_look:
            self._later.append(callback)

    @staticmethod
    def _on_bug(error: Exception) -> None:
        raise AssertionError("a handler raised, or the front did") from error

    # --- Actions ------------------------------------------------------------------------------------------------------

    def act(self, verb: int, which: int, flags: int, high: int, low: int) -> None:
        """One action, and perhaps a turn of the loop."""
        size = high << 8 | low
        client = self._clients[flags >> 7]
        client.corked = bool(verb & 0x40)
        match verb % 16:
            case 0 | 1 | 2:
                client.open(_PATHS[which % len(_PATHS)], flags, _LENGTHS[high % len(_LENGTHS)], low << 6)
            case 3 | 4:
                client.more(which, flags, size % 17_000)
            case 5:
                client.send(frames.rst_stream(client.stream(which), 8))
            case 6:
                client.send(frames.window_update(client.stream(which) if flags & 1 else 0, size * 4))
            case 7:
                client.send(frames.settings({frames.INITIAL_WINDOW_SIZE: size}))
            case 8:
                client.send(frames.frame(which % 12, flags & 0x7F, client.stream(high), bytes(low % 20)))
            case 9 | 10:
                self._service.answer(which, size, flags)
            case 11 | 12:
                self._streams.act(which, size, flags)
            case 13:
                client.push_back(bool(flags & 1))
            case 14:
                self.now_ns += _STEPS_NS[which % len(_STEPS_NS)]
                self.front._on_look()
                self._due, self._later = self._due + self._later, []
            case _:
                if flags & 1:
                    client.connection.leave(self.now_ns)
                elif flags & 2:
                    client.hang_up()
        if verb & 0x80:
            self._turn()

    def _turn(self) -> None:
        """Rounds of the loop until it is idle."""
        for _ in range(100):
            if not self._due:
                break
            due, self._due = self._due, []
            for callback in due:
                callback()
        assert not self._due, "the loop is never idle"
        self._check()

    def _check(self) -> None:
        front = self.front
        in_flight = 0
        for client in self._clients:
            connection = client.connection
            calls: list[FastCall] = connection.calls()
            check_connection(connection.http2, client.limits)
            buffered = sum(call.reader.buffered for call in calls if call.reader is not None)
            assert buffered == connection.buffered, f"{connection.buffered} counted, {buffered} buffered"
            promised = sum(call.promised for call in calls if call.promised > 0)
            assert promised == connection._promised, f"{connection._promised} counted, {promised} promised"
            waiting = [call for call in calls if call.promised < 0]
            assert set(waiting) == set(connection._wanting), f"{len(connection._wanting)} wait, {len(waiting)} know it"
            assert not waiting or connection._promised, "calls wait for room that nobody has"
            for call in calls:
                if client.connected and call.reader is not None and call.reader.missing and call.promised >= 0:
                    assert call.stream.remote_ended or call.stream.receive_window > 0, (
                        f"{call} waits for what may not come"
                    )
            allowed = len(calls) * (fast_connection.STREAM_WINDOW + frames.FRAME_BYTES_DEFAULT) + 2 * promised
            assert buffered <= allowed, f"{buffered} bytes of requests, {allowed} allowed"
            in_flight += sum(isinstance(call, StreamCall) or call.submitted for call in calls)
            if client.connected:
                held = connection.buffered + connection.http2.sender.unsent
                assert held == connection.charged, f"{connection.charged} charged, {held} held"
        assert in_flight == front.in_flight <= _CONFIG.in_flight_max, (
            f"{front.in_flight} counted, {in_flight} in flight"
        )
        held = sum(client.connection.charged for client in self._clients)
        assert held == front._held <= _CONFIG.buffered_bytes_max, f"{front._held} held, {held} charged"

    def finish(self) -> None:
        """Answers what is there, hangs up: nothing may be left."""
        self._turn()
        self._service.answer_all()
        for client in self._clients:
            client.hang_up()
        self._turn()
        assert (0, 0, {}) == (self.front.in_flight, self.front._held, self.front._connections)
        assert all(handler.cancelled for handler in self._streams.handlers), (
            "a handler does not know that its stream is over"
        )


class _Client:
    """A connection with its transport, whose other end writes frames and believes nothing that it reads."""

    def __init__(self, scene: _Scene) -> None:
        self._scene = scene
        self._encoder = Encoder()
        self._next_id = 1
        self._reading = True
        self._paused = False
        self._pending = b""
        self.corked = False
        self._closing = False
        self._said_goodbye = False
        self.connected = True
        self._reader = Reader()
        self.connection = FastConnection(scene.front)
        self.limits: Http2Limits = self.connection.http2._limits
        self.connection.connection_made(cast(Any, self))
        self.send(frames.PREFACE + frames.settings({}))

    # --- The transport ------------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        assert not self._said_goodbye, "a write behind write_eof, where a transport raises"
        if not self._closing:
            self._reader.read(data, self.connection.http2)

    def get_extra_info(self, name: str) -> object:
        return ("127.0.0.1", 1) if name == "peername" else None

    def set_write_buffer_limits(self, high: int) -> None:
        """The script says when the buffer is full."""

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self._said_goodbye = True

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True

    def close(self) -> None:
        self._closing = True
        self._scene.call_soon(self.hang_up)

    abort = close

    # --- The other end ------------------------------------------------------------------------------------------------

    def hang_up(self) -> None:
        if self.connected:
            self.connected = False
            self.connection.connection_lost(None)

    def push_back(self, full: bool) -> None:
        """The transport's buffer is full, or is not any more."""
        if self.connected and not self._closing and full != self._paused:
            self._paused = full
            self.connection.pause_writing() if full else self.connection.resume_writing()

    def send(self, data: bytes) -> None:
        """Sends, unless what comes next is to arrive in one piece with it."""
        self._pending += data
        if not self.corked and self.connected and self._reading:
            pending, self._pending = self._pending, b""
            self.connection.data_received(pending)

    def stream(self, which: int) -> int:
        """One of the streams that were opened lately, or the next."""
        return max(self._next_id - 2 * (which % 8), 1)

    def open(self, path: bytes, flags: int, length: int, size: int) -> None:
        """HEADERS, and the beginning of a message that may be much longer."""
        more = ((b"grpc-timeout", b"%dm" % (length % 2_000)),) if flags & 2 else ()
        more += ((b"grpc-encoding", b"gzip"),) if flags & 4 else ()
        more += ((b"content-length", b"%d" % (size + 5)),) if flags & 8 else ()
        block = self._encoder.encode(request_fields(path, *more))
        head = frames.headers(self._next_id, block, end_stream=False, frame_bytes_max=16_384)
        message = bytes((flags >> 4 & 1,)) + length.to_bytes(4, "big") + bytes(min(size, length))
        end = frames.END_STREAM if flags & 1 else 0
        data = b"" if flags & 32 else frames.frame(frames.DATA, end, self._next_id, message)
        self._next_id += 2
        self.send(head + data)

    def more(self, which: int, flags: int, size: int) -> None:
        self.send(frames.frame(frames.DATA, frames.END_STREAM if flags & 1 else 0, self.stream(which), bytes(size)))


class _Unary:
    """Keeps calls until the script has them answered."""

    def __init__(self) -> None:
        self._calls: list[Call] = []
        self._sink: CallSink | None = None

    def attach(self, sink: CallSink) -> Callable[[list[Call]], None]:
        self._sink = sink
        return self._submit

    def _submit(self, calls: list[Call]) -> None:
        for call in calls:
            assert isinstance(call.token, UnaryCall), call
            assert len(call.message) <= _CONFIG.message_bytes_max, f"a message of {len(call.message)} bytes"
        self._calls += calls

    def answer(self, count: int, size: int, flags: int) -> None:
        """Some of them, in either order; perhaps one twice, as after a bug."""
        answered: list[Answer] = []
        for _ in range(min(count % 4 + 1, len(self._calls))):
            call = self._calls.pop(0 if flags & 1 else -1)
            answered.append((call, Refusal(5, " no ", b"x") if flags & 2 else bytes(size * 4)))
        if flags & 4:
            answered += answered[:1]
        assert self._sink is not None
        self._sink.deliver(answered)

    def answer_all(self) -> None:
        self.answer(0, 0, 0)
        while self._calls:
            self.answer(3, 0, 0)


class _Streams:
    """A streaming method whose handlers do what the script says."""

    def __init__(self) -> None:
        self.handlers: list[_Handler] = []

    def open(self, call: Call, sink: StreamSink) -> "_Handler":
        self.handlers.append(_Handler(sink))
        return self.handlers[-1]

    def act(self, which: int, size: int, flags: int) -> None:
        live = [handler for handler in self.handlers if not handler.cancelled]
        if live:
            live[which % len(live)].act(size, flags)


class _Handler:
    """One stream. Like the product's handlers it says nothing behind its end."""

    def __init__(self, sink: StreamSink) -> None:
        self._sink = sink
        self._unsent = 0
        self._half_closed = False
        self.reading = True
        self.cancelled = False

    def receive(self, messages: list[bytes]) -> None:
        assert self.reading, "a message that nobody wanted to read"
        assert not self._half_closed, "a message behind the end"
        assert max(map(len, messages)) <= _CONFIG.message_bytes_max, "a message beyond the limit"

    def half_close(self) -> None:
        assert not self._half_closed, "half-closed twice"
        self._half_closed = True

    def sent(self, count: int) -> None:
        self._unsent -= count
        assert self._unsent >= 0, f"{-self._unsent} messages were reported that nobody sent"

    def drain(self) -> None:
        self._sink.finish(None)

    def cancel(self) -> None:
        self.cancelled = True

    def act(self, size: int, flags: int) -> None:
        if flags & 8:
            self._sink.finish(Refusal(8, "enough", b"") if flags & 16 else None)
        elif flags & 4:
            self._unsent += 2
            self._sink.send([bytes(size * 4), b""])
        elif flags & 2:
            self.reading = False
        else:
            self.reading = True
            self._sink.resume()
