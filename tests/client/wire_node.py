"""A node that speaks HTTP/2 with this project's own server role, and does on each request what a test tells it to: also what no
proper node does.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from raftcache.wire.grpc_wire import OK_RESPONSE, framed
from raftcache.wire.hpack import Fields
from raftcache.wire.http2 import Http2Limits
from raftcache.wire.http2_server import ServerConnection
from raftcache.wire.http2_stream import DataReceived, Event, HeadersReceived, Stream, StreamReset

OK_BODY = b"answer"
PATIENCE_SECONDS = 30.0


class Peer(asyncio.Protocol):
    """One connection to the node."""

    def __init__(self, node: "WireNode") -> None:
        self.node = node
        self.http2 = ServerConnection(node.limits, 0)
        self.transport: asyncio.Transport | None = None
        self.reads: list[int] = []
        """Requests that came whole with each piece of data."""
        self.resets: list[int] = []
        self.events: list[Event] = []
        self.open_max = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.node.peers.append(self)
        if self.node.hello is not None:
            transport.write(self.node.hello)
        else:
            self.flush()

    def data_received(self, data: bytes) -> None:
        if self.node.hello is not None:
            return
        count = 0
        for event in self.http2.receive(data, 0):
            self.events.append(event)
            self.open_max = max(self.open_max, len(self.http2.streams))
            if isinstance(event, StreamReset):
                self.resets.append(event.code)
            elif isinstance(event, HeadersReceived | DataReceived):
                count += event.ended
                if isinstance(event, HeadersReceived):
                    self.node.heads.append(event.headers.fields)
                self.node.on_event(self, event)
        self.reads.append(count)
        self.flush()

    def answer(self, stream: Stream, body: bytes = OK_BODY) -> None:
        self.http2.sender.respond(stream, OK_RESPONSE, framed(body))

    def raw(self, data: bytes) -> None:
        """Sends what it is told to."""
        self.http2.sender.out.append(data)

    def flush(self) -> None:
        assert self.transport is not None
        if not self.transport.is_closing():
            while data := self.http2.sender.data_to_send():
                self.transport.write(data)

    def hang_up(self) -> None:
        assert self.transport is not None
        self.flush()
        self.transport.close()


On = Callable[[Peer, HeadersReceived | DataReceived], None]


class WireNode:
    """The node; `on_event` is told of each piece of a request."""

    def __init__(self, on_event: On, limits: Http2Limits, hello: bytes | None) -> None:
        self.on_event = on_event
        self.limits = limits
        self.hello = hello
        """Said in the place of HTTP/2's; None: as it should be."""
        self.peers: list[Peer] = []
        self.heads: list[Fields] = []
        self.endpoint = ""


def when_complete(do: Callable[[Peer, Stream], None]) -> On:
    """Does something when a request is complete."""

    def on_event(peer: Peer, event: HeadersReceived | DataReceived) -> None:
        if event.ended:
            do(peer, event.stream)

    return on_event


async def until(condition: Callable[[], object]) -> None:
    """Waits for something of this loop, or of another thread, to become true."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():  # noqa: ASYNC110 # conditions are about whatever objects
            await asyncio.sleep(0.001)


answering = when_complete(lambda peer, stream: peer.answer(stream))
silent = when_complete(lambda peer, stream: None)


@asynccontextmanager
async def wire_node(
    on_event: On = answering, *, limits: Http2Limits | None = None, hello: bytes | None = None
) -> AsyncIterator[WireNode]:
    """A node on a free port of this machine."""
    node = WireNode(on_event, limits or Http2Limits(), hello)
    server = await asyncio.get_running_loop().create_server(lambda: Peer(node), "127.0.0.1", 0)
    node.endpoint = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield node
        for peer in node.peers:
            assert peer.transport is not None
            peer.transport.abort()
        await asyncio.sleep(0)
