"""The server connection beside `h2` as its client: whatever a valid client and the layer above do, both ends agree.

An input is a script: each action takes five bytes, is the client's or the server's, and does nothing where it would not be
valid. It is played twice, once with every write delivered whole and once cut into pieces, and must come to the same.

`h2` raises where the server breaks the protocol. Beside that, after each exchange, the windows of both ends must be equal, and
at the end every byte that was sent must have arrived. GOAWAY is left out: for `h2` it ends the connection at once. And while
SETTINGS of one kind are not acknowledged, those of another are not sent: `h2` takes each acknowledgement for one of every kind.
"""

from dataclasses import dataclass, field
from typing import Any, Final

import h2.config
import h2.connection
import h2.events
import h2.settings

from raftcache.wire import http2_frames as frames
from raftcache.wire import http2_headers, huffman
from raftcache.wire.grpc_wire import OK_RESPONSE, OK_TRAILERS, RESPONSE_HEAD
from raftcache.wire.http2 import Http2Limits
from raftcache.wire.http2_errors import CANCEL
from raftcache.wire.http2_sending import ResponseShape
from raftcache.wire.http2_server import ServerConnection
from raftcache.wire.http2_stream import ConnectionEnded, DataReceived, Event, HeadersReceived, Stream, StreamReset
from tests.edge.fuzz.invariants import check_connection

# The connection's window is never what limits the client: when it is given back depends on how the bytes are cut.
LIMITS: Final = Http2Limits(
    streams_max=8, stream_window=4_096, connection_window=1 << 20, header_list_bytes_max=64 << 10
)
_ACTION_BYTES: Final = 5
_ACTIONS_MAX: Final = 80
"""Fewer than every allowance of `http2_floods`: a valid client is never cut off."""
_WINDOWS: Final = (65_535, 0, 1, 100, 200_000)
_TABLES: Final = (4_096, 0, 64, 100, 10_000)
_SHAPES: Final = (OK_RESPONSE, ResponseShape((*RESPONSE_HEAD, (b"x-shape", b"1")), OK_TRAILERS))
_OPEN: Final = 1 << 24
"""More than a script can make the server send."""


def run_peer(data: bytes) -> None:
    """Plays the script in `data` twice."""
    options, cut = (data + bytes(2))[:2]
    script = [data[at : at + _ACTION_BYTES] for at in range(2, len(data) - _ACTION_BYTES + 1, _ACTION_BYTES)]
    outcomes = []
    for step in (0, cut + 1):
        http2_headers._good.clear()
        huffman._strings.clear()
        session = _Session(options, step)
        for action in script[:_ACTIONS_MAX]:
            session.act(action)
        outcomes.append(session.finish())
    whole, in_pieces = outcomes
    assert whole == in_pieces, f"cut by {cut + 1}: {in_pieces}; whole: {whole}"


@dataclass
class _Exchange:
    """What one stream carries, as each side sees it."""

    stream: Stream | None = None
    """The server's, while it is open there."""
    promised: int | None = None
    """What `content-length` still allows the client to send."""
    client_open: bool = True
    """The client has more to send."""
    head_sent: bool = False
    sent: bytearray = field(default_factory=bytearray)
    received: bytearray = field(default_factory=bytearray)
    answer_sent: bytearray = field(default_factory=bytearray)
    answer_received: bytearray = field(default_factory=bytearray)
    answered: bool = False
    """The client has the end of the answer."""
    ended: bool = False
    """The server has the end of the request."""
    server_reset: int | None = None
    client_reset: int | None = None
    fields: object = None


class _Session:
    """Both ends of one connection."""

    def __init__(self, options: int, step: int) -> None:
        self._step = step
        self._server = ServerConnection(LIMITS, 0)
        self._client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding=None))
        codes = h2.settings.SettingCodes
        self._client.local_settings = h2.settings.Settings(
            client=True,
            initial_values={
                codes.INITIAL_WINDOW_SIZE: _WINDOWS[options % len(_WINDOWS)],
                codes.HEADER_TABLE_SIZE: _TABLES[options // 8 % len(_TABLES)],
            },
        )
        self._exchanges: dict[int, _Exchange] = {}
        self._pings = 0
        self._unacknowledged: list[h2.settings.SettingCodes] = []
        """The client's SETTINGS, each of one kind, the oldest first."""
        self._client.initiate_connection()
        # Without a limit of its own, `h2` would need header blocks of 16 KiB for a CONTINUATION.
        self._frame_bytes_max = 100 if options & 0x80 else frames.FRAME_BYTES_DEFAULT
        self._exchange()

    # --- Actions ------------------------------------------------------------------------------------------------------

    def act(self, action: bytes) -> None:
        """One action; its first byte says which, and whether what it made is delivered at once."""
        verb, which, flags, high, low = action
        size = high << 5 | low if flags & 0x80 else low
        client, server = self._client, self._server
        ids = [stream_id for stream_id, each in self._exchanges.items() if each.client_open]
        mine = ids[which % len(ids)] if ids else 0
        streams = list(server.streams.values())
        theirs = streams[which % len(streams)] if streams else None
        match verb % 16:
            case 0 | 1:
                self._open(flags, size)
            case 2 | 3 if mine:
                self._send(mine, size, flags)
            case 4 if mine and not self._exchanges[mine].promised:
                client.send_headers(mine, [(b"x-trailer", b"%d" % size)], end_stream=True)
                self._exchanges[mine].client_open = False
            case 5 if mine:
                client.reset_stream(mine, size)
                self._exchanges[mine].client_open = False
                self._exchanges[mine].client_reset = size
            case 6:
                client.increment_flow_control_window(size + 1)
            case 7 if mine and mine in client.streams and not client.streams[mine].closed:
                client.increment_flow_control_window(size + 1, mine)
            case 8 if flags & 1:
                self._set(h2.settings.SettingCodes.INITIAL_WINDOW_SIZE, _WINDOWS[which % len(_WINDOWS)])
            case 8:
                self._set(h2.settings.SettingCodes.HEADER_TABLE_SIZE, _TABLES[which % len(_TABLES)])
            case 9:
                self._say(flags, action[:4] * 2, mine)
            case 10 if theirs:
                self._respond(theirs, size, flags)
            case 11 | 12 if theirs:
                self._stream(theirs, size, flags)
            case 13 if theirs:
                self._end(theirs, flags)
            case 14 if theirs:
                if flags & 1:
                    server.reset(theirs, CANCEL)
                    self._exchanges[theirs.id].stream = None
                else:
                    server.allow(theirs, size % 10_000)
            case 15:
                server.sender.set_writable(bool(flags & 1))
            case _:
                pass
        if verb & 0x80:
            self._exchange()

    def _set(self, code: h2.settings.SettingCodes, value: int) -> None:
        if set(self._unacknowledged) <= {code}:
            self._client.update_settings({code: value})
            self._unacknowledged.append(code)

    def _open(self, flags: int, size: int) -> None:
        if self._client.open_outbound_streams >= LIMITS.streams_max:
            return
        stream_id = self._client.get_next_available_stream_id()
        exchange = self._exchanges[stream_id] = _Exchange(client_open=not flags & 1)
        fields = [
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", b"/a/%d" % (size % 4)),
            (b":authority", b"b"),
        ]
        if flags & 2:
            fields.append((b"x-long", b"~" * (size % 400)))
        if flags & 4:
            exchange.promised = 0 if flags & 1 else size % 6_000
            fields.append((b"content-length", b"%d" % exchange.promised))
        # h2 makes a frame too long when both are asked for.
        priority: dict[str, Any] = {"priority_weight": size % 256 + 1} if flags & 8 and not flags & 2 else {}
        exchange.fields = tuple(fields)
        self._client.max_outbound_frame_size = self._frame_bytes_max
        self._client.send_headers(stream_id, fields, end_stream=bool(flags & 1), **priority)
        self._client.max_outbound_frame_size = frames.FRAME_BYTES_DEFAULT

    def _send(self, stream_id: int, size: int, flags: int) -> None:
        """DATA, as far as the windows allow."""
        exchange, client = self._exchanges[stream_id], self._client
        padding = size % 256 if flags & 2 else None
        room = min(client.local_flow_control_window(stream_id), client.max_outbound_frame_size)
        if padding is not None:
            room -= padding + 1
        if room < 0:
            return
        data = (b"%d " % stream_id * 6_000)[: min(size, room)]
        if exchange.promised is not None:
            data = data[: exchange.promised]
            exchange.promised -= len(data)
        end = bool(flags & 1) and not exchange.promised
        client.send_data(stream_id, data, end_stream=end, pad_length=padding)
        exchange.sent += data
        exchange.client_open = not end

    def _say(self, flags: int, data: bytes, stream_id: int) -> None:
        if flags & 1:
            self._client.ping(data)
        elif flags & 2:
            self._server.ping(data)
        elif stream_id:
            self._client.prioritize(stream_id, weight=data[0] + 1)

    def _respond(self, stream: Stream, size: int, flags: int) -> None:
        exchange = self._exchanges[stream.id]
        if not exchange.head_sent:
            exchange.head_sent = True
            body = bytes(size)
            exchange.answer_sent += body
            self._server.sender.respond(stream, _SHAPES[flags & 1], body)

    def _stream(self, stream: Stream, size: int, flags: int) -> None:
        exchange, sender = self._exchanges[stream.id], self._server.sender
        if stream.trailers is not None:
            return
        if not exchange.head_sent:
            exchange.head_sent = True
            sender.send_headers(stream, _SHAPES[flags & 1].head)
        chunks = [b"%d" % stream.id * (size), bytes(size % 7)]
        exchange.answer_sent += b"".join(chunks)
        sender.send_data(stream, chunks)

    def _end(self, stream: Stream, flags: int) -> None:
        exchange = self._exchanges[stream.id]
        if stream.trailers is not None:
            return
        if exchange.head_sent:
            # An empty DATA may end a stream whatever its window is (§6.9.1); `h2` wants the window not to be negative.
            may_be_empty = stream.send_window >= 0 and not stream.queue
            self._server.sender.end(stream, () if may_be_empty and not flags & 1 else OK_TRAILERS)
        else:
            exchange.head_sent = True
            self._server.sender.send_headers(stream, RESPONSE_HEAD + OK_TRAILERS, end=True)

    # --- The wire -----------------------------------------------------------------------------------------------------

    def _exchange(self) -> None:
        """Carries bytes both ways until there are none."""
        client, server = self._client, self._server
        while True:
            sent, received = client.data_to_send(), server.sender.data_to_send()
            if not sent and not received:
                break
            step, position = self._step or len(sent), 0
            while position < len(sent):
                self._on_server(server.receive(sent[position : position + step], 0))
                position, step = position + step, step + step // 4
            check_connection(server, LIMITS)
            if received:
                self._on_client(client.receive_data(received))
        self._compare()

    def _compare(self) -> None:
        """Nothing is under way: what one end may send is what the other expects."""
        client, server = self._client, self._server
        assert client.outbound_flow_control_window == server._window
        assert client.inbound_flow_control_window == server.sender.window
        for stream_id, stream in server.streams.items():
            theirs = client.streams[stream_id]
            if self._exchanges[stream_id].client_open:
                assert theirs.outbound_flow_control_window == stream.receive_window, f"stream {stream_id}"
            assert theirs.inbound_flow_control_window == stream.send_window, f"stream {stream_id}"

    def _on_server(self, events: list[Event]) -> None:
        for event in events:
            match event:
                case HeadersReceived():
                    exchange = self._exchanges[event.stream.id]
                    assert exchange.fields == event.headers.fields, f"{event.headers.fields}"
                    exchange.stream = event.stream
                    exchange.received += event.data
                    exchange.ended = event.ended
                case DataReceived():
                    exchange = self._exchanges[event.stream.id]
                    assert not exchange.ended, f"{event} behind the end"
                    exchange.received += event.data
                    exchange.ended = event.ended
                case StreamReset():
                    exchange = self._exchanges[event.stream.id]
                    assert exchange.client_reset == event.code, f"{event}: the client did nothing wrong"
                    exchange.stream = None
                case ConnectionEnded():
                    raise AssertionError(f"a valid client was cut off: {event.reason}")
                case _:
                    self._pings += 1

    def _on_client(self, events: list[Any]) -> None:
        for event in events:
            match event:
                case h2.events.DataReceived():
                    self._exchanges[event.stream_id].answer_received += event.data
                case h2.events.StreamEnded():
                    self._exchanges[event.stream_id].answered = True
                case h2.events.StreamReset():
                    self._exchanges[event.stream_id].server_reset = event.error_code
                    self._exchanges[event.stream_id].client_open = False
                case h2.events.SettingsAcknowledged():
                    del self._unacknowledged[:1]
                case h2.events.PingAckReceived():
                    self._pings += 1
                case _:
                    pass

    def finish(self) -> object:
        """Ends what is open, opens what is closed, and looks at what has arrived. What can be compared."""
        client, server = self._client, self._server
        server.sender.set_writable(True)
        self._exchange()
        for stream in list(server.streams.values()):
            self._end(stream, 1)
        client.increment_flow_control_window(_OPEN)
        for stream_id in list(server.streams):
            client.increment_flow_control_window(_OPEN, stream_id)
        self._exchange()
        assert (0, {}) == (server.sender.unsent, server.streams)
        for stream_id, each in self._exchanges.items():
            assert each.sent.startswith(each.received), f"stream {stream_id}"
            assert each.answer_sent.startswith(each.answer_received), f"stream {stream_id}"
            if each.client_reset is None and each.server_reset != CANCEL:
                assert each.answered, f"stream {stream_id} was never answered"
                assert each.answer_sent == each.answer_received, f"stream {stream_id}"
            each.stream = None
        return self._pings, self._exchanges
